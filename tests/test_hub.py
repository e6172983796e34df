"""Learners go to the Hub and come back, by a stand-in of its HTTP API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import COMMIT, Hub, serve, visit
from PIL import Image

from vlprompt import VlpromptError, load_learner, run
from vlprompt.base.sealed import seal
from vlprompt.cli.push import main as push
from vlprompt.saving.push import push_folder
from vlprompt.testing import make, small_clip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as server:
        visit(server, tmp_path / "hub", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield server


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_a_learner_goes_to_the_hub_and_comes_back(hub: Hub) -> None:
    learner = make("coop", n_ctx=2)
    assert learner.push_to_hub("me/my-learner", private=True, license="mit") == "hf://me/my-learner"
    sent = hub.repos["me/my-learner"]
    assert sent["private"]
    assert sorted(sent["files"]) == ["README.md", "config.json", "learner.safetensors"]
    for address in ("hf://me/my-learner", "hf://me/my-learner@main", f"hf://me/my-learner@{COMMIT}"):
        again = load_learner(address, clip=small_clip())
        assert torch.equal(again.text_features(), learner.text_features())


def test_a_dry_run_sends_nothing(hub: Hub) -> None:
    assert make("coop", n_ctx=2).push_to_hub("me/my-learner", dry_run=True) == "hf://me/my-learner"
    assert not hub.requests


def test_the_command_pushes_a_run_with_its_results(hub: Hub, tmp_path: Path, capsys) -> None:
    result = run(
        method="coop", dataset="emoji", shots=1, epochs=1, n_ctx=2, limit=20, views=1, quiet=True, output=str(tmp_path)
    )
    folder = next(tmp_path.rglob("result.json")).parent
    assert push([f"learner={folder}", "repo=me/emoji", "license=cc-by-4.0"]) == 0
    assert "sent to hf://me/emoji" in capsys.readouterr().out
    card = hub.repos["me/emoji"]["files"]["README.md"].decode()
    facts = front_matter(card)
    assert facts["library_name"] == "vlprompt"
    assert facts["license"] == "cc-by-4.0"
    assert facts["pipeline_tag"] == "zero-shot-image-classification"
    metrics = [m for entry in facts["model-index"][0]["results"] for m in entry["metrics"]]
    assert [m["value"] for m in metrics] == [round(row.accuracy, 2) for row in result.rows]
    assert f"| {result.rows[0].target} | {result.rows[0].n_classes} |" in card
    assert 'load_learner("hf://me/emoji")' in card
    assert "licence:" in card, "the data's licence is missing"
    assert result.recipe["name"] in card


def test_the_command_says_what_it_needs(capsys) -> None:
    for arguments, message in (
        (["repo=me/it"], "needs learner=DIR"),
        (["learner=x"], "needs repo=USER/NAME"),
        (["learner=/nowhere", "repo=me/it"], "no saved learner in /nowhere"),
        (["learner=x", "repo=it"], "'it' is not a repository name of the Hub: write it as user/name"),
        (["learner=x", "repo=me/it", "private=perhaps"], "private must be true or false"),
        (["learner=x", "repo=me/it", "licence=mit"], "unknown key 'licence': did you mean license?"),
    ):
        assert push(arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://me", "'me' is not a repository name of the Hub"),
        ("hf://../etc/passwd", "is not a repository name of the Hub"),
        ("hf://me/../../etc", "is not a repository name of the Hub"),
        ("hf://me/it@../../x", "is not a revision"),
        ("hf://me/absent", "there is no such repository, or it is private"),
        ("hf://me/other@v9", "the repository has no such revision"),
        ("hf://me/other", "it has no config.json"),
    ],
)
def test_what_is_not_on_the_hub_is_told_in_one_sentence(hub: Hub, address: str, message: str) -> None:
    hub.repos["me/other"] = {"private": False, "files": {"weights.bin": b"0"}}
    with pytest.raises(VlpromptError) as error:
        load_learner(address, clip=small_clip())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_who_may_not_write_is_told_to_log_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(VlpromptError, match="you are not logged in, or may not write there"):
        make("coop", n_ctx=2).push_to_hub("me/it")


def test_offline_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.server_close()
    hub.shutdown()
    for action in (lambda: load_learner("hf://me/it"), lambda: make("coop", n_ctx=2).push_to_hub("me/it")):
        with pytest.raises(VlpromptError, match="the Hub cannot be reached"):
            action()


def test_a_learner_from_the_hub_opens_no_path_and_no_other_repository(hub: Hub, tmp_path: Path) -> None:
    make("coop", n_ctx=2).push_to_hub("me/it")
    files = hub.repos["me/it"]["files"]
    for source in ({"name": f"local-dir:{tmp_path}"}, {"name": "hf-hub:me/evil"}, {"checkpoint": "/etc/passwd"}):
        whole = {"name": "ViT-B-32", "pretrained": None, "checkpoint": None} | source
        files["config.json"] = json.dumps(seal(json.loads(files["config.json"]) | {"source": whole})).encode()
        with pytest.raises(VlpromptError, match="asks for a backbone from elsewhere"):
            load_learner("hf://me/it")


def test_folders_of_this_machine_stay_here(hub: Hub, tmp_path: Path) -> None:
    folder = make("coop", n_ctx=2).save_pretrained(tmp_path / "it")
    config = json.loads((folder / "config.json").read_text())
    config["source"] = {"name": f"local-dir:{tmp_path}/model", "pretrained": None, "checkpoint": f"{tmp_path}/w.pt"}
    config["backbone"]["architecture"] = config["source"]["name"]
    config["config"]["init_from"] = str(tmp_path / "other")
    config["config"]["gradient_rule"] = f"regulated(file='{tmp_path}/r.safetensors')"
    config["config"]["objective"] = ["ce", f"description_anchor(descriptions='{tmp_path}/words.json')"]
    config["extra"]["start"] = {"from": f"{tmp_path}/source", "datasets": [f"folder:{tmp_path}/pets", "emoji"]}
    (folder / "config.json").write_text(json.dumps(seal(config)))
    push_folder(folder, "me/it")
    sent = b"".join(hub.repos["me/it"]["files"].values()).decode(errors="replace")
    assert str(tmp_path) not in sent
    assert "# coop (reconstruction) on local-dir:model" in sent
    assert "regulated(file='r.safetensors')" in sent
    assert "description_anchor(descriptions='words.json')" in sent
    told = json.loads(hub.repos["me/it"]["files"]["config.json"])["extra"]["start"]
    assert told == {"from": "source", "datasets": ["folder:pets", "emoji"]}


def test_folders_of_the_data_stay_here_too(hub: Hub, tmp_path: Path) -> None:
    for i in range(8):
        path = tmp_path / "secret/pets" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9 * i, 0, 0)).save(path)
    (tmp_path / "secret/mine.yaml").write_text("shots: 1\nepochs: 1\nn_ctx: 2\nviews: 1\n")
    settings = {"config": f"{tmp_path}/secret/mine.yaml", "protocol": "few_shot", "name": "it", "quiet": True}
    run(method="coop", dataset=f"folder:{tmp_path}/secret/pets", output=str(tmp_path), **settings)
    push_folder(tmp_path / "it", "me/it")
    sent = b"".join(hub.repos["me/it"]["files"].values()).decode(errors="replace")
    assert "secret" not in sent
    assert "| data | folder:pets |" in sent
    assert "| recipe | mine.yaml" in sent
    assert "name: folder:pets, all" in sent
    assert json.loads(hub.repos["me/it"]["files"]["config.json"])["extra"]["dataset"] == "folder:pets"

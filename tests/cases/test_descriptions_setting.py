"""`descriptions=FILE`: it reaches what can use it, and what cannot refuses it in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vlprompt import PromptClassifier, VlpromptError, create_learner
from vlprompt.base.parts import parse_part
from vlprompt.cli.__main__ import main
from vlprompt.data import load_split
from vlprompt.learner.objectives import OBJECTIVES
from vlprompt.runs.settings import resolve
from vlprompt.testing import NAMES, make, small_clip, toy_batch


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two sentences a class, three for the first, under keys in another order of words."""
    sentences = {f"({i}) {name}".upper(): [f"{name} from afar.", f"a large {name}."] for i, name in enumerate(NAMES)}
    next(iter(sentences.values())).append("one more.")
    path = tmp_path / "descriptions.json"
    path.write_text(json.dumps(sentences))
    return path


NUMBERED = [f"{name} {i}" for i, name in enumerate(NAMES)]


def test_zero_shot_averages_the_sentences_of_each_class(file: Path) -> None:
    clip = small_clip()
    learner = create_learner("zero_shot", clip, NUMBERED, descriptions=str(file))
    for row, sentences in zip(learner.text_features(), json.loads(file.read_text()).values(), strict=True):
        expected = F.normalize(F.normalize(clip.encode_text(sentences), dim=-1).mean(dim=0), dim=-1)
        torch.testing.assert_close(row, expected)
    with pytest.raises(VlpromptError, match="takes its texts from template or from descriptions"):
        create_learner("zero_shot", clip, NUMBERED, descriptions=str(file), template=["a {}"])


def test_setting_reaches_every_anchor_that_has_no_descriptions_of_its_own(file: Path) -> None:
    by_setting = make("coprompt", names=NUMBERED, descriptions=str(file))
    by_objective = make("coprompt", names=NUMBERED, objective=["ce", f"description_anchor(descriptions={str(file)!r})"])
    anchors = []
    for learner in (by_setting, by_objective, make("coprompt", names=NUMBERED)):
        torch.manual_seed(0)
        anchors.append(learner.loss(toy_batch())["description_anchor"].item())
    assert anchors[0] == anchors[1] != anchors[2]
    coop = make("coop", names=NUMBERED, objective=["ce", "description_anchor(weight=2)"], descriptions=str(file))
    assert coop.loss(toy_batch())["description_anchor"].item() > 0


def test_methods_without_a_use_for_it_refuse_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = f"method=coop has no use for descriptions={file}: give its objective a description_anchor"
    with pytest.raises(VlpromptError, match="^" + sentence.replace("(", r"\(")):
        create_learner("coop", small_clip(), NUMBERED, descriptions=str(file))
    own = ["ce", "description_anchor(descriptions='y.json')"]
    with pytest.raises(VlpromptError, match="has no use for descriptions="):
        create_learner("coprompt", small_clip(), NUMBERED, descriptions="x.json", objective=own)
    with pytest.raises(VlpromptError, match="has no use for descriptions="):
        resolve({"method": "coop", "dataset": "emoji", "descriptions": str(file)})
    assert resolve({"method": "coprompt", "dataset": "emoji", "descriptions": file}).config.descriptions == str(file)
    with pytest.raises(VlpromptError, match="has no use for descriptions="):
        PromptClassifier(options={"descriptions": str(file)}).fit(["a.jpg", "b.jpg"], ["cat", "dog"])
    assert main(["train", "method=kgcoop", "dataset=emoji", f"descriptions={file}"]) == 2
    assert "has no use for descriptions=" in capsys.readouterr().err


def test_what_is_wrong_with_a_file_is_said_when_the_learner_is_made(file: Path) -> None:
    for settings in (
        {"descriptions": "nowhere.json"},
        {"objective": ["ce", "description_anchor(descriptions='nowhere.json')"]},
    ):
        with pytest.raises(VlpromptError, match=r"no descriptions at nowhere\.json"):
            make("coprompt", names=NUMBERED, **settings)
    with pytest.raises(VlpromptError, match="has no sentences for 2 of 2 classes, first 'cat'"):
        create_learner("zero_shot", small_clip(), ["cat", "dog"], descriptions=str(file))


@pytest.mark.parametrize("path", ["/data/cupl.json", "cupl.json", "~/my/cupl", r"C:\cupl.json", "/my data/c.json"])
def test_unquoted_path_in_an_objective_asks_for_quotes(path: str) -> None:
    with pytest.raises(VlpromptError) as error:
        parse_part(f"description_anchor(weight=8, descriptions={path})", OBJECTIVES)
    assert str(error.value).endswith(f"put quotes around the path, descriptions='{path}'")


def test_entry_that_a_comma_has_cut_asks_for_quotes() -> None:
    with pytest.raises(VlpromptError, match="put quotes around an entry of a list that holds commas"):
        parse_part("description_anchor(weight=8", OBJECTIVES)
    with pytest.raises(VlpromptError, match=r"write it as name or name\(key=value"):
        parse_part("text_anchor(8)", OBJECTIVES)


def test_the_users_own_run_reads_its_descriptions_again_and_no_other_learner_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    Path("d.json").write_text(json.dumps({name: [f"the number {name}."] for name in names}))
    small = ["dataset=digits", "protocol=few_shot", "limit=10", "device=cpu", "output=.", "name=it"]
    assert main(["train", "method=zero_shot", "descriptions=d.json", "shots=1", *small, "--quiet"]) == 0
    assert main(["evaluate", "run=it", "--quiet"]) == 0
    load_split("digits").open_image(load_split("digits").test[0]).save("image.png")
    assert main(["predict", "run=it", "image.png"]) == 0
    assert main(["predict", "learner=it/learner", "image.png"]) == 2
    settings = Path("it/config.yaml")
    settings.write_text(settings.read_text().replace("descriptions: d.json", "descriptions: null"))
    assert main(["predict", "run=it", "image.png"]) == 2
    assert "a loaded learner's settings may not name files, and they name 'd.json'" in capsys.readouterr().err

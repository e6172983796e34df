"""Meta-training: a regulator, tasks of clustered pairs, first-order gradients, the same bits after any interruption."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from vlprompt import VlpromptError, create_learner, load_learner, run
from vlprompt.cli.__main__ import main
from vlprompt.data.captions import read_captions
from vlprompt.learner.regulation import Regulator
from vlprompt.runs.meta_train import REGULATOR, MetaConfig, meta_train, reconstructs
from vlprompt.testing import NAMES, close, loss_of, make, small_clip
from vlprompt.training.meta import MetaLearner, Tasks, clustered

KINDS = ("a red door", "a green door", "a blue door", "a grey cat", "a white cat", "a black cat")
SMALL = {"epochs": 3, "tasks": 2, "task_size": 4, "topics": 2, "styles": 2, "quiet": True, "checkpoint_seconds": 0}


def unlike(regulator: Regulator) -> Regulator:
    """One that has learnt something."""
    with torch.no_grad():
        for i, parameter in enumerate(regulator.parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return regulator


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Images of flat colours with captions beside them, and one without."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for i in range(18):
        Image.new("RGB", (16, 16), (14 * i, 255 - 14 * i, 40 * (i % 6))).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"{KINDS[i % 6]}\nmore that is not read\n")
    Image.new("RGB", (16, 16)).save(folder / "none.png")
    return folder


def test_a_new_regulator_changes_nothing_and_a_learnt_one_keeps_lengths(tmp_path: Path) -> None:
    regulator = Regulator([6, 4, 6])
    gradient = torch.randn(5, 6)
    assert close(regulator(gradient), gradient)
    assert torch.equal(regulator(torch.tensor(2.0)), torch.tensor(2.0))
    learnt = unlike(regulator)
    turned = learnt.maps["6"]
    with torch.no_grad():
        turned.gate[2].weight.zero_()
        turned.gate[2].bias.fill_(-30)  # k = 0: ψ alone
    assert close(learnt(gradient).norm(dim=-1), gradient.norm(dim=-1))
    assert not close(learnt(gradient), gradient, 0.1)
    with torch.no_grad():
        turned.gate[2].bias.fill_(30)  # k = 1: the gradient alone
    assert close(learnt(gradient), gradient)
    learnt.save(tmp_path / "r.safetensors")
    again = Regulator.load(tmp_path / "r.safetensors")
    assert torch.equal(again(gradient[0]), learnt(gradient[0]))
    with pytest.raises(VlpromptError, match="takes gradients of width 4, 6, and one has 3"):
        again(torch.ones(2, 3))


def test_the_rule_hands_over_regulated_gradients(tmp_path: Path) -> None:
    file = tmp_path / "r.safetensors"
    plain, rule = make("coop"), f"regulated(file='{file}')"
    regulator = unlike(Regulator([plain.prompt.ctx.shape[-1]]))
    with pytest.raises(VlpromptError, match=r"the regulator .* is missing: make it again with vlprompt meta-train"):
        make("coop", gradient_rule=rule)
    regulator.save(file)
    ruled = make("coop", gradient_rule=rule)
    assert ruled.facts.fidelity == "reconstruction"
    ruled.backward(loss_of(ruled))
    plain.backward(loss_of(plain))
    assert close(ruled.prompt.ctx.grad, regulator(plain.prompt.ctx.grad).detach())
    with pytest.raises(VlpromptError, match="takes gradients of width 64, and one has 128"):
        make("maple", gradient_rule=rule)
    ruled.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "learner.safetensors").replace(file)  # of another kind
    with pytest.raises(VlpromptError, match="is not a regulator"):
        make("coop", gradient_rule=rule)


def test_tasks_are_two_clusters_of_one_topic_and_follow_from_the_seed() -> None:
    topics = torch.arange(40) % 2
    text = F.normalize(torch.eye(8)[topics] + 0.01 * torch.randn(40, 8), dim=-1)
    images = F.normalize(torch.eye(8)[4 + torch.arange(40) // 2 % 2] + 0.01 * torch.randn(40, 8), dim=-1)
    found = clustered(text, images, 2, 2, 1)
    assert torch.equal(found, clustered(text, images, 2, 2, 1))
    same = found[:, None] == found[None]
    assert torch.equal(same[..., 0], topics[:, None] == topics[None])
    tasks = Tasks(found, torch.arange(40) % 5, 6, 7, seed=1)
    drawn = list(tasks(3))
    assert len(drawn) == 7
    for task, again in zip(drawn, tasks(3), strict=True):
        assert torch.equal(task["support"], again["support"])
        (topic,), (other,) = found[task["support"]][:, 0].unique(), found[task["query"]][:, 0].unique()
        assert topic == other
        assert set(found[task["support"]][:, 1].tolist()).isdisjoint(found[task["query"]][:, 1].tolist())
    assert any(not torch.equal(a["query"], b["query"]) for a, b in zip(drawn, tasks(4), strict=True))
    with pytest.raises(VlpromptError, match="make no task with two captions"):
        list(Tasks(found, torch.zeros(40, dtype=torch.long), 6, 1, seed=1)(0))


def test_gradients_are_those_of_the_query_behind_one_regulated_step() -> None:
    learner = make("coop", n_ctx=3)
    regulator = unlike(Regulator([learner.prompt.ctx.shape[-1]], rank=2))
    features = torch.randn(12, learner.clip.embed_dim)
    alpha = 0.5
    meta = MetaLearner(learner, regulator, features, torch.arange(12) % 5, NAMES, alpha)
    task = {"support": torch.tensor([0, 1, 2, 6]), "query": torch.tensor([3, 4, 8, 9, 5])}
    theta = learner.prompt.ctx.detach().clone()
    losses = meta.loss(task)
    meta.backward(losses)
    assert torch.equal(learner.prompt.ctx, theta), "the inner step is taken back"
    assert losses["loss"] != losses["support"]

    def query(step: torch.Tensor) -> torch.Tensor:
        learner.prompt.ctx.data = (theta - alpha * step).detach()
        loss = meta._loss(task["query"])
        return loss

    (inner,) = torch.autograd.grad(meta._loss(task["support"]), learner.prompt.ctx)
    moved = query(regulator(inner))
    assert close(losses["loss"], moved)
    (outer,) = torch.autograd.grad(moved, learner.prompt.ctx)
    assert close(learner.prompt.ctx.grad, outer)
    weight = regulator.maps[str(theta.shape[-1])].up.weight
    step = torch.randn_like(weight)
    with torch.no_grad():
        weight += 1e-2 * step
        ahead = query(regulator(inner))
        weight -= 2e-2 * step
        behind = query(regulator(inner))
    assert close((ahead - behind) / 2e-2, (weight.grad * step).sum(), 0.02)


@pytest.mark.parametrize("method", ["coop", "ivlp"])
def test_killed_at_any_write_it_resumes_to_the_same_bits(
    method: str, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    depths = {"depth": 2, "vision_depth": 2} if method == "ivlp" else {}
    settings = SMALL | {"method": method, "pairs": f"captions:{pairs}", "settings": {"n_ctx": 2, **depths}}
    replace, writes = os.replace, []

    def after(limit: int | None):
        writes.clear()

        def counted(*places: object, **options: object) -> None:
            if limit is not None and len(writes) == limit:
                raise Killed
            writes.append(places)
            replace(*places, **options)

        monkeypatch.setattr(os, "replace", counted)

    def learnt(folder: Path) -> list[list[float]]:
        files = [load_file(folder / name) for name in ("learner/learner.safetensors", REGULATOR)]
        return [tensors[name].flatten().tolist() for tensors in files for name in sorted(tensors)]

    after(None)
    whole = meta_train(small_clip(), MetaConfig(output=str(tmp_path / "whole"), **settings))
    after(None)  # the features are in the cache now
    assert learnt(meta_train(small_clip(), MetaConfig(output=str(tmp_path / "again"), **settings))) == learnt(whole)
    points = len(writes)
    assert points > 6
    for point in range(points) if method == "coop" else (2, points - 2):
        folder = tmp_path / f"killed{point}"
        after(point)
        with pytest.raises(Killed):
            meta_train(small_clip(), MetaConfig(output=str(folder), **settings))
        after(None)
        meta_train(small_clip(), MetaConfig(output=str(folder), resume=True, **settings))
        assert learnt(folder) == learnt(whole), f"killed at write {point}"
    other = settings | {"seed": 2}
    assert learnt(meta_train(small_clip(), MetaConfig(output=str(tmp_path / "other"), **other))) != learnt(whole)


def test_captions_are_read_from_a_folder_and_from_a_table(pairs: Path, tmp_path: Path) -> None:
    found = read_captions(str(pairs))
    assert found.class_names == KINDS
    assert len(found.train) == 18
    (tmp_path / "none").mkdir()
    with pytest.raises(VlpromptError, match=r"no image in .* has a caption"):
        read_captions(str(tmp_path / "none"))


def test_a_run_from_a_meta_learnt_start_is_marked(pairs: Path, tmp_path: Path) -> None:
    (pairs / "t.csv").write_text("path,caption\n" + "".join(f"{i:02d}.png,{KINDS[i % 6]}\n" for i in range(18)))
    small = ["epochs=1", "tasks=1", "task_size=4", "topics=2", "styles=2", "n_ctx=2", "--quiet"]
    assert main(["meta-train", f"pairs=csv:{pairs / 't.csv'}", f"output={tmp_path / 'meta'}", *small]) == 0
    rule = f"regulated(file='{tmp_path / 'meta' / REGULATOR}')"
    how = {"shots": 1, "epochs": 1, "views": 1, "limit": 12, "protocol": "few_shot", "quiet": True, "n_ctx": 2}
    result = run(
        method="coop",
        dataset="digits",
        output=str(tmp_path),
        init_from=str(tmp_path / "meta"),
        gradient_rule=rule,
        ctx_init=None,
        **how,
    )
    assert result.start["reconstructs"] == "GRAM"
    assert result.marked_method == "coop (reconstruction, start of GRAM)"
    assert replace(result, fidelity="code").marked_method == "coop (start of GRAM, reconstruction)"
    assert reconstructs("glyphs/chess") == "meta_init", "labels in the place of captions"


def test_what_has_no_start_to_learn_is_refused_in_one_sentence(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, sentence in (
        (["method=zero_shot"], "zero_shot with these settings has no start"),
        (["method=coop", "class_specific=true"], "has no start that other tasks could use"),
        (["lr=0"], "lr must be a number above 0, not 0"),
        (["aggregator=ema"], "aggregator is a setting of runs and has no effect on a start"),
        (["task_size=1"], "task_size=1 leaves no second pair"),
        (["head=dept"], "head=dept belongs to the classes of a run"),
        (["method=ivlp", 'objective=[ce, "image_anchor(view=image_strong)"]'], "a second view of each image"),
        (["tusks=3"], "unknown key 'tusks': did you mean tasks?"),
    ):
        assert main(["meta-train", f"output={tmp_path / 'no'}", f"pairs=captions:{pairs}", *arguments]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    with pytest.raises(VlpromptError, match="there is no folder nowhere of images with captions"):
        read_captions("nowhere")


def test_what_lies_in_the_folder_is_not_lost(pairs: Path, tmp_path: Path) -> None:
    settings = SMALL | {"pairs": f"captions:{pairs}", "settings": {"n_ctx": 2}, "output": str(tmp_path / "meta")}
    folder = meta_train(small_clip(), MetaConfig(**settings))
    written = (folder / REGULATOR).stat().st_mtime_ns
    assert meta_train(small_clip(), MetaConfig(resume=True, **settings)) == folder
    assert (folder / REGULATOR).stat().st_mtime_ns == written, "there was nothing to go on with"
    other = settings | {"seed": 2}
    for going in ({}, {"resume": True}):
        with pytest.raises(VlpromptError, match=r"learnt with other settings \(seed=1 there, 2 here\): choose another"):
            meta_train(small_clip(), MetaConfig(**going, **other))
    (folder / "config.yaml").write_text("method: coop")
    with pytest.raises(VlpromptError, match="holds a run, whose learner would be replaced"):
        meta_train(small_clip(), MetaConfig(restart=True, **other))


def test_a_start_is_held_to_its_words_and_hears_other_names(pairs: Path, tmp_path: Path) -> None:
    settings = {"ctx_init": "a photo of a", "after_step": "project(eps=0.001)", "names": {"a red door": ["a gate"]}}
    how = SMALL | {"pairs": f"captions:{pairs}", "lr": 0.1, "output": str(tmp_path / "meta"), "settings": settings}
    clip = small_clip()
    start = load_learner(meta_train(clip, MetaConfig(**how)) / "learner", clip=clip)
    away = (start.prompt.ctx.detach() - clip.word_embeddings("a photo of a")).norm(dim=-1)
    assert 0 < away.max() <= 0.001 * (1 + 1e-4)
    learner = create_learner("coop", clip, NAMES, n_ctx=2, names={"tench": ["tinca"]})
    meta = MetaLearner(learner, Regulator([64]), torch.randn(4, 64), torch.tensor([0, 1, 0, 1]), NAMES, 0.1)
    meta.loss({"support": torch.tensor([0, 1]), "query": torch.tensor([2, 3])})
    assert learner.class_names.every == ("tench", "tinca", "highway or road")

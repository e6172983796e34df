"""Learners that start from others: lengths, what results tell of it, PVP, PANDA, and which start would suit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vlprompt import VlpromptError, analysis, load_learner, run
from vlprompt.evaluation.results import read_result
from vlprompt.learner.initialization import with_length
from vlprompt.report import make_report
from vlprompt.testing import NAMES, NEW_NAMES, close, loss_of, make, small_clip, toy_batch

QUICK = {"shots": 1, "epochs": 1, "views": 1, "limit": 12, "protocol": "few_shot", "quiet": True}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a source task and of one that started from it."""
    top = tmp_path_factory.mktemp("runs")
    run(method="coop", dataset="digits", n_ctx=4, name="source", output=str(top), **QUICK)
    return top


def test_a_longer_prompt_is_cropped_and_a_shorter_one_repeated(tmp_path: Path) -> None:
    start = make("maple", n_ctx=3, ctx_init=None)
    start.save_pretrained(tmp_path)
    with pytest.raises(VlpromptError, match=r"prompt.ctx has 3 tokens, and 2 are expected; say init_length=fit"):
        make("maple", n_ctx=2, ctx_init=None, init_from=str(tmp_path))
    for n in (2, 5):
        learner = make("maple", n_ctx=n, ctx_init=None, init_from=str(tmp_path), init_length="fit")
        for ours, theirs in zip(learner.prompt.parameters(), start.prompt.parameters(), strict=True):
            assert torch.equal(ours, theirs[[i % 3 for i in range(n)]])
        assert torch.equal(learner.coupling.maps[1].weight, start.coupling.maps[1].weight)
        assert set(map(tuple, learner.start["fitted"].values())) == {(3, n)}
    same = make("maple", n_ctx=3, ctx_init=None, init_from=str(tmp_path), init_length="fit")
    assert same.start["fitted"] == {}
    assert with_length(torch.ones(4, 3, 2), 7).shape == (4, 7, 2)


def test_fitting_lengths_fits_nothing_else(tmp_path: Path) -> None:
    make("coop", class_specific=True, n_ctx=3).save_pretrained(tmp_path)
    settings = {"class_specific": True, "n_ctx": 2, "init_from": str(tmp_path), "init_length": "fit"}
    with pytest.raises(VlpromptError, match=r"prompt.ctx is \(5, 2, 64\), \(3, 2, 64\) is expected"):
        make("coop", names=NEW_NAMES, **settings)
    with pytest.raises(VlpromptError, match="init_length=fit is of a start, and there is none"):
        make("coop", init_length="fit")
    with pytest.raises(VlpromptError, match="hf://me/it is an address on the Hub, and a folder of yours is needed"):
        make("coop", init_from="hf://me/it")
    with pytest.raises(VlpromptError, match="init_length must be"):
        make("coop", init_from=str(tmp_path), init_length="crop")


def test_a_start_may_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = make("coop", n_ctx=2, seed=4)
    start.save_pretrained(tmp_path / "start")
    monkeypatch.setenv("HOME", str(tmp_path))
    learner = make("coop", n_ctx=2, init_from="~/start")
    assert torch.equal(learner.prompt.ctx, start.prompt.ctx)
    assert learner.start["method"] == "coop"


def test_a_start_brings_nothing_of_its_own_training_and_classes(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        make("coop", n_ctx=2, seed=seed).save_pretrained(tmp_path / name)
    taught = make("promptkd", teacher=str(tmp_path / "one"))
    taught.save_pretrained(tmp_path / "start")
    names = (*NEW_NAMES, "barge")
    anew = make("promptkd", names=names, teacher=str(tmp_path / "two"))
    learner = make("promptkd", names=names, teacher=str(tmp_path / "two"), init_from=str(tmp_path / "start"))
    assert torch.equal(learner.teacher_text, anew.teacher_text)
    assert torch.equal(learner.prompt.tokens[0], taught.prompt.tokens[0])
    restored = make("restore")
    loss_of(restored)
    restored.save_pretrained(tmp_path / "restore")
    assert restored.first_text_norms.all()
    assert not make("restore", init_from=str(tmp_path / "restore")).first_text_norms.any()


def test_a_result_tells_its_start_and_is_marked_if_that_saw_what_is_tested(source: Path, tmp_path: Path) -> None:
    how = QUICK | {"output": str(source)}
    first = run(method="coop", dataset="emoji", n_ctx=2, init_length="fit", init_from=str(source / "source"), **how)
    assert first.start["datasets"] == ["digits"]
    assert first.start["fitted"] == {"prompt.ctx": [4, 2]}
    assert (first.start["method"], first.start["shots"], first.marked_method) == ("coop", 1, "coop")
    place = next(path.parent for path in source.glob("emoji/**/result.json"))
    assert read_result(place / "result.json").start == first.start
    learner = load_learner(place / "learner")
    assert learner.start == first.start

    # the second start has seen what the first one had
    second = run(method="coop", dataset="digits", n_ctx=2, init_from=str(place), name="back", **how)
    assert second.start["datasets"] == ["emoji", "digits"]
    assert second.marked_method == "coop (start saw digits)"
    assert "start saw digits" in make_report([source / "back"]).text("markdown")
    third = run(method="coop", dataset="digits", n_ctx=2, init_from=str(place / "learner/learner.safetensors"), **how)
    assert third.marked_method == "coop (start of unknown data)"


def test_pvp_goes_on_from_vpts_tokens(tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match="method=pvp starts from visual prompts of a source task"):
        run(method="pvp", dataset="digits", quiet=True)
    vpt = make("vpt")
    vpt.save_pretrained(tmp_path)
    learner = make("pvp", init_from=str(tmp_path))
    assert torch.equal(learner.encode_images(toy_batch()), vpt.encode_images(toy_batch()))


def test_panda_is_taught_by_the_logits_of_a_tuned_prompt(source: Path, tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match="method=panda is taught by a prompt of a source task"):
        run(method="panda", dataset="digits", quiet=True)
    tuned = make("coop", n_ctx=3, seed=5)
    tuned.save_pretrained(tmp_path)
    student = make("panda", n_ctx=4, teacher=str(tmp_path), clip=tuned.clip)
    batch = toy_batch()
    losses = student.loss(batch)
    with torch.no_grad():
        expected = F.mse_loss(student(batch["image"]), tuned.eval()(batch["image"]))
    assert expected > 0
    assert close(losses["logit_mse"], expected)
    assert close(losses["loss"], losses["ce"] + 0.01 * losses["logit_mse"])


def test_transferability_is_the_cosine_of_shifts() -> None:
    clip = small_clip()
    learners = {name: make("coop", clip, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))}
    with torch.no_grad():
        learners["b"].prompt.ctx += 1e-4
    found = analysis.transferability(learners, NEW_NAMES)
    frozen = F.normalize(clip.encode_text([f"a photo of a {name}." for name in NEW_NAMES]), dim=-1)
    shifts = []
    for learner in learners.values():
        assert learner.class_names == NAMES
        learner.set_class_names(NEW_NAMES)
        shifts.append(learner.text_features() - frozen)
    expected = F.cosine_similarity(shifts[0], shifts[2], dim=-1).mean()
    assert close(found.scores[0, 2], expected.detach(), 1e-4)
    assert close(found.scores, found.scores.T)
    assert found.scores.diagonal().allclose(torch.ones(3))
    assert found.best_source("a") == "b"
    assert analysis.transferability({"a": make("coop", clip), "m": make("maple", clip)}).class_names == NAMES
    figure = analysis.plot_transferability(found)
    assert {text.get_text() for text in figure.axes[0].texts} >= {"1.00", f"{float(found.scores[0, 2]):.2f}"}


def test_transferability_refuses_what_does_not_compare() -> None:
    with pytest.raises(VlpromptError, match="learners must be learners by name"):
        analysis.transferability({"a": "runs/a", "b": "runs/b"})
    with pytest.raises(VlpromptError, match="two learners or more"):
        analysis.transferability({"a": make("coop")})
    with pytest.raises(VlpromptError, match="different backbones"):
        analysis.transferability({"a": make("coop"), "b": make("coop", small_clip(quick_gelu=False))})
    with pytest.raises(VlpromptError, match=r"v \(vpt\) has no learnt class features"):
        analysis.transferability({"a": make("coop"), "v": make("vpt")})
    two = {"a": make("coop"), "b": make("coop", names=("barge", "annual crop_land"))}
    with pytest.raises(VlpromptError, match=r"must hold {} once"):
        analysis.transferability(two, template="a photo")
    assert analysis.transferability(two).class_names == (*NAMES, "barge"), "a name that reads alike counts once"

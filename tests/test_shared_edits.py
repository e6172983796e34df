"""Edits that any design carries: they start as nothing, go together or are refused, and are merged into weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from vlprompt import VlpromptError, create_learner, list_methods, load_clip, load_learner
from vlprompt.clip.edits import FullLength
from vlprompt.clip.merging import merged
from vlprompt.learner.recording import extra_edits
from vlprompt.saving.export import export_learner
from vlprompt.saving.merging import merged_into
from vlprompt.testing import close, fit, logits_of, loss_of, make, small_clip, toy_batch
from vlprompt.training.recipes import load_recipe, resolve_learning

NEUTRAL = ["lora(maps=qkvo)", "layer_norms(tower=both)"]  # at the start
CARRIERS = ["coop", "cocoop", "promptsrc", "maple", "proda", "pre", "mvlpt"]


def gradients(learner, *ways) -> dict[str, torch.Tensor]:
    with extra_edits(learner, *ways):
        learner.backward(loss_of(learner))
    return {name: p.grad for name, p in learner.named_parameters()}


@pytest.mark.parametrize("method", CARRIERS)
def test_edits_that_start_as_nothing_change_neither_logits_nor_gradients(method: str) -> None:
    """B = 0: on the fast path and at full length."""
    plain, edited = make(method), make(method, edits=NEUTRAL)
    assert not edited.facts.cacheable_images
    assert edited.facts.trains == {"text", "vision"}
    for ways in ((), (FullLength(),)):
        with extra_edits(edited, *ways):
            assert close(logits_of(edited), logits_of(plain))
        expected, got = gradients(plain.train(), *ways), gradients(edited.train(), *ways)
        for name, gradient in expected.items():
            assert close(got[name], gradient, 1e-4), name
        assert all(bool(got[name].any()) for name in got if name.startswith("beside.") and ".b." in name)
        plain.zero_grad(), edited.zero_grad()


@pytest.mark.parametrize("method", ["coop", "promptsrc", "mvlpt"])
def test_approximated_prompts_of_zero_change_neither_logits_nor_gradients(method: str) -> None:
    """P = 0, on the fast path and at full length."""
    plain, edited = make(method), make(method, edits=["approx(n=7)"])
    assert not close(logits_of(edited), logits_of(plain))
    for edit in edited.edits:
        edit.prompt.data.zero_()
    for ways in ((), (FullLength(),)):
        with extra_edits(edited, *ways):
            assert close(logits_of(edited), logits_of(plain))
        expected, got = gradients(plain.train(), *ways), gradients(edited.train(), *ways)
        for name, gradient in expected.items():
            assert close(got[name], gradient, 1e-4), name
        plain.zero_grad(), edited.zero_grad()


@pytest.mark.parametrize("method", ["coop", "maple"])
def test_trained_edits_are_exact_where_prefixes_are_shared(method: str) -> None:
    """All kinds at once: approximated prompts read the learnt norms too."""
    kinds = ["approx(n=5, rank=2)", "layer_norms(tower=both, lr_scale=1.0)", "lora(maps=qvo)", "surgery"]
    learner = make(method, edits=kinds)
    fit(learner, 3, lr=0.03)
    assert logits_of(learner).isfinite().all()
    results = []
    for ways in ((), (FullLength(),)):
        learner.train().zero_grad()
        found = gradients(learner, *ways)
        with extra_edits(learner, *ways):
            learner.clear_cache()
            results.append((logits_of(learner), {name: g.clone() for name, g in found.items()}))
    (fast, ours), (plain, theirs) = results
    assert close(fast, plain)
    assert all(close(ours[name], theirs[name], 1e-3) for name in ours)
    approx = next(edit for edit in learner.edits if type(edit).__name__ == "Approximated")
    approx.among = ()
    learner.clear_cache()
    assert not close(logits_of(learner), fast, 1e-4)


def test_clip_lora_starts_as_zero_shot_clip() -> None:
    assert close(logits_of(make("clip_lora", maps="qkvo")), logits_of(make("zero_shot")))
    template = "itap of a {}, one of many"
    learner = make("clip_lora", tower="vision", template=template)
    assert close(logits_of(learner), logits_of(make("zero_shot", template=[template])))
    assert learner.facts.trains == {"vision"}
    assert make("clip_lora", tower="text").facts.cacheable_images


@pytest.mark.parametrize("settings", [{"maps": "qkvo"}, {"tower": "text"}, {"edits": ["layer_norms(tower=both)"]}])
def test_merged_updates_are_the_learner_to_rounding_error(settings: dict) -> None:
    learner = make("clip_lora", **settings)
    before = learner.clip.weights_hash()
    fit(learner, 3, lr=0.05)
    expected, plain = logits_of(learner), logits_of(make("zero_shot"))
    clip, rest = merged(learner.clip, learner.edits)
    assert rest == []
    assert close(logits_of(make("zero_shot", clip)), expected, 1e-5)
    assert not close(plain, expected, 1e-2)
    assert learner.clip.weights_hash() == before
    assert merged(small_clip("bf16"), learner.edits)[1] == learner.edits


def test_merging_leaves_the_model_that_goes_by_its_name() -> None:
    """Other processes' learners, and copies, are answered by one model a name: it is never merged into."""
    clip = load_clip("vlprompt-tiny", device="cpu")
    of_its_name = copy.copy(clip)
    learner = create_learner("clip_lora", clip, ["cat", "dog"], maps="qkvo")
    for p in learner.parameters():
        p.data += 0.02
    other, rest = merged(clip, learner.edits)
    assert rest == []
    assert copy.copy(clip).weights_hash() == of_its_name.weights_hash() == clip.weights_hash()
    assert other.model is not clip.model
    assert other.model is not of_its_name.model
    kept = clip.model.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in copy.copy(clip).model.state_dict().items())


def test_an_exported_model_has_the_updates_in_its_weights(tmp_path: Path) -> None:
    clip = load_clip("vlprompt-tiny", device="cpu")
    learner = create_learner("clip_lora", clip, ["cat", "dog"], maps="qkvo", edits=["layer_norms(tower=text)"])
    for p in learner.parameters():
        p.data += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    export_learner(learner, "openclip", tmp_path / "model")
    other = load_clip(f"local-dir:{tmp_path / 'model'}", device="cpu")
    images = torch.randn(2, 3, clip.image_size, clip.image_size)
    assert torch.allclose(create_learner("zero_shot", other, ["cat", "dog"]).eval()(images), learner(images), atol=1e-3)
    with merged_into(learner):
        assert learner.edits == []
    learner = create_learner("vpt", clip, ["cat", "dog"], depth=1, edits=["lora(tower=vision)"])
    with pytest.raises(VlpromptError, match="prompts the image tower"):
        export_learner(learner, "openclip", tmp_path / "vpt")


@pytest.mark.parametrize(
    ("method", "edits", "said"),
    [
        ("vpt", ["lora"], "edits=lora is not possible: vpt with these settings has the frozen model's class features"),
        ("gda", ["lora(tower=vision)"], "is not trained by the loop on labelled images"),
        ("zero_shot", ["adapter"], "is not trained by the loop"),
        ("clip_lora", ["lora(maps=v)"], r"changes what LoRA changes too, in the text tower \('project v'\)"),
        ("coop", ["lora(maps=q)", "lora(maps=vq, rank=3)"], r"edits=lora\(maps=vq, rank=3\) changes what LoRA"),
        ("restore", ["adapter(tower=text)"], "changes what Surgery changes too"),
        ("coop", ["lora(maps=qx)"], "the maps of lora must be some of q, k, v and o"),
        ("coop", ["lora(rank=0)"], "a rank of at least 1"),
        ("coop", ["lora(tower=audio)"], "edit 'lora.tower=audio.': tower must be"),
        ("coop", ["approx(depth=9)"], r"approx\(depth=9\) is for 1 to 3 blocks of the text tower"),
        ("coop", ["lore"], "unknown edit 'lore'"),
        ("coop", ["lora(ranks=3)"], "unknown key 'ranks': did you mean rank"),
        ("coop", ["lora(dropout=x)"], "dropout must be a number, not 'x'"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(method: str, edits: list, said: str) -> None:
    with pytest.raises(VlpromptError, match=said) as error:
        make(method, edits=edits)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", list_methods())
def test_an_edit_goes_with_every_design_or_is_refused(method: str) -> None:
    said = ""
    try:
        learner = make(method, edits=["adapter(tower=vision)"])
    except VlpromptError as error:
        said = str(error)
    if said:
        assert said.startswith(
            ("edits=adapter(tower=vision) is not possible", "edits=adapter(tower=vision) changes what")
        )
        return
    learner.backward(loss_of(learner))
    assert all(p.grad is not None for p in learner.parameters())


def test_edits_are_saved_and_keep_maps_apart(tmp_path: Path) -> None:
    learner = make("coop", edits=["lora(maps=q, tower=text)", "lora(maps=v, rank=3)", "surgery", "layer_norms"])
    fit(learner, 2)
    learner.save_pretrained(tmp_path)
    assert torch.equal(logits_of(load_learner(tmp_path, clip=learner.clip)), logits_of(learner))
    assert [group.lr_scale for group in learner.parameter_groups()] == [1.0, 0.1]


def test_dropout_is_of_training_alone() -> None:
    learner = make("clip_lora", dropout=0.5)
    fit(learner, 2, lr=0.05)
    assert torch.equal(logits_of(learner), logits_of(learner))
    learner.train()
    assert not torch.equal(*(learner(toy_batch()["image"]) for _ in range(2)))


@pytest.mark.parametrize(("shots", "steps"), [(1, 500), (4, 2000), (16, 8000)])
def test_a_recipe_takes_five_hundred_steps_a_shot(shots: int, steps: int) -> None:
    assert resolve_learning("clip_lora", {"shots": shots}).config.steps == steps
    assert load_recipe("clip_lora", "base_to_new").source.startswith("released code")

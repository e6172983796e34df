"""What is trained of a context: parameterisations that start as the vectors, and the ball around their words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlprompt import VlpromptError, list_methods, load_learner, run
from vlprompt.clip.edits import FullLength
from vlprompt.learner.contexts import Factored, LowRankUpdate
from vlprompt.learner.prompts import TextPrompt
from vlprompt.learner.recording import extra_edits
from vlprompt.testing import NEW_NAMES, close, fit, logits_of, loss_of, make, toy_batch
from vlprompt.training import TrainOptions, train

DESIGNS = [
    ("coop", {"n_ctx": 4}),
    ("coop", {"n_ctx": 5, "class_token_position": "middle"}),
    ("coop", {"class_specific": True, "ctx_init": "a photo of a"}),
    ("cocoop", {}),
    ("maple", {"n_ctx": 2}),
    ("promptsrc", {}),
    ("proda", {"n_prompts": 4, "n_ctx": 4}),
]
ids = lambda value: value if isinstance(value, str) else "-".join(map(str, value.values()))  # noqa: E731


def gradient_of(learner, name: str, *ways) -> torch.Tensor:
    learner.train().zero_grad()
    with extra_edits(learner, *ways):
        learner.backward(loss_of(learner))
    return learner.get_parameter(name).grad


@pytest.mark.parametrize(("method", "settings"), DESIGNS, ids=ids)
def test_a_low_rank_update_starts_as_nothing(method: str, settings: dict) -> None:
    """B = 0: logits and gradients are those of the vectors alone, on the fast path and at full length."""
    full, low = make(method, **settings), make(method, context="lowrank(rank=3, lr_scale=0.5)", **settings)
    name = next(name for name, _ in full.named_parameters() if name.endswith("ctx"))
    for ways in ((), (FullLength(),)):
        with extra_edits(low, *ways):
            assert close(logits_of(low), logits_of(full))
        assert close(gradient_of(low, name, *ways), gradient_of(full, name, *ways), 1e-4)
    updates = [part for part in low.modules() if isinstance(part, LowRankUpdate)]
    assert all(bool(update.b.grad.any()) for update in updates)
    assert {group.lr_scale for group in low.parameter_groups()} == {1.0, 0.5}
    fit(low, 2, lr=0.05)
    with extra_edits(low, FullLength()):
        expected = logits_of(low)
    low.clear_cache()
    assert close(logits_of(low), expected, 2e-5)  # where prefixes are shared, too


@pytest.mark.parametrize("context", ["multispace(spaces=3, rank=2)", "factored(rank=4)", "reparam(encoder=mlp)"])
@pytest.mark.parametrize(("method", "settings"), DESIGNS, ids=ids)
def test_every_parameterisation_learns_on_every_design(method: str, settings: dict, context: str) -> None:
    learner, full = make(method, context=context, **settings), make(method, **settings)
    with torch.no_grad():
        every = [[each for each in part.modules() if isinstance(each, TextPrompt)] for part in (learner, full)]
        for ours, theirs in zip(*every, strict=True):
            assert ours.ctx.shape == theirs.ctx.shape
            assert [deep.shape for deep in ours.deep] == [deep.shape for deep in theirs.deep]
            if context.startswith("multispace"):
                assert torch.equal(ours.ctx, theirs.ctx)
    history = fit(learner, 6)
    assert history[-1] < history[0]
    assert all(p.grad is not None for p in learner.parameters())


def test_a_factored_context_starts_nearest_and_counts_fewer_numbers() -> None:
    full, low = make("ivlp", n_ctx=4, depth=3), make("ivlp", n_ctx=4, depth=3, context="factored(rank=3)")
    before = torch.cat([full.prompt.ctx, *full.prompt.deep]).detach()
    u, s, vh = torch.linalg.svd(before, full_matrices=False)
    found = torch.cat([low.prompt.ctx, *low.prompt.deep]).detach()
    assert close(found, (u[:, :3] * s[:3]) @ vh[:3])
    count = lambda prompt: sum(p.numel() for p in prompt.parameters())  # noqa: E731
    assert (count(full.prompt), count(low.prompt)) == (12 * 64, 3 * (12 + 64))
    exact = Factored([full.prompt.ctx, *full.prompt.deep], rank=12)
    assert close(torch.cat(exact()), before)


def test_a_learner_with_a_reconstructed_context_is_one() -> None:
    assert make("coop", context="multispace").facts.fidelity == "reconstruction"
    assert make("coop", context="lowrank").facts.fidelity == make("coop").facts.fidelity


def test_pre_is_coop_behind_its_encoder() -> None:
    pre, coop = make("pre"), make("coop", ctx_init="a photo of a", context="reparam")
    coop.prompt.tokens.raw[0].data.copy_(pre.prompt.ctx)
    coop.prompt.tokens.encoder.load_state_dict(pre.encoder.state_dict())
    assert torch.equal(logits_of(coop), logits_of(pre))


@pytest.mark.parametrize("context", ["lowrank", "factored", "multispace", "reparam(shared=False)"])
def test_a_parameterised_context_is_kept_and_scores_new_classes(context: str, tmp_path: Path) -> None:
    learner = make("coop", n_ctx=4, context=context)
    fit(learner, 2, lr=0.05)
    learner.save_pretrained(tmp_path)
    other = load_learner(tmp_path, clip=learner.clip)
    assert torch.equal(logits_of(other), logits_of(learner))
    learner.set_class_names(NEW_NAMES)
    other.set_class_names(NEW_NAMES)
    assert torch.equal(logits_of(other), logits_of(learner))


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("vpt", {"context": "lowrank"}, "context=lowrank is not possible: vpt with these settings learns no words"),
        ("zero_shot", {"context": "factored"}, "learns no words of a text prompt"),
        ("upl", {"context": "factored"}, "says itself what of its context is trained"),
        ("coop", {"context": "factored(rank=17)"}, "has 16 tokens in all: take a rank from 1 to 16"),
        ("coop", {"context": "lowrank(rank=0)"}, "lowrank needs a rank from 1 to"),
        ("coop", {"context": "multispace(spaces=0)"}, "needs 1 space or more"),
        ("coop", {"context": "reparam(encoder=gru)"}, "encoder"),
        ("coop", {"context": "low_rank"}, "unknown context 'low_rank'"),
        (
            "coop",
            {"after_step": "project"},
            "after_step=project is not possible: coop with these settings has no context",
        ),
        ("kgcoop", {"after_step": "project", "context": "reparam"}, "follows from something else that is trained"),
        ("kgcoop", {"after_step": "project(eps=0)"}, "leaves nothing to learn"),
        ("vpt", {"after_step": "project"}, "has no context that starts from words"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(method: str, settings: dict, said: str) -> None:
    with pytest.raises(VlpromptError, match=said.replace("(", r"\(").replace(")", r"\)")) as error:
        make(method, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", list_methods())
def test_a_parameterisation_goes_with_every_context_or_is_refused(method: str) -> None:
    said = ""
    try:
        learner = make(method, context="multispace")
    except VlpromptError as error:
        said = str(error)
    if said:
        assert said.startswith("context=multispace is not possible")
    else:
        assert not any(name.endswith("prompt.ctx") for name, _ in learner.named_parameters())


@pytest.mark.parametrize("eps", [0.01, 100.0])
def test_a_context_stays_in_the_ball_around_its_words(eps: float) -> None:
    learner = make("kgcoop", after_step=f"project(eps={eps})", class_specific=True)
    words = learner.clip.word_embeddings("a photo of a")
    batch = {"image_features": learner.clip.encode_text(learner.class_names), "label": torch.arange(5)}
    train(learner, lambda epoch: [batch] * 3, TrainOptions(epochs=2, lr=1.0, warmup_epochs=0, batch_size=5))
    far = (learner.prompt.ctx.detach() - words).norm(dim=-1)
    free = make("kgcoop", class_specific=True)
    train(free, lambda epoch: [batch] * 3, TrainOptions(epochs=2, lr=1.0, warmup_epochs=0, batch_size=5))
    if eps == 100.0:
        assert torch.equal(learner.prompt.ctx, free.prompt.ctx)
    else:
        assert far.max() <= eps * (1 + 1e-4)
        assert far.max() > eps / 2
        assert ((free.prompt.ctx.detach() - words).norm(dim=-1) > eps).any()


def test_a_run_tells_of_its_context(tmp_path: Path) -> None:
    settings = {"dataset": "digits", "protocol": "few_shot", "shots": 1, "epochs": 1, "views": 1, "quiet": True}
    found = run(method="kgcoop", context="lowrank", after_step="project", output=str(tmp_path), **settings)
    assert found.config["context"] == "lowrank"
    other = run(method="kgcoop", output=str(tmp_path), **settings)
    assert other.id != found.id


def test_the_experts_of_a_mixture_stay_near_their_templates() -> None:
    learner = make("mocoop", after_step="project(eps=0.01)")
    train(learner, lambda epoch: [toy_batch()] * 2, TrainOptions(epochs=1, lr=1.0, warmup_epochs=0))
    for expert in learner.prompts:
        away = (expert.ctx.detach() - expert.start).norm(dim=-1)
        assert 0 < away.max() <= 0.01 * (1 + 1e-4)

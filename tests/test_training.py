"""The loop: schedule, optimiser, guards, checkpoints and exact resumption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vlprompt import FrozenCLIP, VlpromptError, create_learner, testing
from vlprompt.base.layout import CHECKPOINT, LOG
from vlprompt.learner import PromptLearner
from vlprompt.training import BestEpoch, TrainOptions, learning_rate, train

NAMES = ["cat", "sea or lake", "traffic light"]

# spec: learning rate of every epoch, as the published recipes step it
PUBLISHED_RATES = {
    "MaPLe": (3.5e-3, 5, [1e-5, 3.500e-3, 3.166e-3, 2.291e-3, 1.209e-3]),
    "MaPLe, ImageNet": (2.6e-3, 2, [1e-5, 2.600e-3]),
    "VPT": (2.5e-3, 5, [1e-5, 2.500e-3, 2.261e-3, 1.636e-3, 8.637e-4]),
    "CoPrompt": (3.5e-3, 8, [1e-5, 3.5e-3, 3.367e-3, 2.987e-3, 2.420e-3, 1.750e-3, 1.080e-3, 5.126e-4]),
    "CoCoOp": (
        2e-3,
        10,
        [1e-5, 2e-3, 1.951e-3, 1.809e-3, 1.588e-3, 1.309e-3, 1e-3, 6.910e-4, 4.122e-4, 1.910e-4],
    ),
    "PromptSRC": (2.5e-3, 20, [1e-5, 2.5e-3, 2.485e-3, *[None] * 15, 1.362e-4, 6.118e-5]),
    "CoOp": (2e-3, 50, [1e-5, 2e-3, 1.998e-3, *[None] * 45, 1.771e-5, 7.885e-6]),
}


@pytest.mark.parametrize("recipe", PUBLISHED_RATES)
def test_learning_rate_is_the_published_one_in_every_epoch(recipe: str) -> None:
    lr, epochs, expected = PUBLISHED_RATES[recipe]
    assert len(expected) == epochs
    for epoch, rate in enumerate(expected):
        if rate is not None:
            assert learning_rate(epoch, lr, epochs) == pytest.approx(rate, rel=5e-4), epoch


@pytest.fixture
def small_clip() -> FrozenCLIP:
    return testing.small_clip()


def batches(epoch: int) -> Iterator[dict[str, torch.Tensor]]:
    """Three batches of random features, a function of the epoch alone."""
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(3):
        features = torch.randn(6, 64, generator=generator)
        yield {"image_features": features, "label": torch.tensor([0, 1, 2, 0, 1, 2])}


def interrupted_in(stop: int) -> object:
    """The same batches, with Ctrl-C in the second batch of epoch ``stop``."""

    def stopping(epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        for i, batch in enumerate(batches(epoch)):
            if epoch == stop and i == 1:
                raise KeyboardInterrupt
            yield batch

    return stopping


def coop(clip: FrozenCLIP) -> PromptLearner:
    return create_learner("coop", clip, NAMES, n_ctx=2)


def options(**changes: object) -> TrainOptions:
    return TrainOptions(**{"epochs": 5, "lr": 0.05, **changes})


def test_one_step_is_sgd_with_the_published_weight_decay(small_clip: FrozenCLIP) -> None:
    learner = coop(small_clip)
    before = learner.prompt.ctx.detach().clone()
    batch = next(batches(0))
    gradient = torch.autograd.grad(learner.loss(batch)["loss"], learner.prompt.ctx)[0]
    train(learner, lambda epoch: [batch], options(epochs=1, warmup_epochs=0, lr=0.1))
    torch.testing.assert_close(learner.prompt.ctx.detach(), before - 0.1 * (gradient + 5e-4 * before))


def test_history_tells_rate_and_mean_of_each_loss_part(small_clip: FrozenCLIP, tmp_path: Path) -> None:
    learner = create_learner("kgcoop", small_clip, NAMES)
    shown: list[dict] = []
    history = train(learner, lambda epoch: batches(0), options(lr=2e-3), folder=tmp_path, on_epoch=shown.append)
    assert [r["epoch"] for r in history] == list(range(5))
    assert {"lr", "seconds", "loss", "ce", "text_anchor"} <= history[0].keys()
    assert history[0]["loss"] == pytest.approx(history[0]["ce"] + 8 * history[0]["text_anchor"], rel=1e-4)
    assert history[-1]["loss"] < history[0]["loss"]
    assert shown == history == [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert not learner.training


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_an_interrupted_run_resumes_to_the_same_bits(
    small_clip: FrozenCLIP, tmp_path: Path, optimizer: str, stop: int
) -> None:
    recipe = options(optimizer=optimizer, checkpoint_seconds=1000)
    whole, parts = coop(small_clip), coop(small_clip)
    expected = train(whole, batches, recipe)
    with pytest.raises(KeyboardInterrupt):
        train(parts, interrupted_in(stop), recipe, folder=tmp_path)
    assert not parts.training  # a notebook may go on with it
    again = coop(small_clip)  # a new process starts from a new learner
    history = train(again, batches, recipe, folder=tmp_path, resume=True)
    assert torch.equal(again.prompt.ctx, whole.prompt.ctx)
    assert [r["loss"] for r in history] == [r["loss"] for r in expected]
    assert len((tmp_path / LOG).read_text().splitlines()) == recipe.epochs


@pytest.mark.parametrize("aggregator", ["ema(decay=0.5)", "gpa(mean=3, std=1)", "mean_of_epochs"])
def test_an_aggregation_over_epochs_survives_an_interruption(
    small_clip: FrozenCLIP, tmp_path: Path, aggregator: str
) -> None:
    def learner() -> PromptLearner:
        return create_learner("coop", small_clip, NAMES, n_ctx=2, aggregator=aggregator)

    whole, last = learner(), coop(small_clip)
    train(whole, batches, options())
    train(last, batches, options())
    with pytest.raises(KeyboardInterrupt):
        train(learner(), interrupted_in(3), options(), folder=tmp_path)
    again = learner()
    train(again, batches, options(), folder=tmp_path, resume=True)
    assert torch.equal(again.prompt.ctx, whole.prompt.ctx)
    assert not torch.equal(whole.prompt.ctx, last.prompt.ctx)


def test_resuming_repeats_the_random_numbers_that_a_learner_draws(
    small_clip: FrozenCLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(self: PromptLearner, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        noise = torch.randn_like(batch["image_features"])
        loss = F.cross_entropy(self.classify(batch["image_features"] + noise), batch["label"])
        return {"loss": loss}

    monkeypatch.setattr(PromptLearner, "loss", noisy)
    whole = coop(small_clip)
    torch.manual_seed(1)
    train(whole, batches, options())
    with pytest.raises(KeyboardInterrupt):
        train(coop(small_clip), interrupted_in(2), options(), folder=tmp_path)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = coop(small_clip)
    train(again, batches, options(), folder=tmp_path, resume=True)
    assert torch.equal(again.prompt.ctx, whole.prompt.ctx)
    assert torch.equal(torch.get_rng_state(), state), "training must leave the caller's random numbers alone"


def checkpoint_of_three_epochs(clip: FrozenCLIP, folder: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        train(coop(clip), interrupted_in(3), options(), folder=folder, identity="abc")
    return folder / CHECKPOINT


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_checkpoint_is_noticed_and_named(small_clip: FrozenCLIP, tmp_path: Path, damage: str) -> None:
    path = checkpoint_of_three_epochs(small_clip, tmp_path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes({"flip": bytes(data), "truncate": bytes(data[:-40]), "empty": b""}[damage])
    with pytest.raises(VlpromptError, match=f"checkpoint .*{CHECKPOINT} is damaged .*delete it and start again"):
        train(coop(small_clip), batches, options(), folder=tmp_path, resume=True, identity="abc")


def test_another_runs_checkpoint_is_refused(small_clip: FrozenCLIP, tmp_path: Path) -> None:
    checkpoint_of_three_epochs(small_clip, tmp_path)
    with pytest.raises(VlpromptError, match="belongs to a run with other settings"):
        train(coop(small_clip), batches, options(), folder=tmp_path, resume=True, identity="xyz")


def test_resume_without_a_checkpoint_starts_from_the_beginning(small_clip: FrozenCLIP, tmp_path: Path) -> None:
    assert len(train(coop(small_clip), batches, options(), folder=tmp_path, resume=True)) == 5


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(small_clip: FrozenCLIP) -> None:
    def poisoned(epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        for i, batch in enumerate(batches(epoch)):
            if epoch == 1 and i == 2:
                batch["image_features"][0, 0] = float("nan")
            yield batch

    with pytest.raises(VlpromptError, match="the loss part 'loss' is nan in epoch 2, step 3: try a smaller lr"):
        train(coop(small_clip), poisoned, options())


def test_a_parameter_that_is_not_finite_stops_the_run_and_is_named(
    small_clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(self: PromptLearner, losses: dict[str, torch.Tensor]) -> None:
        self.prompt.ctx.grad = torch.full_like(self.prompt.ctx, float("inf"))

    monkeypatch.setattr(PromptLearner, "backward", explode)
    with pytest.raises(VlpromptError, match=r"tensor prompt\.ctx\) in epoch 1, step 2"):
        train(coop(small_clip), batches, options())
    with pytest.raises(VlpromptError, match=r"a learnable is not finite \(tensor prompt\.ctx\) in epoch 1, step 1"):
        train(coop(small_clip), lambda epoch: [next(batches(0))], options())


def test_an_unknown_optimizer_is_told_with_the_nearest(small_clip: FrozenCLIP) -> None:
    with pytest.raises(VlpromptError, match="unknown optimizer 'adamW2': did you mean adamw"):
        train(coop(small_clip), batches, options(optimizer="adamW2"))


def test_a_learner_without_learnables_is_not_trained(small_clip: FrozenCLIP) -> None:
    def never(epoch: int) -> list:
        raise AssertionError("no batch is asked for")

    assert train(create_learner("zero_shot", small_clip, NAMES), never, options()) == []


def test_the_best_epoch_is_kept_the_later_of_equals_also_after_an_interruption(
    small_clip: FrozenCLIP, tmp_path: Path
) -> None:
    scores, states = [0.2, 0.6, 0.4, 0.6, 0.5], []

    def run(interrupted: bool) -> PromptLearner:
        given = list(scores)
        learner = coop(small_clip)

        def score() -> float:
            assert not learner.training
            states.append(learner.prompt.ctx.detach().clone())
            return given[len(states) - 1]

        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                train(learner, interrupted_in(4), options(), folder=tmp_path, selection=BestEpoch(score))
            learner = coop(small_clip)
        train(learner, batches, options(), folder=tmp_path, resume=interrupted, selection=BestEpoch(score))
        return learner

    whole = run(interrupted=False)
    assert torch.equal(whole.prompt.ctx, states[3])
    assert torch.equal(whole.last_state["prompt.ctx"], states[4])
    states.clear()
    assert torch.equal(run(interrupted=True).prompt.ctx, whole.prompt.ctx)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad], ids=["inference", "no_grad"])
def test_modes_of_the_caller_neither_stop_nor_spoil_a_training(mode: type, small_clip: FrozenCLIP) -> None:
    clip = FrozenCLIP(testing.small_model(), small_clip.tokenizer, device="cpu")  # of which nothing is known yet
    with mode():
        kept = [create_learner(m, clip, testing.NAMES, n_ctx=2) for m in ("kgcoop", "coop")]
        testing.logits_of(create_learner("zero_shot", clip, testing.NAMES))  # whose class features are kept for all
        train(kept[0], batches, options(epochs=1))
    expected = testing.make("kgcoop", n_ctx=2)
    train(expected, batches, options(epochs=1))
    assert torch.equal(kept[0].prompt.ctx, expected.prompt.ctx)
    train(kept[1], batches, options(epochs=1))
    train(create_learner("kgcoop", clip, testing.NAMES, n_ctx=2), batches, options(epochs=1))


def test_learners_are_fp32_whatever_is_the_default(small_clip: FrozenCLIP) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        learner = create_learner("coop", small_clip, testing.NAMES, n_ctx=2)
        history = train(learner, batches, options(epochs=1))
        assert testing.logits_of(testing.make("mocoop")).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    same = create_learner("coop", small_clip, testing.NAMES, n_ctx=2)
    assert [record["loss"] for record in history] == [
        record["loss"] for record in train(same, batches, options(epochs=1))
    ]
    assert torch.equal(learner.prompt.ctx, same.prompt.ctx)

"""Whoever waits is told how long it will be; time is a number here, and nobody waits."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from vlprompt.base.reporter import LONG, Pace, Reporter
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.learning import EpochBatches
from vlprompt.testing import make, toy_batch
from vlprompt.training import TrainOptions, loop, train
from vlprompt.training.trainer import progress_text


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_follows_the_pace_of_late() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.left(10) is None
    for done in range(1, 31):  # restored from a checkpoint
        pace.update(done)
    assert pace.left(60) == 0
    for done in range(31, 51):
        clock.now += 3
        pace.update(done)
    assert pace.left(60) == pytest.approx(30)
    assert pace.say_left(60) == "30 s left"
    pace.update(1)  # the next stage
    assert (pace.elapsed, pace.left(60)) == (0, None)


def test_a_slow_first_piece_tells_nothing_of_the_others() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now += 12  # imports, and an epoch of a tenth of a second
    pace.update(1)
    assert pace.say_left(200) == ""
    for done in (2, 3):
        clock.now += 0.1
        pace.update(done)
        assert pace.left(200) == pytest.approx(0.1 * (200 - done))


def test_plain_lines_have_the_time_left_of_long_work_alone(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    for step in (0.01, 30):
        with Reporter(clock=clock).bar("epoch", lines=2) as update:
            for done in range(1, 5):
                clock.now += step
                update(done, 4, "loss 0.1")
    said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert said[:2] == ["epoch 2/4  loss 0.1", "epoch 4/4  loss 0.1"]
    # the first line of long work comes after ten seconds, and not after half of it
    assert said[2:] == ["epoch 1/4  loss 0.1  90 s left", "epoch 2/4  loss 0.1  60 s left", "epoch 4/4  loss 0.1"]


def test_work_that_has_shown_nothing_for_a_while_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Reporter(clock=clock).bar("epoch", lines=1) as update:
        for _ in range(5):
            clock.now += LONG / 2
            update((clock.now - 100) / 1000, 1)
    assert capsys.readouterr().out.split("\n")[:-1] == ["epoch 0/1  16 min left"]


def test_training_tells_its_accuracy_and_how_an_epoch_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TELL", 0)
    learner, batch = make("coop"), toy_batch()
    told: list[tuple[float, Mapping[str, float]]] = []
    right = share_right(learner, batch)

    def tell(done: float, means: Mapping[str, float]) -> None:
        told.append((done, dict(means)))

    batches = EpochBatches(lambda epoch, size: [batch, batch], 2 * len(batch["label"]), len(batch["label"]))
    options = TrainOptions(epochs=2, lr=1e-9, warmup_epochs=0)  # which moves nothing
    history = train(learner, batches, options, on_steps=tell)
    assert [done for done, _ in told] == [0.5, 1, 1.5, 2]
    assert [record["accuracy"] for record in history] == pytest.approx([100 * right] * 2)
    assert told[1][1] == {key: history[0][key] for key in told[1][1]}
    assert f"training accuracy {100 * right:.1f}%" in progress_text(history[0])


def share_right(learner: PromptLearner, batch: Mapping[str, torch.Tensor]) -> float:
    with torch.no_grad():
        return float((learner(batch).logits.argmax(dim=1) == batch["label"]).double().mean())


def test_without_labels_there_is_no_accuracy() -> None:
    learner = make("pouf")
    learner.loss({"image_features": torch.randn(4, learner.clip.embed_dim)})
    assert learner.batch_accuracy is None

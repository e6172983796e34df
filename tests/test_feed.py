"""What a method is handed to learn from, and the loop that it is handed to learn with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from vlprompt import VlpromptError, load_split
from vlprompt.base.parts import parse_part
from vlprompt.data.sampling import few_shot_split
from vlprompt.data.splits import without_labels
from vlprompt.learner.learning import EpochBatches, ParameterGroup
from vlprompt.testing import make, small_clip, toy_batch
from vlprompt.training import BestEpoch, Trainer, TrainOptions, train
from vlprompt.training.feed import FeatureFeed, ImageFeed, Loading
from vlprompt.training.optimizers import OPTIMIZERS
from vlprompt.training.schedules import SCHEDULES, Moment


@pytest.fixture(scope="module")
def splits():
    drawn = few_shot_split(load_split("digits"), 2, 1)
    return replace(drawn, test=())


def feed_of(splits, **options) -> ImageFeed:
    splits = replace(splits, pool=without_labels(load_split("digits").test[:30]))
    return ImageFeed(splits, small_clip(), Loading(batch_size=8, views=1), **options)


def test_a_pool_has_no_labels(splits) -> None:
    feed = feed_of(splits)
    assert feed.bank("pool").labels is None
    assert "label" not in next(iter(feed.batches("pool")(0)))
    assert {(item.label, item.class_name) for item in feed.splits.pool} == {(-1, "")}
    assert feed.bank().labels.tolist() == [item.label for item in splits.train]


def test_pseudo_labels_make_a_pools_images_the_labelled_ones(splits) -> None:
    feed = feed_of(splits)
    labels = torch.full((30,), -1)
    labels[[3, 7, 8]] = torch.tensor([0, 9, 4])
    weights = torch.arange(30.0)
    found = feed.labelled_as(labels, weights)
    assert [item.path for item in found.splits.train] == [feed.splits.pool[i].path for i in (3, 7, 8)]
    assert found.bank().labels.tolist() == [0, 9, 4]
    assert torch.equal(found.bank().features[0], feed.bank("pool").features[0, [3, 7, 8]])
    batch = next(iter(found.batches()(0)))
    assert dict(zip(batch["label"].tolist(), batch["weight"].tolist(), strict=True)) == {0: 3.0, 9: 7.0, 4: 8.0}
    with pytest.raises(VlpromptError, match="the pool has 30 images, and 2 labels were given"):
        feed.labelled_as(torch.zeros(2))
    with pytest.raises(VlpromptError, match="no image of the pool has a label"):
        feed.labelled_as(torch.full((30,), -1))


def test_weights_say_how_much_an_image_counts() -> None:
    learner, batch = make("coop"), toy_batch()
    plain, half = learner.loss(batch)["ce"], learner.loss(batch | {"weight": torch.full((10,), 0.5)})["ce"]
    torch.testing.assert_close(half, plain / 2)


def test_another_feeds_batches_go_along(splits) -> None:
    feed = feed_of(splits)
    seen = [batch["unlabeled"]["index"] for batch in feed.beside(feed).batches()(0)]
    assert [len(index) for index in seen] == [8, 8]
    again = [batch["unlabeled"]["index"] for batch in feed.beside(feed).batches()(0)]
    other = [batch["unlabeled"]["index"] for batch in feed.beside(feed).batches()(1)]
    assert all(map(torch.equal, seen, again))
    assert not all(map(torch.equal, seen, other))


def test_a_feed_of_one_domain() -> None:
    emoji = few_shot_split(load_split("emoji"), 2, 1)
    feed = ImageFeed(emoji, small_clip(), Loading(batch_size=8, views=1))
    assert feed.domains == ("noto", "twemoji", "fluent") or set(feed.domains) == {"noto", "twemoji", "fluent"}
    own = feed.where(domain="noto")
    assert {item.domain for item in own.splits.train} == {"noto"}
    assert set(next(iter(own.batches()(0)))["domain"].tolist()) == {0}
    with pytest.raises(VlpromptError, match="no images of the domain 'photo'"):
        feed.where(domain="photo")


def test_domains_share_one_bank() -> None:
    feed = ImageFeed(few_shot_split(load_split("emoji"), 2, 1), small_clip(), Loading(batch_size=8, views=3))
    every = torch.tensor([item.domain == "noto" for item in feed.splits.train])
    assert torch.equal(feed.where(domain="noto").bank(views=3).features, feed.bank(views=3).features[:, every])


def test_features_in_hand_are_fed_as_images_are(splits) -> None:
    images = feed_of(splits)
    items = [replace(item, path=str(i)) for i, item in enumerate(splits.train)]
    loading = Loading(batch_size=8, views="fresh")  # which says nothing where there are no images
    feed = FeatureFeed(replace(splits, train=items), small_clip(), loading, rows=images.bank().features[0])
    for mine, theirs in zip(feed.batches()(3), images.batches()(3), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


# The loop


class Two(nn.Module):
    """Two numbers that are pulled towards a batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup([self.a]), ParameterGroup([self.b], lr_scale=0.1, weight_decay=0.0)]

    def loss(self, batch: dict) -> dict:
        return {"loss": (self.a - batch["to"]).sum() + (self.b - batch["to"]).sum()}


def towards(count: int) -> EpochBatches:
    return EpochBatches(lambda epoch, size: [{"to": torch.ones(1)}] * (count // size), count, 1)


PLAIN = {"optimizer": "sgd(momentum=0)", "weight_decay": 0.0, "schedule": "constant", "lr": 0.5}


def test_groups_have_rates_of_their_own() -> None:
    module = Two()
    train(module, towards(1), TrainOptions(epochs=2, **PLAIN))
    torch.testing.assert_close([module.a.item(), module.b.item()], [-1.0, -0.1])


def test_steps_in_place_of_epochs() -> None:
    module = Two()
    history = train(module, towards(3), TrainOptions(steps=7, **PLAIN))
    assert len(history) == 3
    torch.testing.assert_close(module.a.item(), -3.5)
    with pytest.raises(VlpromptError, match="how many batches an epoch has"):
        train(Two(), lambda epoch: [], TrainOptions(steps=7, **PLAIN))


def test_a_gradients_norm_is_clipped() -> None:
    module = Two()
    train(module, towards(1), TrainOptions(epochs=1, clip_grad=0.5 * 2**0.5, **PLAIN))
    assert module.a.item() == pytest.approx(-0.25, rel=1e-5)


def test_a_stage_has_a_checkpoint_and_options_of_its_own(tmp_path) -> None:
    def run(resume: bool) -> tuple[list, list]:
        module, seen = Two(), []
        trainer = Trainer(TrainOptions(epochs=4, **PLAIN), {"folder": tmp_path, "resume": resume, "identity": "it"})
        for stage in ("round 1", "round 2"):
            trainer(module, towards(2), stage=stage, epochs=2, lr=0.25)
            seen.append(module.a.item())
        return seen, trainer.history

    first, history = run(resume=False)
    assert [(record["stage"], record["epoch"]) for record in history] == [
        ("round 1", 0), ("round 1", 1), ("round 2", 0), ("round 2", 1),
    ]  # fmt: skip
    assert (tmp_path / "checkpoint-round-2.safetensors").exists()
    assert (tmp_path / "train-round-1.jsonl").exists()
    again, restored = run(resume=True)
    assert again == first == [-1.0, -2.0]
    assert restored == history, "a finished stage is not done again"
    with pytest.raises(VlpromptError, match="unknown training option 'epoch': did you mean"):
        Trainer(TrainOptions())(Two(), towards(1), epoch=2)


def test_what_is_drawn_between_stages_follows_from_the_seed(splits) -> None:
    class Drawing:
        clip, config = small_clip(), None

        def refuse_subset(self) -> None:
            pass

        def learn(self, feed, train) -> None:
            self.drawn = torch.rand(3)

        def eval(self) -> None:
            pass

    state, learners = torch.get_rng_state(), [Drawing() for _ in range(3)]
    for learner, seed in zip(learners, (1, 1, 2), strict=True):
        torch.rand(seed)
        Trainer(TrainOptions(), {"seed": seed}).fit(learner, feed_of(splits))
    assert torch.equal(learners[0].drawn, learners[1].drawn)
    assert not torch.equal(learners[0].drawn, learners[2].drawn)
    torch.set_rng_state(state)


def test_two_trainings_of_a_run_need_two_names() -> None:
    trainer = Trainer(TrainOptions(epochs=1, **PLAIN))
    trainer(Two(), towards(1))
    with pytest.raises(VlpromptError, match="two trainings of one run are called ''"):
        trainer(Two(), towards(1))


def test_each_stage_chooses_among_its_own_epochs() -> None:
    scores = iter([0.9, 0.1, 0.3, 0.2])
    selection = BestEpoch(lambda: next(scores))
    trainer = Trainer(TrainOptions(epochs=2, lr=0.1, warmup_epochs=0), {"selection": selection})
    learner, batch = make("coop", n_ctx=2), toy_batch()
    chosen = []
    for stage in ("one", "two"):
        trainer(learner, lambda epoch: [batch], stage=stage)
        chosen.append(learner.prompt.ctx.detach().clone())
    assert [record["selection"] for record in trainer.history] == [0.9, 0.1, 0.3, 0.2]
    assert not torch.equal(*chosen), "the second stage kept the best of the first"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1, 0.8536, 0.5, 0.1464]),
        ("cosine(floor=0.5)", [1, 0.9268, 0.75, 0.5732]),
        ("cosine(warmup=2)", [0.5, 1, 1, 0.5]),
        ("cosine(warmup=1, warmup_lr=0.01)", [0.01, 1, 0.75, 0.25]),
        ("dassl(warmup=1, warmup_lr=0.01)", [0.01, 1, 0.8536, 0.5]),
        ("inverse(gamma=1, power=1, per=epoch)", [1, 1 / 2, 1 / 3, 1 / 4]),
    ],
)
def test_schedules(text: str, expected: list[float]) -> None:
    schedule = parse_part(text, SCHEDULES)
    assert [schedule(1.0, Moment(epoch, 4, 0, 0)) for epoch in range(4)] == pytest.approx(expected, abs=1e-4)


def test_schedules_per_step() -> None:
    schedule = parse_part("cosine(per=step)", SCHEDULES)
    assert schedule(1.0, Moment(epoch=0, epochs=1, step=5, steps=10)) == pytest.approx(0.5)
    with pytest.raises(VlpromptError, match="per must be one of epoch, step, not 'day'"):
        parse_part("cosine(per=day)", SCHEDULES)


def test_optimisers_are_parts() -> None:
    group = [ParameterGroup([nn.Parameter(torch.zeros(1))], 0.5, 0.25)]
    made = parse_part("adamw(eps=1e-4)", OPTIMIZERS)(group, lr=0.1, weight_decay=0.01)
    assert isinstance(made, torch.optim.AdamW)
    assert [made.param_groups[0][key] for key in ("lr", "weight_decay", "eps")] == [0.05, 0.25, 1e-4]

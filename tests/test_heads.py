"""What heads on frozen features promise beyond their authors' numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vlprompt import PromptClassifier, PromptLearner, VlpromptError, export_learner, load_learner, load_split, run
from vlprompt.base.settings import TrainOptions
from vlprompt.data import FeatureBank
from vlprompt.estimator.inputs import training_set
from vlprompt.methods.heads.clap import multipliers
from vlprompt.testing import NAMES, Item, logits_of, make, small_clip, toy_feed
from vlprompt.training import Trainer
from vlprompt.training.feed import FeatureFeed, Loading

CACHES = ("tip_adapter", "tip_adapter_f")
PROBES = ("zs_lp", "clap", "taskres", "cross_modal_lp")
HEADS = (*CACHES, "clip_adapter", *PROBES)
BOUND = (*CACHES, *PROBES)


def feed_of(rows: Tensor, labels: Tensor, names: tuple[str, ...] = NAMES) -> FeatureFeed:
    """A feed of features in hand (N, D)."""
    items = [Item(str(i), y, names[y]) for i, y in enumerate(labels.tolist())]
    return FeatureFeed(replace(training_set((), (), names), train=items), small_clip(), Loading(64, 1), rows=rows)


def samples(per_class: int = 2) -> tuple[Tensor, Tensor]:
    bank = toy_feed(make("zero_shot"), per_class).bank()
    return bank.features[0], bank.labels


def fitted(method: str, rows: Tensor, labels: Tensor, names: tuple[str, ...] = NAMES, **settings) -> PromptLearner:
    learner = make(method, names=names, **settings)
    Trainer(TrainOptions(epochs=3, warmup_epochs=0, lr=0.01, optimizer="adam")).fit(
        learner, feed_of(rows, labels, names)
    )
    return learner


@pytest.mark.parametrize(
    ("method", "settings"),
    [("tip_adapter", {"alpha": 0.0}), ("tip_adapter_f", {"alpha": 0.0}), ("clip_adapter", {"ratio": 0.0})]
    + [("taskres", {"alpha": 0.0}), ("zs_lp", {"variant": "cones"})]
    + [(method, {}) for method in PROBES],
)
def test_a_head_that_has_learnt_nothing_is_zero_shot(method: str, settings: dict) -> None:
    torch.testing.assert_close(logits_of(make(method, **settings)), logits_of(make("zero_shot")), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", HEADS)
def test_learning_tells_the_images_apart(method: str) -> None:
    rows, labels = samples()
    zero_shot, learnt = make("zero_shot").classify(rows), fitted(method, rows, labels).classify(rows).detach()
    assert learnt.dtype == torch.float32
    assert not torch.allclose(learnt, zero_shot, atol=1e-2)
    cross_entropy = torch.nn.functional.cross_entropy
    assert cross_entropy(learnt, labels) < cross_entropy(zero_shot, labels)


@pytest.mark.parametrize("method", HEADS)
def test_the_order_of_classes_permutes_the_logits(method: str) -> None:
    rows, labels = samples()
    order = torch.tensor([3, 0, 4, 1, 2])
    names = tuple(NAMES[i] for i in order)  # class order[i] is now class i
    found, moved = fitted(method, rows, labels), fitted(method, rows, order.argsort()[labels], names)
    torch.testing.assert_close(moved.classify(rows), found.classify(rows)[:, order], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", HEADS)
def test_one_image_a_class_is_enough(method: str) -> None:
    rows, labels = samples(per_class=1)
    assert fitted(method, rows, labels).classify(rows).isfinite().all()


def test_a_class_without_images_keeps_its_zero_shot_logit_in_a_cache() -> None:
    rows, labels = samples()
    learnt = fitted("tip_adapter", rows[labels != 2], labels[labels != 2]).classify(rows)
    zero_shot = make("zero_shot").classify(rows)
    assert torch.equal(learnt[:, 2], zero_shot[:, 2])
    assert (learnt > zero_shot).sum(dim=0).tolist() == [len(rows), len(rows), 0, len(rows), len(rows)]


def test_images_that_come_twice_count_twice_in_a_cache() -> None:
    rows, labels = samples()
    twice = fitted("tip_adapter", rows.repeat(2, 1), labels.repeat(2), alpha=0.5)
    once = fitted("tip_adapter", rows, labels, alpha=1.0)
    torch.testing.assert_close(twice.classify(rows), once.classify(rows))


def test_views_are_averaged_before_they_are_normalised() -> None:
    head, views = make("tip_adapter"), torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    views[0] *= 100  # a long view outweighs the others
    head.fit(FeatureBank(views, torch.arange(5)))
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(head.keys, views[0]).min() > 0.99


@pytest.mark.parametrize("method", CACHES)
def test_many_settings_at_once_score_as_each_by_itself(method: str) -> None:
    rows, labels = samples()
    points = [{"alpha": alpha, "beta": beta} for beta in (0.5, 5.5) for alpha in (0.0, 1.0, 2.5)]
    heads = [fitted(method, rows, labels, **point) for point in points]
    v = torch.nn.functional.normalize(rows, dim=-1)
    columns = {key: torch.tensor([point[key] for point in points]).view(-1, 1, 1) for key in points[0]}
    for head, point in zip(heads, points, strict=True):
        head.keys.data.copy_(heads[0].keys)  # which were trained with other settings
        torch.testing.assert_close(heads[0].logits_at(v, columns)[points.index(point)], head.classify(rows))
    only_alpha = heads[0].logits_at(v, {"alpha": columns["alpha"][:3]})
    torch.testing.assert_close(only_alpha, heads[0].logits_at(v, columns)[:3])


@pytest.mark.parametrize("method", CACHES)
def test_settings_are_chosen_on_held_out_images_and_saved(method: str, tmp_path: Path) -> None:
    digits, grid = load_split("digits"), {"beta": [1.0, 5.5], "alpha": [0.5, 20.0]}
    few = replace(digits, name=f"chosen digits for {method}", val=digits.train[-40:], test=digits.test[:12])
    result = run(
        method=method, protocol="few_shot", dataset=few, clip=small_clip(), shots=2, views=1, epochs=1, fit_views=1,
        selection="fewshot_val", grid=grid, quiet=True, output=str(tmp_path),
    )  # fmt: skip
    (search,) = result.searches
    saved = load_learner(next(tmp_path.rglob("learner")), clip=small_clip())
    assert search["points"] == 4
    assert {"alpha": float(saved.alpha), "beta": float(saved.beta)} == search["chosen"]


@pytest.mark.parametrize("method", CACHES)
def test_a_cache_of_any_size_is_saved_with_all_that_it_scores_with(method: str, tmp_path: Path) -> None:
    rows, labels = samples(per_class=7)
    head = fitted(method, rows, labels)
    folder = head.save_pretrained(tmp_path / "learner")
    again = load_learner(folder, clip=small_clip())
    assert torch.equal(logits_of(again), logits_of(head))
    assert torch.equal(logits_of(make(method, init_from=str(folder))), logits_of(head))

    state = head.state_dict()
    for odd, message in (
        ({"keys": torch.zeros(35, 63)}, r"keys is \(35, 63\), \(35, 64\) is expected"),
        ({"keys": torch.zeros(3, 64)}, r"keys is \(3, 64\), \(35, 64\) is expected"),
        ({"labels": state["labels"] + 1}, "5 is not the label of a class"),
        ({"labels": state["labels"] - 0.5}, "-0.5 is not the label of a class"),
        ({"labels": torch.tensor(1.0)}, "do not fit"),
    ):
        save_file(state | odd, tmp_path / "odd.safetensors")
        with pytest.raises(VlpromptError, match=message) as error:
            make(method, init_from=str(tmp_path / "odd.safetensors"))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", BOUND)
def test_new_classes_are_refused_before_any_work(method: str, tmp_path: Path) -> None:
    with pytest.raises(VlpromptError, match=f"and {method} .* use protocol=few_shot$"):
        run(method=method, protocol="base_to_new", dataset="digits", clip=small_clip(), output=str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", HEADS)
def test_a_head_runs_wherever_the_classes_are_the_same(method: str, tmp_path: Path) -> None:
    whole = load_split("digits")
    few = replace(whole, name=f"few digits for {method}", test=whole.test[:12])
    quick = {"clip": small_clip(), "shots": 1, "views": 1, "epochs": 1, "quiet": True, "output": str(tmp_path)}
    quick |= {"steps": 2} if method == "cross_modal_lp" else {}
    result = run(method=method, protocol="few_shot", dataset=few, **quick)
    assert result.rows[0].n_images == 12
    saved = load_learner(next(tmp_path.rglob("learner")), clip=small_clip())
    assert saved.method == method


@pytest.mark.parametrize("method", HEADS)
def test_the_estimator_fits_a_head_on_images_and_on_their_features(method: str) -> None:
    splits = load_split("digits")
    chosen = splits.train[:: len(splits.train) // 20][:20]
    images, y = [splits.open_image(item) for item in chosen], [item.label for item in chosen]
    options = {"steps": 2} if method == "cross_modal_lp" else {}
    options |= {"fit_views": 1} if "fit_views" in make(method).config.__dict__ else {}
    how = {"epochs": 2, "views": 1, "class_names": dict(enumerate(splits.class_names)), "mirror": False}
    on_images = PromptClassifier(method, small_clip(), options=options, **how).fit(images, y)
    rows = small_clip().encode_image(torch.stack([small_clip().preprocess(image) for image in images])).numpy()
    on_features = PromptClassifier(method, small_clip(), options=options, **how).fit(rows, y)
    a, b = (torch.from_numpy(each.predict_proba(images)) for each in (on_images, on_features))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_training_of_keys_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    rows, labels = samples()
    options = TrainOptions(epochs=4, lr=0.01, checkpoint_seconds=0.0)

    def stop(stage: str, options: TrainOptions, record: dict) -> None:
        if record["epoch"] == 1:
            raise KeyboardInterrupt

    whole, halted, resumed = (make("tip_adapter_f") for _ in range(3))
    Trainer(options, {"seed": 2}).fit(whole, feed_of(rows, labels))
    with pytest.raises(KeyboardInterrupt):
        Trainer(options, {"seed": 2, "folder": tmp_path}, stop).fit(halted, feed_of(rows, labels))
    Trainer(options, {"seed": 2, "folder": tmp_path, "resume": True}).fit(resumed, feed_of(rows, labels))
    assert torch.equal(resumed.keys, whole.keys)
    assert not torch.equal(halted.keys, whole.keys)


@pytest.mark.parametrize("method", [*CACHES, "clip_adapter"])
def test_what_is_no_linear_classifier_has_no_matrix(method: str, tmp_path: Path) -> None:
    head = fitted(method, *samples()).eval()
    with pytest.raises(VlpromptError, match="scores with more than class features"):
        export_learner(head, "matrix", tmp_path / "head.safetensors")


# CLAP


def test_claps_multipliers_are_of_each_classs_own_images() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 4, generator=generator), torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3])
    p = logits.softmax(dim=1)
    expected = torch.stack([p[:3, 0].mean(), p[3:5, 1].mean(), torch.tensor(1.0), p[5:, 3].mean()])
    found = multipliers(logits, labels, "l2")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(multipliers(logits.repeat(2, 1), labels.repeat(2), "l2"), expected)
    torch.testing.assert_close(multipliers(logits, labels, "l2_constant"), expected.mean().expand(4))
    torch.testing.assert_close(multipliers(logits, labels, "l2_corrected").mean(), torch.tensor(1.0))


def test_claps_constraint_holds_prototypes_back() -> None:
    rows, labels = samples()
    free, held = fitted("zs_lp", rows, labels), fitted("clap", rows, labels)
    moved = [(head.prototypes - head.anchor).norm() for head in (free, held)]
    assert 0 < moved[1] < moved[0]
    assert held.strength.lt(1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("clap", constraint="none"), "must be one of l2, l2_constant"),
        (lambda: make("zs_lp", variant="cone"), "must be one of zs_lp, cones"),
        (lambda: make("clip_adapter", reduction=0), "must be from 1 to 64"),
        (lambda: make("clip_adapter", reduction=65), "must be from 1 to 64"),
    ],
)
def test_settings_that_say_nothing_are_refused(call, message: str) -> None:
    with pytest.raises(VlpromptError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# Cross-modal


def test_a_step_sees_no_text_twice_and_no_more_texts_than_images() -> None:
    head = make("cross_modal_lp")
    rows, labels = samples()
    drawn = []
    score = head.score
    head.score = lambda v, t: drawn.append(v) or score(v, t)
    for count in (3, 10):
        head.loss({"image_features": rows[:count], "label": labels[:count]})
    assert [len(v) for v in drawn] == [3, 3, 10, 5]  # images, texts; there are 5 texts
    assert all(len(v.unique(dim=0)) == len(v) for v in drawn)

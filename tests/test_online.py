"""Learners that predict online: what a stream of test images leaves in them, and the order in which it comes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vlprompt import VlpromptError, load_learner, load_split, run
from vlprompt.cli.evaluate import main as evaluate_command
from vlprompt.evaluation import evaluate, score
from vlprompt.evaluation.results import Result
from vlprompt.evaluation.scoring import limited, stream_order
from vlprompt.learner import PromptLearner
from vlprompt.methods.test_time.tda import Stream
from vlprompt.testing import NAMES, make, toy_batch

CLASSES = len(NAMES)


def features(n: int, seed: int = 0) -> torch.Tensor:
    """Normalised image features (n, D) around the zero-shot class features."""
    centres = make("zero_shot").text_features()[torch.arange(n) % CLASSES]
    noise = torch.randn(centres.shape, generator=torch.Generator().manual_seed(seed))
    return F.normalize(centres + 0.2 * noise, dim=1)


def tda(**settings) -> PromptLearner:
    return make("tda", **settings).eval()


def test_the_first_image_votes_for_its_own_class_alone() -> None:
    x = features(3)
    zero_shot, found = make("zero_shot").eval().classify(x), tda(unsure=[0.0, 0.0], alpha=3.0).classify(x)
    own = F.one_hot(zero_shot[0].argmax(), CLASSES)
    torch.testing.assert_close(found[0], zero_shot[0] + 3.0 * own)
    torch.testing.assert_close(tda(alpha=0.0, negative_alpha=0.0).classify(x), zero_shot)


def test_caches_hold_no_more_than_their_shots_and_the_surest() -> None:
    learner, x = tda(positive_shots=2, negative_shots=1, unsure=[0.0, 1.0]), features(80)
    text = learner.text_features()
    stream, entropies = Stream(learner.config, text), {c: [] for c in range(CLASSES)}
    for image in x:
        seen = learner.see(image[None], text)
        stream.logits(seen)
        entropies[int(seen.z.argmax())].append(seen.entropy)
    for cache, shots in ((stream.positive, 2), (stream.negative, 1)):
        assert cache.keys.shape[:2] == cache.entropy.shape == (CLASSES, shots)
        for c, seen in entropies.items():
            kept = cache.entropy[c][cache.entropy[c].isfinite()].sort().values
            torch.testing.assert_close(kept, torch.tensor(sorted(seen)[:shots]))


def test_a_stream_goes_on_over_batches_and_begins_anew_with_each_test() -> None:
    learner, x = tda(), features(40)
    whole = learner.classify(x)
    for size in (1, 7, 40):
        parts = torch.cat(list(learner.predict_all({"image_features": part} for part in x.split(size))))
        torch.testing.assert_close(parts, whole)
    assert whole.dtype == torch.float32
    turned = learner.classify(x.flip(0)).flip(0)
    assert not torch.allclose(turned, whole, atol=1e-3), "it depends on the images before"
    torch.testing.assert_close(learner.classify(x[:9]), whole[:9]), "and on none behind"


def test_permuted_classes_are_permuted_columns() -> None:
    x, order = features(40), [3, 0, 4, 1, 2]
    permuted = tda(names=tuple(NAMES[i] for i in order)).classify(x)
    torch.testing.assert_close(permuted, tda().classify(x)[:, order], rtol=1e-4, atol=1e-4)


def test_of_several_views_the_surest_count() -> None:
    views = toy_batch(12)["image"].unflatten(0, (3, 4))
    learner = tda(n_views=4, fraction=0.5, alpha=0.0, negative_alpha=0.0)
    z = make("zero_shot").eval().classify(learner.image_features(views[0]))
    kept = torch.distributions.Categorical(logits=z).entropy().argsort()[:2]
    found = learner.predict({"views": views})
    assert found.shape == (3, CLASSES)
    torch.testing.assert_close(found[0], z[kept].mean(dim=0))
    one = tda(n_views=4, fraction=0.01).predict({"views": views[:1].expand(3, -1, -1, -1, -1)})
    assert one.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positive_shots": 0}, "positive_shots"),
        ({"fraction": 0.0}, "fraction"),
        ({"unsure": [0.1]}, "two numbers"),
        ({"augmix": True}, "n_views=64"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings: dict, message: str) -> None:
    with pytest.raises(VlpromptError, match=message):
        tda(**settings)


def test_the_order_follows_from_the_seed_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    splits = load_split("digits")
    learner = make("tda", names=splits.class_names, templates=splits.templates).eval()
    items = limited(splits.test, 30)
    found = {seed: evaluate(learner, splits, limit=30, seed=seed) for seed in (1, 2)}
    assert [each.row.order for each in found.values()] == [1, 2]
    assert not torch.equal(found[1].learnt.logits, found[2].learnt.logits)
    assert torch.equal(found[1].frozen.logits, found[2].frozen.logits)
    assert found[1].learnt.labels.tolist() == [item.label for item in items]

    places = stream_order(30, 2)
    assert sorted(places.tolist()) == list(range(30)) != places.tolist()
    seen = score(make("zero_shot", names=splits.class_names), splits, limit=30)  # whose bank is in its own order
    assert torch.equal(seen.labels, found[2].learnt.labels)
    rows = torch.stack([learner.clip.preprocess(splits.open_image(items[i])) for i in places.tolist()])
    streamed = learner.predict({"image": rows})
    torch.testing.assert_close(found[2].learnt.logits[places], streamed, rtol=1e-3, atol=1e-3)


def test_a_run_is_repeated_from_its_folder_and_on_other_orders(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    settings = {"dataset": "digits", "limit": 40, "quiet": True, "output": str(tmp_path), "backbone": "vlprompt-tiny"}
    result: Result = run(method="tda", seed=3, device="cpu", name="one", **settings)
    assert (result.protocol, result.predicts, result.rows[0].order, result.has_seeds) == (
        "test_time",
        "online",
        3,
        True,
    )
    assert evaluate_command([f"run={tmp_path / 'one'}", "device=cpu", "--quiet"]) == 0
    learner = load_learner(tmp_path / "one" / "learner", device="cpu")
    assert list(learner.state_dict()) == []
    kept = tmp_path / "row.json"
    for seed in (3, 4):
        told = [f"learner={tmp_path / 'one'}", "dataset=digits", "limit=40", f"seed={seed}", f"output={kept}"]
        assert evaluate_command([*told, "device=cpu", "--quiet"]) == 0
        assert json.loads(kept.read_text())["order"] == seed
    assert "online" in capsys.readouterr().out

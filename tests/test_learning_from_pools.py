"""What POUF, TFUP and TFUP-T promise beyond their authors' numbers: what they learn from a pool and what they keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_unlabelled import pool_feed
from safetensors.torch import load_file

from vlprompt import PromptClassifier, VlpromptError, load_learner, load_split, run
from vlprompt.base.settings import TrainOptions
from vlprompt.learner import PromptLearner
from vlprompt.saving.export import export_learner
from vlprompt.testing import NAMES, make, small_clip
from vlprompt.training.trainer import Trainer

CLASSES, POOL = len(NAMES), 60
SMALL = {"tfup": {"labeler": "prototype_kl(k=4)"}, "tfup_t": {"first_epochs": 1}, "pouf": {}}
OPTIONS = TrainOptions(epochs=3, batch_size=16, lr=0.01, schedule="cosine(per=epoch)")


def features(n: int, seed: int = 0) -> torch.Tensor:
    """Image features (n, D) around the zero-shot class features."""
    centres = make("zero_shot").text_features()[torch.arange(n) % CLASSES]
    noise = torch.randn(centres.shape, generator=torch.Generator().manual_seed(seed))
    return 3 * F.normalize(centres + 0.2 * noise, dim=1)


def learnt(method: str, names: tuple[str, ...] = NAMES, **settings) -> PromptLearner:
    learner = make(method, names=names, **SMALL[method] | settings)
    Trainer(OPTIONS, {"seed": 1}).fit(learner, pool_feed(learner, features(POOL)))
    return learner


@pytest.mark.parametrize("method", SMALL)
def test_it_learns_from_a_pool_and_loads_to_the_same_bits(method: str, tmp_path: Path) -> None:
    learner, x = learnt(method), features(20, 5)
    logits = learner.classify(x)
    assert logits.dtype == torch.float32
    assert not torch.allclose(logits, make(method, **SMALL[method]).eval().classify(x), atol=1e-3)
    learner.save_pretrained(tmp_path)
    again = load_learner(tmp_path, learner.clip)
    assert torch.equal(again.classify(x), logits)
    torch.testing.assert_close(learner.classify(x[7:8]), logits[7:8], msg="each image is predicted by itself")


@pytest.mark.parametrize("method", ["tfup", "tfup_t"])
def test_permuted_classes_are_permuted_columns(method: str) -> None:
    x, order = features(20, 5), [3, 0, 4, 1, 2]
    permuted = learnt(method, names=tuple(NAMES[i] for i in order)).classify(x)
    torch.testing.assert_close(permuted, learnt(method).classify(x)[:, order], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", SMALL)
def test_without_a_pool_it_says_which_protocol_has_one(method: str) -> None:
    learner = make(method)
    with pytest.raises(VlpromptError, match=r"has no pool of images without labels here: use protocol=unsupervised"):
        Trainer(OPTIONS, {"seed": 1}).fit(learner, pool_feed(learner, features(0)))


def test_tfups_cache_is_bounded_and_empty_it_is_zero_shot() -> None:
    x = features(20, 5)
    empty = make("tfup", template=["a photo of a {}."]).eval().classify(x)
    torch.testing.assert_close(empty, make("zero_shot", template=["a photo of a {}."]).eval().classify(x))
    learner = learnt("tfup")
    assert learner.labels.tolist() == [c for c in range(CLASSES) for _ in range(4)]
    added = learner.classify(x) - learner.clip.similarity(F.normalize(x, dim=1), learner.text_features())
    assert (added >= 0).all()
    assert (added <= 4 * learner.config.alpha * torch.e).all(), "four images a class, each of an affinity up to 2"


def test_tfup_t_learns_nothing_of_images_that_nothing_is_sure_of() -> None:
    learner = make("tfup_t", threshold=0.999999, marginal_weight=0.0)
    batch = {"image_features": features(8), "unlabeled": {"image_features": torch.randn(8, learner.clip.embed_dim)}}
    batch["unlabeled"]["image_features"] = batch["unlabeled"]["image_features"] * 0 + 1  # far from sure
    learner.clip.similarity, similarity = lambda v, t: v @ t.T, learner.clip.similarity
    try:
        losses = learner.loss(batch)
    finally:
        learner.clip.similarity = similarity
    assert losses["loss"].item() == 0.0


def test_tfup_t_that_is_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = make("tfup_t", **SMALL["tfup_t"])
    Trainer(OPTIONS, {"seed": 1, "folder": tmp_path / "whole"}).fit(whole, pool_feed(whole, features(POOL)))
    options = replace(OPTIONS, checkpoint_seconds=0.0)
    for stop in range(OPTIONS.epochs):
        parts = make("tfup_t", **SMALL["tfup_t"])

        def stopped(stage, options, record, stop=stop) -> None:
            if record["epoch"] == stop:
                raise KeyboardInterrupt

        keeping = {"seed": 1, "folder": tmp_path / f"stop-{stop}"}
        with pytest.raises(KeyboardInterrupt):
            Trainer(options, keeping, stopped).fit(parts, pool_feed(parts, features(POOL)))
        parts = make("tfup_t", **SMALL["tfup_t"])
        Trainer(options, keeping | {"resume": True}).fit(parts, pool_feed(parts, features(POOL)))
        assert all(torch.equal(a, b) for a, b in zip(parts.parameters(), whole.parameters(), strict=True))


def test_poufs_scale_is_learnt_slowly_and_goes_out_with_a_linear_head(tmp_path: Path) -> None:
    learner, x = learnt("pouf", scale_lr=0.5), F.normalize(features(20, 5), dim=1)
    assert learner.log_scale.exp().item() != pytest.approx(learner.clip.logit_scale, rel=1e-5)
    weight, bias = learner.linear_head(learner.text_features())
    torch.testing.assert_close(x @ weight.T + bias, learner.classify(x), rtol=1e-4, atol=1e-4)
    kept = load_file(export_learner(learner, "matrix", tmp_path / "matrix.safetensors"))
    torch.testing.assert_close(kept["logit_scale"] * kept["weight"], weight)
    assert [len(group.parameters) for group in learner.parameter_groups()] == [1, 1]


def test_poufs_terms_are_zero_or_least_where_they_should_be() -> None:
    learner = make("pouf")
    t = learner.text_features()
    losses = learner.loss({"image_features": t.detach()})
    assert losses["information_maximization"].item() < 0
    flat = learner.loss({"image_features": torch.ones_like(t)})
    assert losses["transport"].item() < flat["transport"].item()


@pytest.mark.parametrize("count", [4, 6])  # as many images as prompts of a step, and more
def test_transport_is_to_the_mean_of_a_steps_prompts(count: int) -> None:
    learner, x = make("proda", objective=["transport"]), features(count)
    torch.manual_seed(0)
    found = learner.loss({"image_features": x})["transport"]
    torch.manual_seed(0)
    learner._queue = []
    each = learner.prompt_features(torch.tensor(learner._next_prompts()))  # (M, C, D)
    cost = 1 - torch.einsum("bd,mcd->mbc", F.normalize(x, dim=1), each).mean(dim=0)
    logits = learner.clip.logit_scale * (1 - cost)
    expected = sum((logits.softmax(dim=axis) * cost).sum(dim=axis).mean() for axis in (0, 1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", SMALL)
def test_a_run_without_labels(method: str, tmp_path: Path) -> None:
    whole = load_split("digits")
    splits = replace(whole, name=f"few-{method}", train=whole.train[::40], test=whole.test[::40], val=())
    settings = {} if method == "tfup" else {"epochs": 2, "batch_size": 8, "views": 1}
    settings |= {"steps": 3} if method == "pouf" else {}
    result = run(
        method=method, protocol="unsupervised", dataset=splits, clip=small_clip(), quiet=True, output=str(tmp_path),
        **SMALL[method], **settings,
    )  # fmt: skip
    assert result.predicts == "alone"
    assert result.has_seeds == (method != "tfup")


def test_a_classifier_asks_the_settings_whether_images_without_labels_are_of_use() -> None:
    x = features(12).numpy()
    found = PromptClassifier("coop", small_clip(), options={"objective": ["promptkd"], "n_ctx": 2}, epochs=1, views=1)
    found.fit(x, [NAMES[i % CLASSES] for i in range(12)], X_unlabelled=features(12, 3).numpy())
    assert found.learner_.facts.labels == "none"
    assert len(found.history_) == 1
    with pytest.raises(VlpromptError, match="learns from labelled images only: leave X_unlabelled out"):
        PromptClassifier("coop", small_clip()).fit(x, list(range(12)), X_unlabelled=x)

"""What single methods, objectives, gradient rules and aggregators promise beyond the conformance suite."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vlprompt import VlpromptError, create_learner, load_learner
from vlprompt.base.parts import parse_part
from vlprompt.learner.aggregation import (
    AGGREGATORS,
    ExponentialMovingAverage,
    GaussianPromptAggregation,
    MeanOfEpochs,
    aggregate,
    aggregation_state,
    load_aggregation_state,
)
from vlprompt.learner.anchors import distance
from vlprompt.learner.gradients import ProGradRule
from vlprompt.learner.registration import METHODS
from vlprompt.methods.prompts.proda import covariance_margin
from vlprompt.testing import NAMES, close, fit, logits_of, make, small_clip, toy_batch


def total(method: str, clip, **settings) -> int:
    return sum(p.numel() for p in create_learner(method, clip, ["cat", "dog"], **settings).trainable_parameters())


@pytest.mark.parametrize(
    ("method", "settings", "count"),
    [
        ("cocoop", {}, 35_360),
        ("prograd", {}, 8_192),
        ("proda", {}, 262_144),
        ("pre", {}, 1_579_008),
        ("promptsrc", {}, 46_080),
        ("promptsrc", {"depth": 3, "vision_depth": 3}, 15_360),
        ("coprompt", {}, 3_817_216),
        ("restore", {}, 7_756_544),
        ("mvlpt", {}, 566_400),
        ("tcp", {}, 331_904),
        ("mma", {}, 674_560),
        ("mmrl", {}, 4_992_256),
        ("mmrlpp", {}, 813_312),
    ],
)
def test_parameter_counts_on_vit_b_16(method: str, settings: dict, count: int, vit_b_16) -> None:
    assert total(method, vit_b_16, **settings) == count


@pytest.mark.parametrize(
    ("epochs", "mean", "std", "expected"),
    [
        (20, 15, 1, {13: 0.0540, 14: 0.2420, 15: 0.3989, 16: 0.2420, 17: 0.0540}),
        (20, 6, 10, {1: 0.0554, 6: 0.0628, 20: 0.0236}),
        (50, 30, 30, {1: 0.0141, 30: 0.0225, 50: 0.0180}),
        (50, 45, 5, {45: 0.0923, 50: 0.0560}),
    ],
)
def test_gaussian_weights_are_the_published_ones(epochs: int, mean: float, std: float, expected: dict) -> None:
    weights = GaussianPromptAggregation(mean, std).schedule(epochs)
    assert sum(weights) == pytest.approx(1)
    for epoch, weight in expected.items():
        assert weights[epoch - 1] == pytest.approx(weight, abs=6e-5)


def test_aggregators_average_what_they_say() -> None:
    states = [{"w": torch.tensor([float(i)])} for i in range(1, 5)]
    for aggregator, expected in (
        (MeanOfEpochs(), 2.5),
        (MeanOfEpochs(last=2), 3.5),
        (ExponentialMovingAverage(0.5), 0.5 * (0.5 * (0.5 * 1 + 0.5 * 2) + 0.5 * 3) + 0.5 * 4),
        (GaussianPromptAggregation(4, 1e-3), 4.0),
    ):
        for epoch, state in enumerate(states):
            aggregator.update(state, epoch, len(states))
        assert aggregator.total["w"].item() == pytest.approx(expected)


def test_a_learner_ends_with_aggregated_weights_and_keeps_the_last(tmp_path: Path) -> None:
    learner = make("promptsrc", aggregator="mean_of_epochs")
    seen = []
    for epoch in range(3):
        fit(learner, 1, lr=0.1)
        seen.append(learner.prompt.ctx.detach().clone())
        aggregate(learner, epoch, 3)
        if epoch == 1:  # a resumed learner goes on with the same sum
            other = make("promptsrc", aggregator="mean_of_epochs")
            other.load_state_dict(learner.state_dict())
            load_aggregation_state(other, aggregation_state(learner))
            learner = other
    assert close(learner.prompt.ctx, torch.stack(seen).mean(dim=0))
    assert torch.equal(learner.last_state["prompt.ctx"], seen[-1])
    learner.save_pretrained(tmp_path)
    assert (tmp_path / "last.safetensors").is_file()
    assert torch.equal(logits_of(load_learner(tmp_path, clip=learner.clip)), logits_of(learner))


def test_prograd_projects_only_what_conflicts() -> None:
    rule, generator = ProGradRule(), torch.Generator().manual_seed(0)
    for _ in range(20):
        learnt, general = torch.randn(2, 7, generator=generator)
        out = rule.project(learnt, general)
        if learnt @ general >= 0:
            assert torch.equal(out, learnt)
        else:
            assert abs(out @ general) < 1e-5
            assert close(ProGradRule(weight=0.5).project(learnt, general), (out + learnt) / 2)
    assert torch.equal(rule.project(learnt, torch.zeros(7)), learnt)


@pytest.mark.parametrize("scope", ["tensor", "all"])
def test_prograd_scope(scope: str) -> None:
    parameters = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    a, b = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    # the first tensor's gradients agree, the second's conflict, and so do the two together
    losses = {
        "loss": parameters[0] @ a + parameters[1] @ (4 * b),
        "reference": parameters[0] @ a - parameters[1] @ b,
    }
    ProGradRule(reference="reference", scope=scope)(losses, parameters)
    if scope == "tensor":
        assert torch.equal(parameters[0].grad, a)
        assert parameters[1].grad.norm() == 0
    else:
        together = parameters[0].grad @ a - parameters[1].grad @ b
        assert abs(together) < 1e-6
        assert parameters[1].grad.norm() > 1


def direct_margin(v: torch.Tensor, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The port's own computation, with a D×C×C covariance."""
    centred = features - features.mean(dim=0)
    sigma = torch.einsum("mcd,med->dce", centred, centred) / (len(features) + 1)
    own = torch.diagonal(sigma, dim1=1, dim2=2)  # (D, C)
    out = torch.empty(len(v), features.shape[1])
    for b, y in enumerate(labels):
        out[b] = (v[b, :, None] ** 2 * (own[:, y, None] + own - 2 * sigma[:, y])).sum(dim=0)
    return out


def test_prodas_cheap_covariance_equals_the_direct_one() -> None:
    generator = torch.Generator().manual_seed(0)
    v = F.normalize(torch.randn(6, 16, generator=generator), dim=-1)
    features = F.normalize(torch.randn(4, 9, 16, generator=generator), dim=-1)
    labels = torch.tensor([0, 3, 8, 8, 2, 5])
    margin = covariance_margin(v, features, labels)
    assert close(margin, direct_margin(v, features, labels))
    assert (margin >= 0).all()
    assert margin.gather(1, labels[:, None]).abs().max() == 0


def test_proda_uses_every_prompt_before_any_twice() -> None:
    learner = make("proda", n_prompts=8, n_ctx=2)
    seen = []
    original = learner.prompt_features
    learner.prompt_features = lambda chosen=None: seen.extend(chosen.tolist()) or original(chosen)
    for _ in range(2):
        learner.loss(toy_batch())
    assert sorted(seen) == list(range(8))


def test_proda_classifies_with_the_mean_over_all_prompts() -> None:
    learner = make("proda", n_prompts=8, n_ctx=2).eval()
    with torch.no_grad():
        features = learner.prompt_features()
        assert features.shape == (8, len(NAMES), 64)
        assert close(learner.classifier_matrix(), features.mean(dim=0))


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
@pytest.mark.parametrize("shared", [True, False])
def test_pre_baked_equals_unbaked(encoder: str, shared: bool) -> None:
    learner = make("pre", encoder=encoder, shared=shared)
    fit(learner, 2)
    baked = learner.bake()
    assert baked.method == "coop"
    assert close(logits_of(baked), logits_of(learner))


def test_restores_shift_is_zero_at_first_and_its_first_norms_travel(tmp_path: Path) -> None:
    learner = make("restore", depth=3)
    assert learner.loss(toy_batch())["prompt_shift"].item() == 0
    fit(learner, 3, lr=0.05)
    shift = learner.loss(toy_batch())["prompt_shift"].item()
    assert shift > 0
    learner.save_pretrained(tmp_path)
    again = load_learner(tmp_path, clip=learner.clip)
    assert again.loss(toy_batch())["prompt_shift"].item() == pytest.approx(shift)
    before = learner.text_adapter.ratio.clone()
    for epoch in range(3):
        learner.after_epoch(epoch, 3)
    assert learner.text_adapter.ratio > before
    published, other = learner.published_state(), make("restore", depth=3)
    other.load_published(published | {"vis_cali_ratio": published["vis_cali_ratio"].view(1)})
    assert torch.equal(logits_of(other), logits_of(learner))
    other.load_published({name: t for name, t in published.items() if "ratio" not in name})  # of an older file


@pytest.mark.parametrize("method", ["coprompt", "restore"])
def test_feature_blocks_with_ratio_zero_are_the_identity(method: str) -> None:
    clip = small_clip()
    settings = {"text_ratio": 0.0, "image_ratio": 0.0}
    learner, plain = make(method, clip, **settings), make("maple", clip)
    plain.load_state_dict({k: v for k, v in learner.state_dict().items() if k in plain.state_dict()})
    assert close(logits_of(learner), logits_of(plain))


def test_cocoops_images_have_classifiers_of_their_own() -> None:
    learner = make("cocoop", image_chunk=None)
    torch.nn.init.normal_(learner.meta_net.linear2.weight)
    v = learner.image_features(toy_batch()["image"])
    with torch.no_grad():
        t = learner.text_features(v)
        alone = torch.cat([learner.text_features(row[None]) for row in v])
    assert t.shape == (10, len(NAMES), 64)
    assert not close(t[0], t[1], 1e-3)
    assert close(t, alone)
    with pytest.raises(VlpromptError, match="no \\(C, D\\) classifier matrix"):
        learner.classifier_matrix()


def test_uncoupled_tokens_do_not_mix_as_published_and_mix_if_asked() -> None:
    for mixing in (False, True):
        learner = make("mvlpt", mixing=mixing)
        text, _ = learner.generated()
        (gradient,) = torch.autograd.grad(text.sum(), learner.vpt_embeddings)
        assert (gradient.norm() > 0) == mixing


def test_masked_classes_do_not_compete() -> None:
    learner = make("coop")
    batch = toy_batch(4)
    batch["label"] = torch.tensor([0, 1, 0, 1])
    mask = torch.zeros(4, len(NAMES), dtype=torch.bool)
    mask[:, :2] = True
    masked = learner.loss(batch | {"class_mask": mask})["ce"]
    with torch.no_grad():
        expected = F.cross_entropy(learner(batch["image"])[:, :2], batch["label"])
    assert masked.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_teachers_image_pass_is_made_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = small_clip.__wrapped__()  # one that no other test has asked
    learner = make("promptsrc", clip)
    calls = []
    original = learner.clip.encode_image
    monkeypatch.setattr(learner.clip, "encode_image", lambda x: calls.append(len(x)) or original(x))
    texts = []
    encode_text = learner.clip.encode_text
    monkeypatch.setattr(learner.clip, "encode_text", lambda t, **k: texts.append(len(t)) or encode_text(t, **k))
    fit(learner, 3)
    assert len(calls) <= 3
    assert len(texts) == 1  # 80 templates, once for the whole training
    fit(make("promptsrc", clip), 3)
    assert len(texts) == 1  # and for all learners of the model


def test_teacher_features_of_a_fixed_view_come_from_the_bank() -> None:
    learner = make("promptsrc")
    batch = toy_batch()
    features = learner.clip.encode_image(batch["image"])
    with_bank = learner.loss(batch | {"image_features": features})
    assert close(with_bank["loss"], learner.loss(batch)["loss"])


def test_descriptions_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "descriptions.json"
    sentences = {n.replace("_", " ").upper(): [f"{n} seen from afar.", f"a large {n}."] for n in NAMES}
    sentences[NAMES[0].upper()].append("one more that the others lack.")
    file.write_text(json.dumps(sentences))
    learner = make("coprompt", objective=["ce", f"description_anchor(weight=8, descriptions={str(file)!r})"])
    assert learner.loss(toy_batch())["description_anchor"].item() > 0
    assert learner.teacher.description_table(NAMES, str(file)).shape == (2, len(NAMES), 64)
    with pytest.raises(VlpromptError, match="has no sentences for 1 of 2 classes, first 'okapi'"):
        learner.teacher.description_table(("okapi", "tench"), str(file))
    file.write_text("[]")
    with pytest.raises(VlpromptError, match="must be a JSON file"):
        make("coprompt").teacher.description_table(NAMES, str(file))


def test_prompts_transfer_from_another_run(tmp_path: Path) -> None:
    source = make("coop", n_ctx=3)
    fit(source, 2)
    source.save_pretrained(tmp_path / "learner")
    for place in (tmp_path, tmp_path / "learner", tmp_path / "learner" / "learner.safetensors"):
        target = make("coop", names=("okapi", "ibex"), n_ctx=3, init_from=str(place))
        assert torch.equal(target.prompt.ctx, source.prompt.ctx)
    with pytest.raises(VlpromptError, match=r"prompt\.ctx has 3 tokens, and 4 are expected"):
        make("coop", n_ctx=4, init_from=str(tmp_path))
    with pytest.raises(VlpromptError, match="no learnables at"):
        make("coop", init_from=str(tmp_path / "nothing"))


def test_regularisers_compose_into_the_named_methods() -> None:
    clip = small_clip()
    named = make("kgcoop", clip)
    composed = make("coop", clip, ctx_init="a photo of a", objective=["ce", "text_anchor(weight=8.0)"])
    assert close(named.loss(toy_batch())["loss"], composed.loss(toy_batch())["loss"])
    terms = make("promptsrc", clip).config.objective
    on_maple = make("maple", clip, objective=terms)
    assert set(on_maple.loss(toy_batch())) == {"loss", "ce", "text_anchor", "image_anchor", "logit_kl"}


def test_a_cell_that_registers_a_method_may_be_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._filed()))  # others' lists of methods stay as they are
    cell = '''
from vlprompt import register
from vlprompt.methods.prompts.coop import CoOp

@register("of_a_cell", paper="none", like=CoOp)
class OfACell(CoOp):
    """A method."""
    edition = {}
'''
    for edition in (1, 2):
        exec(cell.format(edition), {"__name__": "__main__"})
        assert make("of_a_cell").edition == edition
    with pytest.raises(VlpromptError, match="method 'of_a_cell' is registered already, by"):
        exec(cell.format(3).replace("class OfACell", "class Another"), {"__name__": "__main__"})


def test_texts_in_a_part_may_go_without_quotes() -> None:
    bare, quoted = (make("coop", objective=["ce", f"text_anchor(weight=2, distance={d})"]) for d in ("l1", "'l1'"))
    assert bare.objectives[1].distance == quoted.objectives[1].distance == "l1"


@pytest.mark.parametrize("kind", ["cos", "l1", "mse"])
def test_distances_of_equal_features_are_zero(kind: str) -> None:
    a = F.normalize(torch.randn(4, 8), dim=-1)
    assert abs(distance(a, a, kind).item()) < 1e-6
    assert distance(a, -a, kind) > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: make("coop", objective=["ce", "image_anchor"]),
            "leaves the image tower alone; use it on a method that",
        ),
        (lambda: make("coop", objective=["ce", "ce"]), "must name each part once"),
        (lambda: make("coop", objective=["ce(weight=0)"]), "one part must have a weight"),
        (
            lambda: make("coop", objective=["ce(wieght=2)"]),
            "objective 'ce(wieght=2)': unknown key 'wieght': did you mean weight",
        ),
        (lambda: make("coop", gradient_rule="prograd"), "prograd needs distillation among the objectives"),
        (lambda: make("coop", aggregator="gpa(mean=1, std=0)"), "must be positive"),
        (lambda: make("coop", aggregator="mean_of_epoch"), "unknown aggregator 'mean_of_epoch': did you mean"),
        (lambda: make("coop", objective=["ce(weight=x)"]), "weight must be a number, not 'x'"),
        (lambda: make("coop", objective=["ce(weight=1e999)"]), "weight must be a number, not inf"),
        (lambda: make("coop", objective=["ce", "logit_kl(temperature=[1])"]), "temperature must be a number, not [1]"),
        (lambda: make("coop", objective=["ce", "logit_kl(reduction=sum)"]), "must be one of numel, batchmean"),
        (lambda: make("coop", aggregator="mean_of_epochs(last=1.5)"), "last must be a whole number or null, not 1.5"),
        (lambda: parse_part("ema(0.9)", AGGREGATORS), "cannot read aggregator 'ema(0.9)'"),
        (lambda: make("proda", n_prompts=6), "must be a multiple of 4"),
        (lambda: make("cocoop", class_specific=True), "cocoop has one context for all classes"),
        (
            lambda: make("maple", objective=["ce", "logit_kl(templates='imagenet90')"]).loss(toy_batch()),
            "a file or a set",
        ),
    ],
)
def test_bad_settings_are_answered_in_one_sentence(call, message: str) -> None:
    with pytest.raises(VlpromptError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_worker_process_says_why_it_does_not_know_a_notebooks_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "name", "LokyProcess-1")
    with pytest.raises(VlpromptError, match=r"'my_coop' in a worker process, which knows plugins .*: did you"):
        make("my_coop")

"""Fidelity of what is computed on features: the authors' own code made these numbers."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace

import golden_edits
import golden_generated
import golden_heads
import golden_unlabelled
import pytest
import torch
import torch.nn.functional as F
from golden_files import CORE, MORE, Case, case_names, read_case, read_config
from golden_numbers import Check, alike, clip_of, close
from torch import Tensor

from vlprompt import FrozenCLIP, create_learner
from vlprompt.base.parts import parse_part
from vlprompt.clip.edits import Edit, Rows
from vlprompt.data import FeatureBank
from vlprompt.learner.held_out import Selection
from vlprompt.learner.labelers import LABELERS, Growing, growing_shots
from vlprompt.methods.heads import gda as gda_module
from vlprompt.methods.heads.gaussians import fit_gaussians, nearest_samples, synthesise
from vlprompt.methods.heads.lp_plus_plus import StepSizes
from vlprompt.methods.prompts.mask_prompt import seen_patches
from vlprompt.methods.test_time import tpt as tpt_module
from vlprompt.methods.test_time.tpt import entropy_of_mean, surest_views

# by the beginning of a file's name
CHECKS: dict[str, Check] = (
    golden_edits.CHECKS | golden_heads.CHECKS | golden_unlabelled.CHECKS | golden_generated.CHECKS
)


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def given(features: Tensor, labels: Tensor) -> SimpleNamespace:
    """A feed of features in hand (V, N, D), which are asked for in as many views, and that chooses nothing."""

    def bank(source: str = "labelled", *, views: int = 1, clip: FrozenCLIP | None = None) -> FeatureBank | None:
        return FeatureBank(features, labels) if views == len(features) else None

    return SimpleNamespace(bank=bank, selection=Selection())


def entropies(logits: Tensor) -> Tensor:
    """Entropy of each row."""
    return torch.stack([entropy_of_mean(row[None]) for row in logits])


@check
def gda_fewshot(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    features, labels = t["train_features_raw"], t["train_labels"]
    assert facts["prior"] == "uniform"
    found = fit_gaussians(features, labels, facts["n_classes"])
    for ours, theirs in (("means", "class_means"), ("precision", "precision"), ("w", "w"), ("b", "b")):
        close(getattr(found, ours), t[theirs], theirs)

    clip = clip_of(facts["width"], facts["logit_scale"])
    names = [f"class {i}" for i in range(facts["n_classes"])]
    for alpha in facts["alphas"]:
        learner = create_learner("gda", clip, names, alpha=alpha, fit_views=len(features)).eval()
        learner.learn(given(features, labels), None)
        # with the text features of the case in place of this CLIP's own
        monkeypatch.setattr(learner, "encode_text", lambda v=None: t["text_weights"])
        close(learner.classify(t["test_features"]), t[f"logits_alpha_{alpha:g}"], f"alpha={alpha}", atol=1e-4)


@check
def gda_base_to_new(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    features, labels = t["train_features_raw"], t["train_labels"]
    base = fit_gaussians(features, labels, facts["n_base"], shrinkage=False)
    close(base.means, t["base_means"], "base_means")
    alike(base.precision.float(), t["base_precision"], "base_precision")
    samples = F.normalize(features.flatten(0, 1), dim=-1)
    assert torch.equal(nearest_samples(samples, t["text_weights_new"], facts["neighbours"]), t["neighbour_index"])
    new = synthesise(samples, t["text_weights_new"], facts["neighbours"], facts["text_copies"])
    for ours, theirs in (("means", "new_means"), ("precision", "new_precision"), ("w", "w_new"), ("b", "b_new")):
        close(getattr(new, ours), t[theirs], theirs)

    monkeypatch.setattr(gda_module, "PUBLISHED_WIDTH", facts["width"])  # as in the fixture
    clip = clip_of(facts["width"], facts["logit_scale"])
    halves = {half: [f"{half} {i}" for i in range(facts[f"n_{half}"])] for half in ("base", "new")}
    settings = {"synthesise": True, "as_published": True, "fit_views": len(features)}
    settings |= {key: facts[key] for key in ("neighbours", "text_copies")}
    for alpha in facts["alphas"]:
        learner = create_learner("gda", clip, halves["base"], alpha=alpha, **settings).eval()
        texts = {"base": t["text_weights_base"], "new": t["text_weights_new"]}
        monkeypatch.setattr(
            learner, "encode_text", lambda v=None, x=learner, by=texts: by[x.class_names[0].partition(" ")[0]]
        )
        learner.learn(given(features, labels), None)
        for half, names in halves.items():
            learner.set_class_names(names)
            ours, theirs = learner.classify(t[f"test_features_{half}"]), t[f"{half}_logits_alpha_{alpha:g}"]
            close(ours, theirs, f"{half}, alpha={alpha}", atol=1e-4)


@check
def lp_plus_plus(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    v, labels = F.normalize(t["train_features_raw"], dim=-1), t["train_labels"]
    sizes = StepSizes.of(v, labels, t["text_weights"])
    found = torch.tensor([sizes.w, sizes.alpha, sizes.start])
    close(found, torch.tensor([facts[key] for key in ("lr_w", "lr_alpha", "alpha_init")]), "step sizes")
    names = [f"class {i}" for i in range(facts["n_classes"])]
    settings = {"full_steps": facts["steps"], "heavy_ball": facts["momentum"], "alpha_every": facts["alpha_every"]}
    clip = clip_of(facts["width"], 100.0)
    learner = create_learner("lp_plus_plus", clip, names, as_published=True, **settings).eval()
    monkeypatch.setattr(learner, "encode_text", lambda v=None: t["text_weights"])
    learner.b.copy_(t["b_init"])
    states, losses = zip(*learner.steps(v, labels, t["text_weights"]), strict=True)
    close(torch.tensor(losses), torch.tensor(facts["losses"]), "losses")
    for name, tensor in t.items():
        if name.startswith("alpha_after_"):
            close(states[int(name.rpartition("_")[2]) - 1][2], tensor, name)
    learner.learn(given(t["train_features_raw"][None], labels), None)
    close(learner.w, t["w_final"], "w_final")
    close(learner.b, t["b_final"], "b_final")
    close(learner.classify(t["test_features"]), t["test_logits"], "test_logits", atol=1e-4)


@check
def upl_selection(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    one = t["logits"].softmax(dim=1)
    two = torch.stack([one, t["logits_second_model"].softmax(dim=1)]).mean(dim=0)
    close(two, t["ensemble_probabilities"])
    labeler = f"top_k(k={facts['k']})"
    close(parse_part(labeler, LABELERS)(one).confidence, t["confidence"])
    for probabilities, prefix in ((one, ""), (two, "ensemble_")):
        found = parse_part(labeler, LABELERS)(probabilities)
        assert torch.equal(found.index, t[f"{prefix}selected_index"])
        assert torch.equal(found.label, t[f"{prefix}selected_label"])
    chosen = set(t["selected_label"].tolist())
    assert sorted(set(range(facts["n_classes"])) - chosen) == facts["classes_without_samples"]

    # the learner's own labels, where the text features make the recorded logits of image features
    width, scale = facts["n_classes"], 100.0
    learner = create_learner("upl", clip_of(width, scale), [f"class {i}" for i in range(width)], labeler=labeler)
    monkeypatch.setattr(learner, "frozen_text", lambda templates=None: torch.eye(width))
    length = t["logits"].norm(dim=1, keepdim=True)
    monkeypatch.setattr(learner.clip, "similarity", lambda v, text: length * v @ text.T)
    pool = SimpleNamespace(bank=lambda source: FeatureBank(t["logits"][None], None), pool_classes=tuple(range(width)))
    found = learner.label(pool)
    assert torch.equal(found.index, t["selected_index"])
    assert torch.equal(found.label, t["selected_label"])


@check
def grip_leaderboard(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    probabilities = t["logits"].softmax(dim=1)
    for k, name in [(None, "all"), *((k, f"k{k}") for k in facts["ks"])]:
        found = parse_part(f"leaderboard(k={k})", LABELERS)(probabilities)
        assert torch.equal(found.index, t[f"index_{name}"])
        assert torch.equal(found.label, t[f"label_{name}"])
        if k:
            assert len(found.index) - len(found.index.unique()) == int(t[f"duplicates_{name}"])
    for name, schedule in facts["k_schedule"].items():
        images, classes, quantile = (int(number) for number in re.findall(r"\d+", name))
        assert growing_shots(100 // quantile, images, classes) == schedule
        rounds = [Growing().of_round(turn, 100 // quantile, images, classes) for turn in range(100 // quantile)]
        assert [each.wanted(images, classes) for each in rounds] == schedule[:-1]


@check
def tpt_features(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    text = t["text_features"].clone().requires_grad_()
    logits = facts["logit_scale"] * t["view_features"] @ text.T
    logits.retain_grad()
    close(logits, t["logits"], "logits", atol=1e-4)
    close(entropies(logits), t["view_entropy"], "entropy")
    kept = surest_views(logits, facts["selection_fraction"])
    assert len(kept) == facts["kept"]
    assert torch.equal(kept, t["selected_index"])
    loss = entropy_of_mean(logits[kept])
    close(loss, torch.tensor(facts["loss"]), "loss", rtol=1e-6)
    loss.backward()
    alike(logits.grad, t["grad_logits"], "grad_logits")
    alike(text.grad, t["grad_text_features"], "grad_text_features")


@check
def tpt(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    usual = inspect.signature(torch.optim.AdamW).parameters
    assert (list(usual["betas"].default), usual["eps"].default) == (facts["betas"], facts["eps"])
    settings = {"n_views": facts["views"], "fraction": facts["selection_fraction"], "steps_per_image": facts["steps"]}
    settings |= {"tuning_lr": facts["lr"], "tuning_decay": facts["weight_decay"], "ctx_init": facts["ctx_init"]}
    learner = create_learner("tpt", clip, facts["class_names"], **settings).eval()
    close(learner.prompt.ctx, t["ctx_init"], "ctx_init")
    with torch.no_grad():
        v, text = learner.image_features(t["views"]), learner.text_features()
    close(v, t["view_features"], "view_features")
    close(text, t["text_features_init"], "text_features_init")
    before = clip.similarity(v, text)
    close(before, t["logit_scale"] * v @ text.T, "logit_scale", atol=1e-4)
    close(before[:1], t["logits_before"], "logits_before", atol=1e-4)
    close(entropies(before), t["view_entropy"], "view_entropy")
    kept = surest_views(before, facts["selection_fraction"])
    assert len(kept) == facts["kept"]
    assert torch.equal(kept, t["selected_index"])

    leaf = text.clone().requires_grad_()
    entropy_of_mean(clip.similarity(v[kept], leaf)).backward()
    alike(leaf.grad, t["grad_text_features"], "grad_text_features")

    losses, gradients, step = [], [], torch.optim.AdamW.step

    def recorded(logits: Tensor) -> Tensor:
        losses.append(entropy_of_mean(logits))
        return losses[-1]

    def stepped(optimizer: torch.optim.AdamW) -> None:
        gradients.append(optimizer.param_groups[0]["params"][0].grad.clone())
        step(optimizer)

    monkeypatch.setattr(tpt_module, "entropy_of_mean", recorded)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    close(learner.tune(v), t["ctx_final"], "ctx_final")
    close(torch.stack(losses), torch.tensor(facts["losses"]), "losses", rtol=1e-6)
    alike(gradients[0], t["grad_ctx_step1"], "grad_ctx_step1")
    close(learner.predict({"views": t["views"][None]}), t["logits_after"], "logits_after", atol=1e-4)
    close(F.normalize(learner.text_features(), dim=-1), t["text_features_init"], "the start is left as it was")


class Watch(Edit):
    """Keeps the image tower's tokens before the first norm (key None), and as they enter each block (by its index)."""

    tower = "vision"

    def __init__(self) -> None:
        self.seen: dict[int | None, Tensor] = {}

    def embedded(self, x: Tensor) -> Tensor:
        self.seen[None] = x
        return x

    def tokens(self, layer: int, x: Tensor, rows: Rows) -> Tensor:
        self.seen[layer] = x
        return x


@check
def mask_prompt(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t, watch = case.facts["parameters"], case.tensors, Watch()
    names = read_config(CORE)["class_names"]
    learner = create_learner("mask_prompt", clip, names, depth=facts["depth"], blank=False)
    assert (clip.visual.layers, clip.visual.width) == (facts["layers"], facts["width"])
    assert learner.published_state()["visual.mask_embedding"].shape == t["mask_embedding"].shape
    learner.load_published({"visual.mask_embedding": t["mask_embedding"]})
    masks = t["mask"][:, None]
    assert torch.equal(seen_patches(masks.float(), clip.visual.patch_size), t["patch_visible"])
    learner.edits.append(watch)
    feature = learner.encode_images({"image": t["image"], "mask": masks})
    close(watch.seen[None], t["tokens_before_ln_pre"], "tokens_before_ln_pre")
    inside = case.under("tokens_into_block_")
    assert inside
    for block, tokens in inside.items():
        close(watch.seen[int(block)], tokens, f"tokens_into_block_{block}")
    close(feature, t["feature"], "feature")
    close(learner.encode_images({"image": t["image"]}), t["feature_no_mask"], "feature_no_mask")
    (feature * t["cotangent"]).sum().backward()
    alike(learner.tokens.grad, t["grad_mask_embedding"], "grad_mask_embedding")


@pytest.mark.parametrize("name", case_names(MORE))
def test_what_is_computed_on_features_equals_its_authors_code(
    name: str, golden_clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [prefix for prefix in CHECKS if name.startswith(prefix)]
    if not known:
        pytest.skip(f"no method here is compared with {name}")
    CHECKS[max(known, key=len)](read_case(MORE, name), golden_clip, monkeypatch)

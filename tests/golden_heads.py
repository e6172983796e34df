"""Checks of heads on frozen features against what their authors' code computes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_files import Case
from golden_numbers import Check, alike, clip_of, close
from torch import Tensor

from vlprompt import FrozenCLIP, PromptLearner, create_learner
from vlprompt.base.settings import TrainOptions
from vlprompt.data import FeatureBank
from vlprompt.learner.held_out import Selection
from vlprompt.learner.learning import EpochBatches
from vlprompt.methods.heads.clap import multipliers
from vlprompt.methods.heads.tip_adapter import cache_keys
from vlprompt.training import train
from vlprompt.training.options import make_optimizer, make_schedule
from vlprompt.training.schedules import Moment

CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def make_head(
    method: str, case: Case, monkeypatch: pytest.MonkeyPatch, text: Tensor, scale: float, **settings: Any
) -> PromptLearner:
    """A head on a CLIP of the case's width and logit scale, whose text features of the classes are these (C, D)."""

    def frozen_text(self, templates=None, normalise_first=True, normalise_last=True) -> Tensor:
        return F.normalize(text, dim=-1) if normalise_last else text

    monkeypatch.setattr(PromptLearner, "frozen_text", frozen_text)
    facts = case.facts["parameters"]
    names = [f"class {i}" for i in range(facts["n_classes"] if "n_classes" in facts else len(text))]
    return create_learner(method, clip_of(facts["width"], scale), names, **settings).eval()


@check
def tip_adapter(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    close(cache_keys(t["train_features_raw"]), t["cache_keys"], "cache_keys")
    bank = FeatureBank(t["train_features_raw"], t["train_labels"])
    for alpha, beta in facts["pairs_alpha_beta"]:
        settings = {"alpha": alpha, "beta": beta, "fit_views": facts["views"]}
        head = make_head("tip_adapter", case, monkeypatch, t["text_weights"], facts["logit_scale"], **settings)
        head.fit(bank)
        close(F.one_hot(head.labels.long(), facts["n_classes"]), t["cache_values"], "cache_values")
        name = f"logits_alpha_{alpha:g}_beta_{beta:g}"
        close(head.classify(t["test_features"]), t[name], name, atol=1e-4)

    search = facts["search"]
    ends = dict(zip(("beta", "alpha"), zip(search["scale"], search["step"], strict=True), strict=True))
    grid = {key: f"even(start=0.1, stop={stop}, n={n})" for key, (stop, n) in ends.items()}
    head = make_head("tip_adapter", case, monkeypatch, t["text_weights"], facts["logit_scale"], grid=grid)
    held_out = {"val": FeatureBank(t["val_features"][None], t["val_labels"])}
    selection = Selection("val")
    feed = SimpleNamespace(bank=lambda source="labelled", **_: held_out.get(source, bank), selection=selection)
    head.learn(feed, lambda *_, **__: [])
    assert (float(head.alpha), float(head.beta)) == pytest.approx((search["found_alpha"], search["found_beta"]))
    assert len(selection.searches[0].points) == math.prod(search["step"])


@check
def tip_adapter_f(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    steps, settings = facts["steps"], {key: facts[key] for key in ("alpha", "beta")}
    assert facts["schedule"] == f"cosine per step over {steps} steps"
    head = make_head("tip_adapter_f", case, monkeypatch, t["text_weights"], facts["logit_scale"], **settings)
    head.fit(FeatureBank(t["cache_keys"][None], t["train_labels"]))
    close(head.keys, t["cache_keys"], "cache_keys")
    close(head.classify(t["train_features"]), t["train_logits_step1"], "train_logits_step1", atol=1e-4)
    options = TrainOptions(
        steps=steps, lr=facts["lr"], weight_decay=facts["weight_decay"], schedule="cosine(per=step)",
        optimizer=f"adamw(eps={facts['eps']}, betas={tuple(facts['betas'])})",
    )  # fmt: skip
    keys, step = [], torch.optim.AdamW.step

    def stepped(optimizer: torch.optim.AdamW) -> None:
        step(optimizer)
        keys.append(head.keys.detach().clone())

    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    whole = {"image_features": t["train_features"], "label": t["train_labels"]}
    images = len(t["train_labels"])
    history = train(head, EpochBatches(lambda epoch, size: [dict(whole)], images, images), options)
    for i, (found, record) in enumerate(zip(keys, history, strict=True)):
        close(found, t[f"keys_step{i + 1}"], f"keys_step{i + 1}")
        close(torch.tensor(record["loss"]), torch.tensor(facts["losses"][i]), f"loss of step {i + 1}")
    name = f"test_logits_step{steps}"
    close(head.classify(t["test_features"]), t[name], name, atol=1e-4)


@check
def clip_adapter(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    scale, settings = math.exp(facts["logit_scale_log"]), {key: facts[key] for key in ("ratio", "reduction")}
    head = make_head("clip_adapter", case, monkeypatch, t["text_features_raw"], scale, **settings)
    head.load_published({"fc.0.weight": t["fc1"], "fc.2.weight": t["fc2"]})
    close(head.classify(t["features_raw"]), t["logits"], "logits", atol=1e-4)
    loss = head.loss({"image_features": t["features_raw"], "label": t["labels"]})["loss"]
    close(loss, torch.tensor(facts["loss"]), "loss")
    loss.backward()
    alike(head.down.weight.grad, t["grad_fc1"], "grad_fc1")
    alike(head.up.weight.grad, t["grad_fc2"], "grad_fc2")


@check
def clap_zslp_taskres(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    scale, text = math.exp(facts["logit_scale_log"]), t["text_features_raw"]
    batch = {"image_features": t["features_raw"], "label": t["labels"]}
    close(make_head("zs_lp", case, monkeypatch, text, scale).classify(t["features_raw"]), t["zero_shot_logits"],
          "zero_shot_logits", atol=1e-4)  # fmt: skip
    for constraint in ("l2", "l2_constant", "l2_corrected", "l2_balanced"):
        found = multipliers(t["zero_shot_logits"], t["labels"], constraint)
        close(found, t["lambda_" + constraint], "lambda_" + constraint)
    for method, moved, settings in (
        ("zs_lp", "prototypes", {}),
        ("clap", "prototypes", {"fit_views": 1}),
        ("taskres", "residual", {"alpha": facts["taskres_alpha"]}),
    ):
        head = make_head(method, case, monkeypatch, text, scale, **settings)
        head.learn(_Hand(FeatureBank(t["features_raw"][None], t["labels"])), lambda *_, **__: [])
        learnt = head.get_parameter(moved)
        learnt.data.copy_(t[moved])
        loss = head.loss(dict(batch))["loss"]
        close(loss, torch.tensor(facts[f"{method}_loss"]), f"{method}_loss")
        loss.backward()
        alike(learnt.grad, t[f"{method}_grad"], f"{method}_grad")
        close(head.classify(t["test_features_raw"]), t[f"{method}_test_logits"], f"{method}_test_logits", atol=1e-4)


class _Hand:
    """A feed of a bank in hand."""

    def __init__(self, bank: FeatureBank):
        self._bank = bank

    def bank(self, *_: Any, **__: Any) -> FeatureBank:
        return self._bank

    def batches(self, *_: Any, **__: Any) -> None:
        return None


@check
def cross_modal_lp(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    scale, raw = math.exp(facts["logit_scale_log"]), t["text_embeddings_raw"]  # (C, T, D)
    # the frozen model's own mean over templates, of embeddings that are the case's
    model = clip_of(facts["width"], scale)
    monkeypatch.setattr(model, "encode_text", lambda texts: raw.transpose(0, 1).flatten(0, 1))
    names, templates = [f"class {i}" for i in range(len(raw))], [f"{{}} {i}" for i in range(raw.shape[1])]
    head = create_learner("cross_modal_lp", model, names, templates=templates).eval()
    close(head.weight, t["w_init"], "w_init")
    close(head.texts, F.normalize(raw.transpose(0, 1).flatten(0, 1), dim=-1), "texts")
    assert head.text_labels.tolist() == list(range(len(raw))) * raw.shape[1]

    head.texts, head.text_labels = F.normalize(t["text_features_raw"], dim=-1), t["text_labels"]
    losses = head.loss({"image_features": t["image_features_raw"], "label": t["image_labels"]})
    close(losses["loss"], torch.tensor(facts["loss"]), "loss")
    options = TrainOptions(
        lr=facts["lr"], weight_decay=facts["weight_decay"],
        optimizer=f"adamw(eps={facts['eps']}, betas={tuple(facts['betas'])})",
    )  # fmt: skip
    optimizer = make_optimizer(head.parameter_groups(), options)
    losses["loss"].backward()
    alike(head.weight.grad, t["grad"], "grad")
    optimizer.step()
    close(head.weight, t["w_after_step"], "w_after_step")
    close(head.classify(t["test_features_raw"]), t["test_logits"], "test_logits", atol=1e-4)

    kind, warmup, steps, floor = published_schedule(facts["schedule"]["kind"])
    schedule = make_schedule(TrainOptions(schedule=f"{kind}(warmup={warmup}, warmup_from={floor}, per=step)"))
    for i, rate in enumerate(facts["schedule"]["lr_of_first_61_steps"]):
        assert schedule(facts["lr"], Moment(0, 1, i, steps)) == pytest.approx(rate, rel=1e-9), f"rate of step {i}"


def published_schedule(text: str) -> tuple[str, int, int, float]:
    """Our schedule, warm-up steps, steps and first rate of "cosine, linear warm-up 50 steps, 12800 iterations, …"."""
    kind, warm, steps, floor, _ = text.split(", ")
    assert (kind, warm.split()[:2]) == ("cosine", ["linear", "warm-up"])
    return "dassl", int(warm.split()[2]), int(steps.split()[0]), float(floor.split()[-1])

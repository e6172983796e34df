"""Checks of what learns from a pool of images without labels against what its authors' code computes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden_files import Case
from golden_heads import make_head
from golden_numbers import Check, alike, close
from torch import Tensor

from vlprompt import FrozenCLIP, PromptLearner
from vlprompt.base.parts import parse_part
from vlprompt.base.settings import TrainOptions
from vlprompt.data.splits import Item
from vlprompt.estimator.inputs import training_set
from vlprompt.learner.labelers import LABELERS, label_pool
from vlprompt.methods.unlabelled.tfup import alike as as_alike
from vlprompt.training import train
from vlprompt.training.feed import FeatureFeed, Loading

CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def pool_feed(learner: PromptLearner, rows: Tensor) -> FeatureFeed:
    """A feed of image features in hand (N, D), without labels."""
    data = training_set((), (), learner.class_names)
    items = [Item(str(i), 0, data.class_names[0]) for i in range(len(rows))]
    return FeatureFeed(replace(data, train=(), pool=tuple(items)), learner.clip, Loading(views=1), rows=rows)


@check
def pouf(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    objective = ["transport", f"information_maximization(weight={facts['im_weight']})"]
    scale, raw = math.exp(facts["logit_scale_log"]), t["text_features_raw"].clone().requires_grad_()
    learner = make_head("pouf", case, monkeypatch, raw, scale, objective=objective)
    monkeypatch.setattr(learner, "encode_text", lambda v=None: raw)
    close(learner.log_scale, torch.tensor([facts["logit_scale_log"]]), "log_scale")
    losses = learner.loss({"image_features": t["features"]})
    for ours, theirs in (("transport", "transport_loss"), ("information_maximization", "im_loss"), ("loss", "loss")):
        close(losses[ours], torch.tensor(facts[theirs]), theirs)
    losses["loss"].backward()
    alike(raw.grad, t["grad_text_features_raw"], "grad_text_features_raw")
    alike(learner.log_scale.grad, t["grad_logit_scale_log"], "grad_logit_scale_log")


@check
def tfup(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    raw, text = t["features_raw"], t["text_features_raw"]
    images, scale, shots = F.normalize(raw, dim=1), facts["logit_scale"], {"selected": "cache", "training": "training"}
    labelers = {
        name: f"prototype_kl(scale={facts['selection_scale']}{more})"
        for name, more in (("selected", ""), ("training", ", share=0.75, most=None"))
    }
    for name, written in labelers.items():
        labeler = parse_part(written, LABELERS)
        assert labeler.wanted(len(images), len(text)) == facts[f"{shots[name]}_shots"]
        found = label_pool(labeler, scale * images @ F.normalize(text, dim=1).T, scale)
        assert torch.equal(found.index.view(len(text), -1), t[f"{name}_index"])
        assert torch.equal(found.label, torch.arange(len(text)).repeat_interleave(t[f"{name}_index"].shape[1]))

    settings = {key: facts[key] for key in ("alpha", "beta")} | {"labeler": labelers["selected"]}
    learner = make_head("tfup", case, monkeypatch, text, scale, **settings)
    close(learner.classify(raw), t["zero_shot_logits"], "zero_shot_logits", atol=1e-4)
    learner.learn(pool_feed(learner, raw), lambda *_, **__: [])
    close(learner.keys, F.normalize(t["cache_keys_raw"], dim=1), "cache_keys")
    assert learner.labels.tolist() == t["cache_labels"].tolist()
    close(as_alike(images, learner.keys, learner.text_features()), t["similarity"], "similarity")
    close(learner.classify(raw), t["logits"], "logits", atol=1e-4)

    trained = make_head("tfup_t", case, monkeypatch, text, scale, first_labeler=labelers["training"], **settings)
    handed = []
    trained.learn(pool_feed(trained, raw), lambda module, batches, **_: handed.extend(batches(0)))
    index, label = t["training_index"].flatten(), t["training_labels"].flatten()
    seen = {(tuple(row.tolist()), y) for row, y in zip(raw[index], label.tolist(), strict=True)}
    of_batches = {
        (tuple(row.tolist()), int(y))
        for batch in handed
        for row, y in zip(batch["image_features"], batch["label"], strict=True)
    }
    assert of_batches
    assert of_batches <= seen  # all but a short last batch


@check
def tfup_t(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    found = parse_part(f"threshold(at={facts['threshold']})", LABELERS)(t["weak_logits"].softmax(dim=1))
    assert torch.equal(found.index, t["confident"].nonzero().squeeze(1))
    assert len(found.index) == facts["confident"]

    settings = {key: facts[key] for key in ("text_ratio", "threshold", "marginal_weight", "alpha", "beta")}
    settings |= {"ratio": facts["image_ratio"], "reduction": t["fc1"].shape[1] // t["fc1"].shape[0]}
    head = make_head("tfup_t", case, monkeypatch, t["text_features_raw"], 100.0, **settings)
    learnt = {"residual": head.residual, "fc1": head.down.weight, "fc2": head.up.weight}
    for name in ("fc1", "fc2"):
        learnt[name].data.copy_(t[name])
    head.keys, head.labels = F.normalize(t["cache_keys_raw"], dim=1), t["cache_labels"]
    plain = t["pool_features_raw"][t["phase2_index"]]
    phases = [
        {"image_features": t["phase1_features_raw"], "label": t["phase1_labels"]},
        {"image_features": t["phase2_strong_raw"], "unlabeled": {"image_features": plain}},
    ]
    steps, step = [], torch.optim.AdamW.step

    def stepped(optimizer: torch.optim.AdamW) -> None:
        step(optimizer)
        steps.append({name: parameter.detach().clone() for name, parameter in learnt.items()})
        if len(steps) == 1:
            close(head.weak_logits(plain), t["weak_logits"], "weak_logits", atol=1e-4)
            close(head.classify(t["phase2_strong_raw"]), t["strong_logits"], "strong_logits", atol=1e-4)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    assert facts["schedule"] == f"cosine per step, {len(phases)} steps"
    options = TrainOptions(
        epochs=len(phases), lr=facts["lr"], weight_decay=facts["weight_decay"], schedule="cosine(per=epoch)",
        optimizer=f"adamw(eps={facts['eps']})",
    )  # fmt: skip
    history = train(head, lambda epoch: [dict(phases[epoch])], options)
    assert [record["lr"] for record in history] == pytest.approx(facts["lr_of_each_step"])
    close(torch.tensor(history[0]["loss"]), torch.tensor(facts["loss_phase1"]), "loss_phase1")
    for ours, theirs in (("loss", "loss"), ("ce", "ce"), ("balance", "mg")):
        close(torch.tensor(history[1][ours]), torch.tensor(facts["loss_phase2"][theirs]), theirs)
    for i, found in enumerate(steps, start=1):
        for name, tensor in found.items():
            close(tensor, t[f"{name}_{i}"], f"{name}_{i}")
    close(head.classify(t["pool_features_raw"]), t["logits_text_only"], "logits_text_only", atol=1e-4)
    close(head.weak_logits(t["pool_features_raw"]), t["logits_with_cache"], "logits_with_cache", atol=1e-4)

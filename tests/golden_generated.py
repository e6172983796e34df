"""Checks of what makes class features for each image, or generates prompts, against what its authors' code computes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from golden_files import Case
from golden_numbers import Check, alike, clip_of, close
from torch import Tensor

from vlprompt import FrozenCLIP, create_learner
from vlprompt.base.settings import TrainOptions
from vlprompt.methods.prompts.cgan import SLOPE, Adversaries, Discriminator, Generator
from vlprompt.methods.prompts.mocoop import MoCoOp
from vlprompt.training import train

CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def mocoop_learner(case: Case, n_learnt: int, monkeypatch: pytest.MonkeyPatch) -> tuple[MoCoOp, Tensor]:
    """MoCoOp on the first of a case's classes, whose towers give the case's features, with the experts' as a leaf."""
    facts, t = case.facts["parameters"], case.tensors
    names = [f"class {i}" for i in range(facts["n_classes"])]
    count = iter(range(sum(facts["groups"])))
    groups = {str(g): [f"template {next(count)} of {{}}" for _ in range(n)] for g, n in enumerate(facts["groups"])}
    templates = [template for group in groups.values() for template in group]
    places = {template.format(name): (i, c) for i, template in enumerate(templates) for c, name in enumerate(names)}
    clip, hard = clip_of(facts["width"], math.exp(facts["logit_scale_log"])), t["hard_text_raw"]
    objective = [
        "ce",
        f"expert_text(weight={facts['text_weight']})",
        f"routing(weight={facts['gate_weight']}, boost={facts['gate_increment']})",
    ]
    settings = {"groups": groups, "active": facts["top_k"], "objective": objective}
    learner = create_learner("mocoop", clip, names[:n_learnt], **settings)
    assert isinstance(learner, MoCoOp)
    monkeypatch.setattr(clip, "encode_text", lambda texts: torch.stack([hard[places[text]] for text in texts]))
    raw = t["expert_text_raw"].clone().requires_grad_()
    if n_learnt < len(names):
        learner.see_names(names[n_learnt:])
    # experts whose contexts are alike long have their tokens in common, so each has a table of its own
    for g, expert in enumerate(learner.prompts):
        given = {id(learner.tokens[g]): raw[g, :n_learnt]}
        if learner.later_tokens:
            given[id(learner.later_tokens[g])] = raw[g, n_learnt:]
        monkeypatch.setattr(expert, "encode", lambda clip, tokens, given=given, **_: given[id(tokens)][None])
    with torch.no_grad():
        learner.w.copy_(t["w"])
        learner.router.weight.copy_(t["gate_weight"])
        learner.router.bias.copy_(t["gate_bias"])
    return learner, raw


@check
def mocoop(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    for kind, n_learnt in (("same", facts["n_classes"]), ("base", facts["n_base"])):
        learner, raw = mocoop_learner(case, n_learnt, monkeypatch)
        close(learner.prototypes(learner.class_names), t["group_prototypes"][:, :n_learnt], "group_prototypes")
        batch = {"image_features": t["image_features_raw"], "label": t["labels"]}
        v = learner.image_features(batch)
        close(learner.router(v), t["router_logits"], "router_logits")
        assert torch.equal(learner.router(v).topk(learner.config.active).indices, t["top2"])
        outputs = learner(batch)
        close(outputs.text_features, t[f"{kind}_mixed_text"], f"{kind}_mixed_text")
        close(outputs.logits, t[f"{kind}_logits"], f"{kind}_logits", atol=1e-4)
        losses = learner.loss(batch)
        for ours, theirs in {"ce": "ce", "expert_text": "text", "routing": "gate", "loss": "total"}.items():
            close(losses[ours], torch.tensor(facts["losses"][kind][theirs]), f"{kind} {theirs}")
        learner.backward(losses)
        alike(learner.router.weight.grad, t[f"{kind}_grad_gate_weight"], "grad_gate_weight")
        alike(learner.router.bias.grad, t[f"{kind}_grad_gate_bias"], "grad_gate_bias")
        alike(learner.w.grad, t[f"{kind}_grad_w"], "grad_w")
        # where the authors encode all classes a second time for the text loss, ours are encoded once
        expected = t.get(f"{kind}_grad_expert_raw_text_loss", torch.zeros_like(raw)).clone()
        expected[:, :n_learnt] += t[f"{kind}_grad_expert_raw"]
        alike(raw.grad, expected, "grad_expert_raw")


@check
def spg_cgan(case: Case, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, t = case.facts["parameters"], case.tensors
    width, shape = facts["feature_width"], (facts["tokens"], facts["token_width"])
    names = ("d_weight", "d_bias", "d_ends", "g_weight", "g_bias", "g_last_biases")
    theirs = ("D_weight", "D_bias", "D_first_and_last", "G_weight", "G_bias", "G_last_bn_bias_and_output_bias")
    limits = {ours: facts["clipping"][key] for ours, key in zip(names, theirs, strict=True)}
    assert facts["leaky_slope"] == SLOPE
    other = F.normalize(t["fake_features_raw"], dim=-1)
    for suffix, clipping in (("", {}), ("_clipped", limits)):
        generator = Generator(width, facts["noise_width"], facts["generator_dim"], shape)
        discriminator = Discriminator(width, facts["discriminator_dim"], shape, dropout=0.0)
        generator.load_state_dict(case.under("G."), strict=False)
        discriminator.load_state_dict(case.under("D."))
        norm = generator.model[3]
        assert (norm.eps, norm.momentum) == (facts["bn_eps"], facts["bn_momentum"])
        context = generator.eval()(t["noise"], other)
        close(context, t["generated_eval"], "generated_eval")
        close(discriminator(context, other), t["validity_eval"], "validity_eval")

        adversaries = Adversaries(
            generator,
            discriminator,
            t["prompt_labels"],
            facts["noise_width"],
            lambda batch: F.normalize(batch["image_features"], dim=-1),
            clipping,
        )
        monkeypatch.setattr(adversaries, "draw", lambda count: t["noise"])
        fake = {"image_features": t["fake_features_raw"]}
        batch = {"image_features": t["real_features_raw"], "domain": t["domain"], "unlabeled": fake}
        how = {"lr": facts["lr"], "weight_decay": facts["weight_decay"], "optimizer": "adamw", "schedule": "constant"}
        options = TrainOptions(epochs=1, **how)
        seen = []
        generator.register_forward_hook(lambda module, given, made, seen=seen: seen.append(made))
        (told,) = train(adversaries, [[batch, fake]].__getitem__, options)
        close(seen[0], t["generated_train"], "generated_train")
        kind = "_with_clipping" if clipping else ""
        found = torch.tensor([told["discriminator"], told["generator"]])
        close(found, torch.tensor([facts[f"d_loss{kind}"], facts[f"g_loss{kind}"]]), f"losses{kind}")
        after = {"G": generator.state_dict(), "D": discriminator.state_dict()}
        compared = 0
        for name, tensor in t.items():
            model, _, key = name.partition(f"_after{suffix}.")
            if model in after and key:
                close(after[model][key], tensor, name)
                compared += 1
        assert compared >= 5

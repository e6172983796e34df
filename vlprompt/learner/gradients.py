"""Gradient rules: what is handed to the optimiser when it is not the plain gradient of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlprompt.base.parts import Part, parse_part
from vlprompt.base.registry import Registry
from vlprompt.errors import VlpromptError
from vlprompt.learner.facts import Facts
from vlprompt.learner.regulation import Regulator


class GradientRule(Part):
    """Fills the parameters' gradients from named losses."""

    def check(self, parameters: Sequence[nn.Parameter]) -> str:
        """Raise one sentence if it is of no use to these learnables; return what tells a file that it reads."""
        return ""

    def __call__(self, losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        """Set ``grad`` of each parameter."""
        raise NotImplementedError


GRADIENT_RULES: Registry[type[GradientRule]] = Registry("gradient rule", shipped="methods")


@GRADIENT_RULES.register("prograd")
class ProGradRule(GradientRule):
    """Keep what does not conflict with general knowledge (ProGrad): project the loss's gradient where it does.

    With g_d of the loss and g_k of the reference: g_d if <g_d, g_k> >= 0, else g_d - λ·<g_d, ĝ_k>·ĝ_k. A zero reference
    gradient conflicts with nothing.

    Args:
        weight: λ; 1 leaves no part of g_d along g_k.
        reference: the objective whose gradient is general knowledge; it must be among the learner's objectives.
        scope: ``tensor`` projects each parameter by itself, as the authors' code does; ``all`` projects them as one.
    """

    def __init__(
        self, weight: float = 1.0, reference: str = "distillation", scope: Literal["tensor", "all"] = "tensor"
    ):
        if scope not in ("tensor", "all"):
            raise VlpromptError(f"unknown scope '{scope}' of prograd: use tensor or all")
        self.weight, self.reference, self.scope = weight, reference, scope

    def __call__(self, losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        """Set ``grad`` of each parameter."""
        if self.reference not in losses:
            raise VlpromptError(
                f"prograd needs the objective '{self.reference}': add {self.reference}(weight=0) to objective"
            )
        learnt = torch.autograd.grad(losses["loss"], parameters, retain_graph=True, materialize_grads=True)
        general = torch.autograd.grad(losses[self.reference], parameters, materialize_grads=True)
        if self.scope == "all":
            sizes = [g.numel() for g in learnt]
            flat = self.project(*(torch.cat([g.flatten() for g in gs]) for gs in (learnt, general)))
            projected = [piece.view_as(g) for piece, g in zip(flat.split(sizes), learnt, strict=True)]
        else:
            projected = [self.project(d, k) for d, k in zip(learnt, general, strict=True)]
        for parameter, gradient in zip(parameters, projected, strict=True):
            parameter.grad = gradient

    def project(self, learnt: Tensor, general: Tensor) -> Tensor:
        """Apply the rule to two gradients of one shape."""
        along, size = (learnt * general).sum(), general.pow(2).sum()
        if along >= 0 or size == 0:
            return learnt
        return learnt - self.weight * along / size * general


@GRADIENT_RULES.register("regulated", paper="GRAM, arXiv:2303.06571", fidelity="reconstruction")
class RegulatedRule(GradientRule):
    """Turn each gradient as a function that was learnt over many tasks does (GRAM, reconstructed).

    Args:
        file: that ``vlprompt meta-train`` wrote. It is read where a learner is made by these settings, or else when the
            first gradient is asked for, since a saved learner may come from anyone and is tested without.
    """

    def __init__(self, file: str):
        self.file = file
        self.regulator: Regulator | None = None

    def check(self, parameters: Sequence[nn.Parameter]) -> str:
        """Read the file, which must know gradients of all widths, and return its hash."""
        regulator = self._read()
        for parameter in parameters:
            regulator.of(parameter)
        return regulator.sha256

    def __call__(self, losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        """Set ``grad`` of each parameter."""
        gradients = torch.autograd.grad(losses["loss"], parameters, materialize_grads=True)
        regulator = self._read().to(parameters[0].device)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = regulator(gradient)

    def _read(self) -> Regulator:
        if self.regulator is None:
            self.regulator = Regulator.load(Path(self.file).expanduser())
        return self.regulator


def facts_with_rule(config: Any, facts: Facts) -> Facts:
    """What a learner of these facts is with its gradient rule: a reconstruction, where that is one."""
    if config.gradient_rule is None:
        return facts
    held = GRADIENT_RULES.info(parse_part(config.gradient_rule, GRADIENT_RULES).name).facts.get("fidelity")
    return replace(facts, fidelity="reconstruction") if held == "reconstruction" else facts

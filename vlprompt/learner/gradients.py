"""Gradient rules: the gradient that the optimizer gets, if it is not simply that of the loss."""

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
    """Computes the parameters' gradients from named losses."""

    def check(self, parameters: Sequence[nn.Parameter]) -> str:
        """Raise ``VlpromptError`` if it does not work for these learnables; return what identifies a file it reads."""
        return ""

    def __call__(self, losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        """Set ``grad`` of each parameter."""
        raise NotImplementedError


GRADIENT_RULES: Registry[type[GradientRule]] = Registry("gradient rule", shipped="methods")


@GRADIENT_RULES.register("prograd")
class ProGradRule(GradientRule):
    """ProGrad's projection: removes the part of the gradient that conflicts with general knowledge.

    With g_d the gradient of the loss and g_k that of the reference: g_d if <g_d, g_k> >= 0, else g_d - λ·<g_d,
    ĝ_k>·ĝ_k. A zero reference gradient conflicts with nothing.

    Args:
        weight: λ; 1 leaves no part of g_d along g_k.
        reference: the objective whose gradient is general knowledge; it must be among the learner's objectives.
        scope: ``tensor`` projects each parameter separately, as the authors' code does; ``all`` projects them as one.
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
    """Transforms each gradient with a function that was meta-learnt over many tasks (GRAM, reconstructed).

    Args:
        file: written by ``vlprompt meta-train``. It is read when a learner is created with this setting, but for a
            saved learner, which may come from anyone and does not need it for testing, when the first gradient is
            computed.
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

"""Optimisers as parts: ``sgd``, ``sgd(nesterov=True)``, ``adamw(eps=1e-4)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch

from vlprompt.base.parts import Part
from vlprompt.base.registry import Registry
from vlprompt.learner.learning import ParameterGroup

Make = Callable[..., torch.optim.Optimizer]  # one of torch's classes, whose arguments differ


class Optimizer(Part):
    """Creates a torch optimizer for groups of learnables."""

    make: Make

    def __init__(self, **arguments: Any):
        self.arguments = arguments

    def __call__(self, groups: Sequence[ParameterGroup], lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """Create the optimizer; groups keep their ``lr_scale``, and their own weight decay if they have one."""
        described = [
            {
                "params": list(group.parameters),
                "lr": lr * group.lr_scale,
                "lr_scale": group.lr_scale,
                "weight_decay": weight_decay if group.weight_decay is None else group.weight_decay,
            }
            for group in groups
        ]
        # a fused step passes over a tensor once, the default on CPUs up to seven times; GPUs group them by default
        fused = all(p.device.type == "cpu" for group in groups for p in group.parameters)
        made = self.make(described, lr=lr, **({"fused": True} if fused else {}), **self.arguments)
        if fused:
            made.register_step_pre_hook(_lay_out_alike)
        return made


def _lay_out_alike(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Give each gradient its parameter's strides, which the fused kernels assume without a check."""
    for p in chain.from_iterable(group["params"] for group in optimizer.param_groups):
        if p.grad is not None and p.grad.stride() != p.stride():
            p.grad = torch.empty_like(p).copy_(p.grad)


OPTIMIZERS: Registry[type[Optimizer]] = Registry("optimizer")


@OPTIMIZERS.register("sgd")
class SGD(Optimizer):
    """Stochastic gradient descent.

    Args:
        momentum: replaces the recipe's ``momentum``.
        nesterov: whether to use Nesterov momentum; the published recipes do not.
    """

    make = torch.optim.SGD

    def __init__(self, momentum: float | None = None, nesterov: bool = False):
        super().__init__(nesterov=nesterov, **({} if momentum is None else {"momentum": momentum}))


@OPTIMIZERS.register("adam")
class Adam(Optimizer):
    """Adam, with weight decay added to the gradient.

    Args:
        betas: decay rates of both moments.
        eps: added to the root of the second moment.
    """

    make: Make = torch.optim.Adam

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(betas=betas, eps=eps)


@OPTIMIZERS.register("adamw")
class AdamW(Adam):
    """Adam with decoupled weight decay; arguments as for ``adam``."""

    make = torch.optim.AdamW

"""Optimisers as parts: ``sgd``, ``sgd(nesterov=True)``, ``adamw(eps=1e-4)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vlprompt.base.parts import Part
from vlprompt.base.registry import Registry
from vlprompt.learner.learning import ParameterGroup

Make = Callable[..., torch.optim.Optimizer]  # a class of torch's, whose arguments differ


class Optimizer(Part):
    """Makes a torch optimiser of groups of learnables."""

    make: Make

    def __init__(self, **arguments: Any):
        self.arguments = arguments

    def __call__(self, groups: Sequence[ParameterGroup], lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """The optimiser; each group keeps its ``lr_scale``, and its own weight decay where it has one."""
        described = [
            {
                "params": list(group.parameters),
                "lr": lr * group.lr_scale,
                "lr_scale": group.lr_scale,
                "weight_decay": weight_decay if group.weight_decay is None else group.weight_decay,
            }
            for group in groups
        ]
        return self.make(described, lr=lr, **self.arguments)


OPTIMIZERS: Registry[type[Optimizer]] = Registry("optimizer")


@OPTIMIZERS.register("sgd")
class SGD(Optimizer):
    """Stochastic gradient descent.

    Args:
        momentum: in place of the recipe's ``momentum``.
        nesterov: whether the momentum looks ahead; the published recipes' does not.
    """

    make = torch.optim.SGD

    def __init__(self, momentum: float | None = None, nesterov: bool = False):
        super().__init__(nesterov=nesterov, **({} if momentum is None else {"momentum": momentum}))


@OPTIMIZERS.register("adam")
class Adam(Optimizer):
    """Adam, with weight decay as a part of the gradient.

    Args:
        betas: decay of both moments.
        eps: added to the root of the second moment.
    """

    make: Make = torch.optim.Adam

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(betas=betas, eps=eps)


@OPTIMIZERS.register("adamw")
class AdamW(Adam):
    """Adam with decoupled weight decay; arguments as Adam's."""

    make = torch.optim.AdamW

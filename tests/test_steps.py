"""What makes a training step cheap gives the numbers of what is plain."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlprompt.base.parts import parse_part
from vlprompt.learner.learning import ParameterGroup
from vlprompt.learner.unit import unit
from vlprompt.training.optimizers import OPTIMIZERS

PLAIN = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)])
def test_features_of_length_one_have_the_gradient_of_torchs(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.equal(unit(x), F.normalize(x, dim=-1))
    assert torch.equal(unit(x.detach()), F.normalize(x.detach(), dim=-1))
    assert torch.autograd.gradcheck(unit, x)


def test_a_feature_of_length_zero_has_the_gradient_of_torchs() -> None:
    found, expected = torch.zeros(2, 3).requires_grad_(), torch.zeros(2, 3).requires_grad_()
    unit(found).sum().backward()
    F.normalize(expected, dim=-1).sum().backward()
    assert torch.equal(found.grad, expected.grad)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_step_in_one_pass_is_the_plain_step_whatever_the_gradients_strides(name: str, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=generator)
    found, expected = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    fused = parse_part(name, OPTIMIZERS)([ParameterGroup([found])], lr=0.1, weight_decay=0.01)
    plain = PLAIN[name]([expected], lr=0.1, weight_decay=0.01)
    for _ in range(3):
        gradient = torch.randn(3, 4, generator=generator).T if transposed else torch.randn(4, 3, generator=generator)
        found.grad, expected.grad = gradient, gradient.clone()
        fused.step()
        plain.step()
    assert fused.param_groups[0]["fused"]
    torch.testing.assert_close(found, expected)

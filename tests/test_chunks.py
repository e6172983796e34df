"""As many classes are encoded at a time as memory takes, with the same features and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlprompt import VlpromptError, create_learner
from vlprompt.base.environment import total_memory
from vlprompt.clip import chunks, text
from vlprompt.learner import make_config
from vlprompt.runs.settings import resolve
from vlprompt.testing import small_clip

NAMES = [f"{kind} {i}" for kind in ("owl", "small green parrot", "hawk") for i in range(7)]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many classes were encoded together, each time."""
    seen: list[int] = []
    encode = text._encode_suffix

    def noting(*arguments: object) -> Tensor:
        seen.append(len(arguments[2].lengths))  # type: ignore[attr-defined]
        return encode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(text, "_encode_suffix", noting)
    return seen


def little(monkeypatch: pytest.MonkeyPatch, megabytes: float) -> None:
    monkeypatch.setattr(chunks, "total_memory", lambda device: int(megabytes * 2**20))


def test_little_memory_changes_nothing_but_how_many_go_together(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    clip = small_clip()
    whole, parts = (create_learner("coop", clip, NAMES, n_ctx=4, text_chunk=chunk) for chunk in (None, "auto"))
    features = whole.train().text_features()
    assert sizes == [21]
    assert torch.equal(parts.train().text_features(), features)  # there is room for all
    sizes.clear()
    little(monkeypatch, 2)
    chunked = parts.text_features()
    assert max(sizes) < 21
    assert max(sizes) - min(sizes) < len(sizes)  # chunks of one size, as far as that goes
    torch.testing.assert_close(chunked, features)
    for learner, found in ((whole, features), (parts, chunked)):
        found.square().mul(torch.arange(found.numel()).view_as(found)).sum().backward()
        assert learner.prompt.ctx.grad is not None
    torch.testing.assert_close(parts.prompt.ctx.grad, whole.prompt.ctx.grad, rtol=1e-3, atol=1e-3)


def test_without_a_gradient_nobody_has_to_ask(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    learner = create_learner("coop", small_clip(), NAMES, n_ctx=4)
    little(monkeypatch, 0.2)
    assert len(learner.classifier_matrix()) == 21
    assert len(sizes) > 1
    sizes.clear()
    learner.text_features()  # for whose gradient one asked for all at once
    assert sizes == [21]


def test_a_number_stays_and_a_single_class_is_the_least(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    little(monkeypatch, 1e-3)
    create_learner("coop", small_clip(), NAMES, n_ctx=4, text_chunk=20).text_features()
    assert sizes == [20, 1]
    sizes.clear()
    create_learner("coop", small_clip(), NAMES, n_ctx=4, text_chunk="auto").text_features()
    assert sizes == [1] * 21


def test_21000_classes_of_vit_b_16_leave_room_on_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tower:
        layers, width, context_length = 12, 512, 77

    lengths = torch.full((21_000,), 8)
    prompts = text.Prompts(torch.empty(1, 17, 1), torch.empty(21_000, 12, 1), lengths)
    little(monkeypatch, 8 * 1024)
    found = chunks.classes_at_once(Tower(), prompts, "auto", shared=True)  # type: ignore[arg-type]
    assert found is not None
    assert found * 8 * 512 * 12 * chunks.KEPT < 2**30 + 2**20
    assert found > 100  # enough to keep a processor busy


def test_it_is_a_setting_like_others() -> None:
    assert resolve({"method": "coop", "text_chunk": "auto"}).method_settings["text_chunk"] == "auto"
    with pytest.raises(
        VlpromptError, match="text_chunk must be a whole number or one of auto or null, not 'automatic'"
    ):
        make_config("coop", {"text_chunk": "automatic"})
    assert total_memory(torch.device("cpu")) > 2**28

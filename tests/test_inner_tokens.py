"""TCP, MMA, MMRL: what enters the towers in the middle, beyond their authors' numbers and the conformance suite."""

from __future__ import annotations

import pytest
import torch

from vlprompt import VlpromptError
from vlprompt.methods.edits import mma
from vlprompt.testing import NAMES, close, fit, logits_of, make, small_clip, toy_batch


def test_tcp_is_coop_where_what_flows_goes_on() -> None:
    learner, coop = make("tcp", class_weight=0.0), make("coop", n_ctx=4)
    coop.load_state_dict({"prompt.ctx": learner.prompt.ctx.detach()})
    assert close(logits_of(learner), logits_of(coop))
    assert not close(logits_of(make("tcp")), logits_of(coop), 1e-3)


def test_tcp_is_zero_shot_where_the_context_is_the_templates_words() -> None:
    clip = small_clip()
    learner = make("tcp", clip, class_weight=0.0, n_ctx=4, prompt_template="person doing {}, a type of sport.")
    learner.prompt.ctx.data = clip.word_embeddings("a photo of a")
    plain = make("zero_shot", clip, template=["a photo of a person doing {}, a type of sport."])
    assert close(learner.classifier_matrix(), plain.classifier_matrix())


def test_tcps_teacher_template_is_that_of_the_tokens_and_of_the_anchor() -> None:
    clip, template = small_clip(), "a sketch of {}."
    learner = make("tcp", clip, teacher_template=template)
    assert torch.equal(learner.frozen_text(), make("zero_shot", clip, template=[template]).classifier_matrix())
    own = learner.class_aware().own
    fit(learner, 3)
    learner.set_class_names(NAMES[::-1])
    assert own.shape == (1, len(NAMES), 4, clip.text.width)
    assert not close(learner.class_aware().own.flip(1), own, 1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_layer": 3}, "set class_layer to a number from 1 to 2, not 3"),
        ({"class_layer": 0}, "class_layer must be at least 1"),
        ({"class_weight": 1.5}, "class_weight must be"),
        ({"prompt_template": "no name."}, "a template must hold {} once"),
        ({"teacher_template": "imagenet80"}, "a template must hold {} once"),
    ],
    ids=str,
)
def test_what_tcp_cannot_have_is_told_in_one_sentence(settings: dict, message: str) -> None:
    with pytest.raises(VlpromptError) as error:
        make("tcp", **settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_mma_is_zero_shot_where_its_branches_give_nothing() -> None:
    clip = small_clip()
    learner = make("mma", clip)
    for part in (learner.text_adapter, learner.visual_adapter):
        for branch in part.values():
            torch.nn.init.zeros_(branch.up.weight)
    assert close(logits_of(learner), logits_of(make("zero_shot", clip)))


@pytest.mark.parametrize("scale", [1e-3, 0.5])
def test_mmas_gradients_are_those_of_autograd_but_for_the_scale(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last block's branches, which lead to no other's input."""

    def gradients() -> dict[str, torch.Tensor]:
        learner = make("mma", adapter_scale=scale)
        learner.backward(learner.loss(toy_batch()))
        return {name: parameter.grad for name, parameter in learner.named_parameters() if ".3." in name}

    ours = gradients()
    monkeypatch.setattr(mma, "scaled", lambda x, forth, back: x * forth)
    plain = gradients()
    assert len(ours) == 10
    assert all(close(scale * ours[name], plain[name], 1e-4) for name in ours)


@pytest.mark.parametrize(("start", "end"), [(3, 2), (1, 4), (4, None)])
def test_blocks_that_are_not_there_are_refused(start: int, end: int | None) -> None:
    with pytest.raises(VlpromptError, match="has 3 blocks in its shallower tower"):
        make("mma", adapter_start=start, adapter_end=end)

"""TCP, MMA, MMRL: what enters the towers in the middle, beyond their authors' numbers and the conformance suite."""

from __future__ import annotations

import pytest
import torch

from vlprompt import VlpromptError
from vlprompt.learner.held_out import make_selection, say_seen
from vlprompt.methods.edits import mma
from vlprompt.methods.prompts import mmrl
from vlprompt.testing import NAMES, NEW_NAMES, close, fit, logits_of, make, small_clip, toy_batch

FAMILIAR = ("trained", "shifted", "new")


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


def test_a_deeper_text_tower_has_branches_by_itself() -> None:
    learner = make("mma", small_clip(layers=5), adapter_start=3, adapter_end=4)
    assert (list(learner.text_adapter), list(learner.visual_adapter)) == (["3", "4"], ["3"])
    assert list(make("mma", small_clip(layers=5)).shared_adapter) == ["2", "3"]
    learner.backward(learner.loss(toy_batch()))
    assert all(parameter.grad is not None for parameter in learner.parameters())


@pytest.mark.parametrize(("start", "end"), [(3, 2), (1, 4), (4, None)])
def test_blocks_that_are_not_there_are_refused(start: int, end: int | None) -> None:
    with pytest.raises(VlpromptError, match="has towers of 3 and 3 blocks, and adapters were asked for"):
        make("mma", adapter_start=start, adapter_end=end)


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_the_class_part_is_zero_shot_at_the_published_scale_where_tokens_are_not_seen(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = small_clip()
    learner = make(method, clip).eval()
    monkeypatch.setattr(mmrl.InsertedTokens, "tokens", lambda self, layer, x, rows: x)
    with torch.no_grad():
        v = learner.image_features(toy_batch()["image"][:2])
        found = learner.parts(v, learner.text_features())
    assert list(found) == ["class"]
    plain = logits_of(make("zero_shot", clip))[:2]
    assert close(found["class"], 100 / clip.logit_scale * plain)
    assert make(method, clip, scale=None).logit_scale == clip.logit_scale


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp"])
def test_the_rule_is_by_what_the_classes_are_and_keeps_both_parts(method: str) -> None:
    learner = make(method, alpha=0.6).eval()
    images = {"image": toy_batch()["image"]}
    with torch.no_grad():
        found = {known: (setattr(learner, "familiar", known), learner(images))[1] for known in FAMILIAR}
    parts = found["trained"].parts
    assert list(parts) == ["class", "rep"]
    assert close(found["trained"].logits, 0.6 * parts["class"] + 0.4 * parts["rep"])
    assert all(torch.equal(found[known].logits, parts["class"]) for known in ("shifted", "new"))
    learner.set_class_names(NEW_NAMES)
    assert learner.familiar == "new"


def test_nothing_of_the_second_head_is_learnt_where_the_loss_leaves_it_out() -> None:
    learner = make("mmrl", objective=["ce"], alpha=1.0)
    learner.backward(learner.loss(toy_batch()))
    assert not learner.proj_rep.grad.any()
    assert learner.tokens.grad.norm() > 0


def test_the_second_projection_starts_at_random_in_mmrl_and_at_clips_in_mmrlpp() -> None:
    clip = small_clip()
    own = clip.visual.projection
    assert not close(make("mmrl", clip).second_projection(), own, 0.5)
    assert torch.equal(make("mmrlpp", clip).second_projection(), own)


def test_blended_tokens_are_those_that_flow_where_nothing_new_has_a_share() -> None:
    learner, flowing = make("mmrlpp", beta=0.0), make("mmrlpp", rep_end=1)
    for name, parameter in flowing.named_parameters():
        parameter.data = learner.get_parameter(name).data
    assert flowing.blocks == range(1)
    assert close(logits_of(learner), logits_of(flowing))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("mmrl", {"rep_start": 3, "rep_end": 2}, "has 3 blocks in its shallower tower"),
        ("mmrlpp", {"rep_end": 4}, "has 3 blocks in its shallower tower"),
        ("mmrl", {"alpha": 1.1}, "alpha must be"),
        ("mmrl", {"head": "dept"}, "has a head of its own"),
        ("mmrlpp", {"objective": ["ce"]}, "which nothing in its objective trains: add part_ce(part=rep, weight=0.3)"),
        ("coop", {"objective": ["ce", "part_ce(part=rep)"]}, "of logits called rep, and coop's are in one piece"),
        ("mmrl", {"objective": ["ce", "part_ce(part=linear)"], "alpha": 1.0}, "and mmrl's are class and rep"),
    ],
    ids=str,
)
def test_what_mmrl_cannot_have_is_told_in_one_sentence(method: str, settings: dict, message: str) -> None:
    with pytest.raises(VlpromptError) as error:
        make(method, **settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_values_that_authors_chose_by_dataset_are_marked_wherever_their_numbers_stand() -> None:
    chosen = make_selection("paper", "mmrl", make("mmrl").facts)
    assert (chosen.sources, chosen.saw) == ((), {"unnamed"})
    assert say_seen(sorted(chosen.saw)) == "saw images that its authors do not name"

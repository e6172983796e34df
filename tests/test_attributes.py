"""Attribute words inside a context: where their tokens stand, what published slicing makes of them, what is refused."""

from __future__ import annotations

import pytest
import torch

from vlprompt import VlpromptError, create_learner, list_methods, method_info
from vlprompt.clip.edits import FullLength
from vlprompt.learner.recording import TextRecorder, extra_edits
from vlprompt.testing import NAMES, close, logits_of, loss_of, make, small_clip

LONG = "playfulness"  # two tokens


def prefix_of(**settings: object) -> tuple[torch.Tensor, torch.nn.Module]:
    """The prefix (P, d_t) that enters the text tower, and the prompt that it is of."""
    learner, recorder = make("coop", n_ctx=3, **settings), TextRecorder()
    with torch.no_grad(), extra_edits(learner, recorder):
        learner.encode_text()
    return recorder.calls[0].prefix[0], learner.prompt


def test_every_token_of_a_word_stands_between_its_vectors_and_what_follows() -> None:
    clip = small_clip()
    found, prompt = prefix_of(attributes=[LONG, "energy"], n_att=2)
    first, second = prompt.attributes.blocks
    words = [clip.word_embeddings(word) for word in (LONG, "energy")]
    assert [len(word) for word in words] == [2, 1]
    expected = [clip.start_embedding(), first, words[0], second, words[1], prompt.ctx]
    assert torch.equal(found, torch.cat(expected))
    assert first.std() < 0.02 < prompt.ctx.std() * 2


def test_published_slicing_takes_one_token_a_word_and_leaves_a_placeholder_for_each_other() -> None:
    clip = small_clip()
    found, prompt = prefix_of(attributes=[LONG, "energy"], n_att=2, published_slicing=True)
    first, second = prompt.attributes.blocks
    half, placeholder = clip.word_embeddings(LONG)[:1], clip.word_embeddings("X")
    expected = [clip.start_embedding(), first, half, second, placeholder, prompt.ctx, placeholder]
    assert torch.equal(found, torch.cat(expected))
    alike = [prefix_of(attributes=["color", "shape"], published_slicing=flag)[0] for flag in (True, False)]
    assert torch.equal(*alike), "words of one token are the same both ways"


def test_without_words_a_design_is_what_it_was() -> None:
    assert make("maple", attributes=[]).state_dict().keys() == make("maple").state_dict().keys()


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("vpt", {"attributes": ["color"]}, "unknown key 'attributes'"),
        ("coop", {"attributes": ["color", " "]}, "attributes must be words, and ' ' is not a word"),
        ("coop", {"attributes": ["color"], "n_att": 0}, "n_att=0 leaves nothing to learn"),
        ("coop", {"published_slicing": True}, "give some, as in"),
        ("coop", {"attributes": ["color"], "n_att": 80}, "leave no room|shorten the class name"),
        ("coop", {"attributes": "color"}, "attributes must be a list of texts"),
    ],
)
def test_what_is_no_attribute_says_why(method: str, settings: dict, message: str) -> None:
    with pytest.raises(VlpromptError, match=message) as error:
        create_learner(method, small_clip(), NAMES, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [name for name in list_methods() if "attributes" in method_info(name)["config"]])
def test_every_design_with_a_text_context_learns_what_stands_before_a_word(method: str) -> None:
    settings = {"n_prompts": 4, "n_ctx": 4} if method == "proda" else {}
    learner = make(method, attributes=["color", LONG], n_att=2, **settings)
    trained = {id(p) for group in learner.parameter_groups() for p in group.parameters}
    assert trained == {id(p) for p in learner.trainable_parameters()}
    learner.backward(loss_of(learner))
    blocks = [p for name, p in learner.named_parameters() if "attributes.blocks" in name]
    assert len(blocks) in (2, 6)
    assert all(bool(block.grad.any()) for block in blocks)
    with extra_edits(learner.eval(), FullLength()):
        expected = logits_of(learner)
    learner.clear_cache()
    assert close(logits_of(learner), expected, 2e-5)

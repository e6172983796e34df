"""The rules by which a pool is labelled, beyond their authors' numbers, and what is said where a pool is odd."""

from __future__ import annotations

import pytest
import torch

from vlprompt import VlpromptError
from vlprompt.base.parts import parse_part
from vlprompt.learner.labelers import LABELERS, label_by, label_pool

SOFT = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.2, 0.3], [0.9, 0.1, 0.0], [0.2, 0.1, 0.7]])


def test_a_class_that_nothing_is_taken_for_gets_no_pseudo_label() -> None:
    found = parse_part("top_k(k=2)", LABELERS)(SOFT)
    assert found.index.tolist() == [2, 0, 3]
    assert found.label.tolist() == [0, 0, 2]
    assert found.confidence.tolist() == pytest.approx([0.9, 0.6, 0.7])


def test_a_leaderboard_hands_an_image_that_its_class_rejects_to_every_other() -> None:
    # 0 fills board 0; 1 does not beat it and gets both other boards; 2 displaces 0, who is offered to none; 3 beats 1
    found = parse_part("leaderboard(k=1)", LABELERS)(SOFT)
    assert list(zip(found.label.tolist(), found.index.tolist(), strict=True)) == [(0, 2), (1, 1), (2, 3)]


def test_a_board_that_fills_has_its_latest_entry_to_beat() -> None:
    p = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2], [0.95, 0.05]])
    found = parse_part("leaderboard(k=2)", LABELERS)(p)
    # 2 is surer than the weakest of the board, 0, but not than its latest, 1
    assert found.index[found.label == 0].tolist() == [3, 1]


def test_a_threshold_takes_what_exceeds_it() -> None:
    found = parse_part("threshold(at=0.7)", LABELERS)(SOFT.double())
    assert found.index.tolist() == [2]
    assert label_by(parse_part("threshold(at=0.65)", LABELERS), SOFT).index.tolist() == [2, 3]
    with pytest.raises(VlpromptError, match=r"none of the pool's 4 images: the highest confidence is 0.90"):
        label_by(parse_part("threshold(at=0.95)", LABELERS), SOFT)


def test_only_classes_that_a_pool_may_have_compete() -> None:
    found = label_pool(parse_part("leaderboard(k=None)", LABELERS), SOFT.log(), 1.0, [1, 2])
    assert found.label.tolist() == [1, 2, 1, 2]
    assert float(found.confidence[0]) == pytest.approx(0.75)


def test_a_labeler_has_a_scale_of_its_own() -> None:
    cosines = torch.tensor([[0.3, 0.2], [0.1, 0.4]])
    found = label_pool(parse_part("prototype_kl(k=2)", LABELERS), 100 * cosines, 100.0)
    softly = (10 * cosines).softmax(dim=1)
    torch.testing.assert_close(found.confidence, softly[found.index, found.label])
    assert found.label.tolist() == [0, 0, 1, 1]


def test_a_pool_that_is_smaller_than_asked_for_is_told() -> None:
    with pytest.warns(UserWarning, match="the pool has 4 images, fewer than leaderboard asks for: 2 for each of 3"):
        label_by(parse_part("leaderboard(k=2)", LABELERS), SOFT)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("top_k(k=0)", "at least 1 image a class, not 0"),
        ("threshold(at=1.5)", "below 1"),
        ("growing(of=threshold)", "of leaderboard or top_k"),
        ("topk", "unknown labeler 'topk': did you mean top_k"),
    ],
)
def test_what_a_labeler_refuses(text: str, says: str) -> None:
    with pytest.raises(VlpromptError, match=says.replace("(", r"\(")):
        parse_part(text, LABELERS)

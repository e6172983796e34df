"""Learners that are bound to their classes score a part of them, which follows the names and not the places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from datasets_registry.catalog import register_dataset
from vlprompt import VlpromptError, evaluate_learner, export_learner, load_learner, load_split, run
from vlprompt.evaluation.scoring import evaluate
from vlprompt.learner.class_subset import find_subset
from vlprompt.testing import NAMES, logits_of, make, make_ready, small_clip, toy_batch, toy_feed
from vlprompt.training import Trainer, TrainOptions

PLACES = [3, 0, 4]
SOME = tuple(NAMES[place] for place in PLACES)


def test_a_part_is_found_by_names_that_prompts_cannot_tell_apart() -> None:
    learnt = ("sea_lake", "okapi", "cat")
    assert find_subset(learnt, ("cat", "sea lake")) == (2, 0)
    assert find_subset(learnt, ("cat", "dog")) is None


def test_places_tell_classes_of_one_name_apart() -> None:
    learnt = ("missile", "cat", "missile", "dog")
    assert find_subset(learnt, ("dog", "missile"), (3, 2)) == (3, 2)
    assert find_subset(learnt, ("missile", "dog", "missile")) == (0, 3, 2)  # both, in their order
    for places in ((), (3, 9), (2, 2), (3, 1)):
        with pytest.raises(VlpromptError, match=r"'missile' occurs 2 times .* and 1 times among those asked for"):
            find_subset(learnt, ("dog", "missile"), places)


def test_tests_of_a_part_are_those_of_all_classes_of_which_others_are_left_out() -> None:
    digits = load_split("digits")
    few = replace(digits, name="digits in part", test=digits.test[::20])
    head = make("tip_adapter", names=few.class_names, fit_views=1)
    Trainer(TrainOptions()).fit(head, toy_feed(head))
    places = [7, 2, 5]
    part = few.keep_classes(places)
    images = torch.stack([small_clip().preprocess(few.open_image(item)) for item in part.test])
    expected = head.predict({"image": images})[:, places]
    found = evaluate(head, part)
    assert found.class_names == part.class_names
    assert torch.equal(found.predictions.predicted, expected.argmax(dim=1).int())
    labels = torch.tensor([item.label for item in part.test])
    assert evaluate_learner(head, part) == (expected.argmax(dim=1) == labels).double().mean()
    assert (head.class_names, head.subset) == (few.class_names, None)


@pytest.mark.parametrize("method", ["zs_lp", "tip_adapter", "lp_plus_plus"])
def test_what_scores_a_part_is_exported_so_and_saved_whole(method: str, tmp_path: Path) -> None:
    head = make_ready(method).eval()
    whole = logits_of(head)
    head.set_class_names(SOME)
    assert torch.equal(logits_of(head), whole[:, PLACES])
    if method == "tip_adapter":
        export_learner(head, "torch", tmp_path / "head.pt2")  # which compares the two
    else:
        weight, bias = head.linear() or (head.logit_scale * head.classifier_matrix(), head.clip.logit_bias)
        torch.testing.assert_close(F.linear(head.image_features(toy_batch()), weight) + bias, logits_of(head))
    again = load_learner(head.save_pretrained(tmp_path / "head"), small_clip())
    assert again.class_names == head.learnt_names == NAMES
    assert torch.equal(logits_of(again), whole)


def test_an_ensemble_and_a_head_on_top_follow_the_names_too(tmp_path: Path) -> None:
    mixed = make("zs_lp", ensemble="logits(weight=0.25)").eval()
    coop = make("coop", class_specific=True, seed=5).eval()
    on_top = make_ready("tip_adapter", text=str(coop.save_pretrained(tmp_path / "coop"))).eval()
    joint = make_ready("transclip", support=True).eval()
    for learner in (mixed, coop, on_top, joint):
        whole = logits_of(learner)
        with learner.scoring(SOME):
            torch.testing.assert_close(logits_of(learner), whole[:, PLACES])
        assert torch.equal(logits_of(learner), whole)
    head = make("tip_adapter", names=SOME, text=str(tmp_path / "coop")).eval()  # on some of coop's classes
    torch.testing.assert_close(head.text_features(), coop.classifier_matrix()[PLACES])


def test_nothing_is_learnt_while_a_part_is_scored() -> None:
    head = make("zs_lp")
    head.set_class_names(SOME)
    for learn in (lambda: head.loss(toy_batch()), lambda: Trainer(TrainOptions()).fit(head, toy_feed(head))):
        with pytest.raises(VlpromptError, match=r"is bound to 5 classes .* now scores only 3"):
            learn()
    head.set_class_names(head.learnt_names)
    assert head.loss(toy_batch())["loss"].isfinite()


def test_a_bound_head_is_tested_on_a_shift_that_has_some_of_its_classes(tmp_path: Path) -> None:
    digits = load_split("digits")
    source = replace(digits, name="source of a shift", test=digits.test[::20])
    shift = replace(digits.keep_classes([8, 1, 3]), name="a shift", train=(), val=())
    other = replace(shift, name="another shift", class_names=("cat", "dog", "cow"))
    for splits in (shift, other):
        register_dataset(splits)
    common = {"protocol": "domain_generalization", "clip": small_clip(), "shots": 2, "epochs": 1, "views": 1}
    common |= {"quiet": True, "output": str(tmp_path), "limit": 20}
    result = run(method="zs_lp", dataset=source, targets=["a shift"], **common)
    assert [row.n_classes for row in result.rows] == [10, 3]
    assert list(result.rows[1].per_class["class"]) == list(shift.class_names)
    with pytest.raises(VlpromptError, match="zs_lp with these settings is bound to its training classes"):
        run(method="zs_lp", dataset=source, targets=["another shift"], **common)

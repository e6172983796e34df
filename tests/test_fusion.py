"""Logits of several parts and the rule that fuses them; a second head on any design; what of it a result tells."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vlprompt import PromptLearner, VlpromptError, create_learner, load_clip, load_learner, run
from vlprompt.base.settings import TrainOptions
from vlprompt.data import load_split
from vlprompt.evaluation.protocols import PROTOCOLS, familiar
from vlprompt.evaluation.scoring import evaluate, evaluate_learner
from vlprompt.report import make_report
from vlprompt.runs.settings import resolve
from vlprompt.saving.export import export_learner
from vlprompt.testing import NAMES, NEW_NAMES, fit, logits_of, make, small_clip, toy_batch
from vlprompt.training.trainer import train


class TwoWays(PromptLearner):
    """Scores zero-shot's similarities, and their negation for classes that it was trained on."""

    method = "two_ways"
    registered = make("zero_shot").facts.__class__(paper="", parts=("similarity", "rep"), cacheable_images=False)

    def setup(self) -> None:
        pass

    def encode_text(self, v: Tensor | None = None) -> Tensor:
        return self.frozen_text()

    def encode_images(self, batch) -> Tensor:
        v = self.clip.encode_image(batch["image"])
        return torch.stack([v, -3 * v], dim=1)

    def parts(self, v: Tensor, t: Tensor) -> dict[str, Tensor]:
        return {"similarity": self.score(v[:, 0], t), "rep": self.score(v[:, 1], t)}

    def fuse(self, parts) -> Tensor:
        return parts["rep" if self.familiar == "trained" else "similarity"]


def trained(method: str = "coop", head: str = "dept", **settings: object) -> PromptLearner:
    learner = make(method, head=head, **settings)
    fit(learner, 2)
    return learner.eval()


def test_a_method_with_two_image_features_fuses_by_what_the_classes_are_to_it() -> None:
    learner = TwoWays(small_clip(), NAMES).eval()
    zero_shot = make("zero_shot")
    assert torch.allclose(logits_of(learner), -logits_of(zero_shot), atol=1e-4)
    learner.familiar = "shifted"
    assert torch.allclose(logits_of(learner), logits_of(zero_shot), atol=1e-4)
    assert learner.image_features(toy_batch()["image"]).shape == (10, 64)
    found = learner.outputs(learner.encoded(toy_batch()), learning=True)
    assert found.logits is found.parts["similarity"], "objectives look at the first part"
    learner.set_class_names(NEW_NAMES)
    assert learner.familiar == "new"
    learner.set_class_names(NAMES)
    assert learner.familiar == "trained"


def test_without_its_weight_a_second_head_changes_nothing_and_new_classes_never_see_it() -> None:
    learner = trained(head="dept(weight=0)")
    plain = make("coop")
    plain.load_state_dict({key: value for key, value in learner.state_dict().items() if "second_head" not in key})
    assert torch.equal(logits_of(learner), logits_of(plain))
    learner = trained()
    for each in (learner, plain):
        each.set_class_names(NEW_NAMES)
    plain.prompt.load_state_dict(learner.prompt.state_dict())
    assert torch.equal(logits_of(learner), logits_of(plain))


def test_trained_classes_are_found_by_name_in_any_order_and_number() -> None:
    learner = trained()
    images = toy_batch()["image"]
    whole = learner({"image": images}).parts
    chosen = [3, 0, 4]
    learner.set_class_names([NAMES[i] for i in chosen])
    found = learner({"image": images})
    assert torch.equal(found.parts["linear"], whole["linear"][:, chosen])
    assert torch.allclose(found.logits, torch.lerp(found.parts["similarity"], found.parts["linear"], 0.7))
    learner.set_class_names([NAMES[0], NEW_NAMES[0]])
    assert learner({"image": images}).parts.keys() == {"similarity"}


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple"])
def test_a_learner_saved_with_other_classes_knows_those_it_was_trained_on(method: str, tmp_path: Path) -> None:
    learner = trained(method)
    own = logits_of(learner)
    learner.set_class_names(NEW_NAMES)
    other = logits_of(learner)
    learner.save_pretrained(tmp_path)
    loaded = load_learner(tmp_path, clip=learner.clip)
    assert loaded.class_names == NEW_NAMES
    assert torch.equal(logits_of(loaded), other)
    loaded.set_class_names(NAMES)
    assert torch.equal(logits_of(loaded), own)


def test_a_learner_with_a_second_head_is_exported_as_what_it_predicts(tmp_path: Path) -> None:
    learner = trained("maple")
    file = export_learner(learner, "torch", tmp_path / "learner.pt2")
    images = toy_batch()["image"]
    assert torch.allclose(torch.export.load(file).module()(images), learner(images), atol=1e-4)
    with pytest.raises(VlpromptError, match="scores with more than class features"):
        export_learner(learner, "matrix", tmp_path / "learner.safetensors")


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("coop", {"head": "depth"}, "unknown head 'depth': did you mean dept"),
        ("coop", {"head": "dept(weight=2)"}, "weight must be between 0"),
        ("zero_shot", {"head": "dept"}, "head=dept is not possible: zero_shot with these settings learns from images"),
        ("clip_adapter", {"head": "dept"}, "has a head of its own"),
        ("pouf", {"head": "dept"}, "without labels"),
        ("proda", {"head": "dept"}, "has a loss of its own"),
        ("coop", {"head": "dept", "ensemble": "weights"}, "scores with more than class features"),
    ],
)
def test_what_cannot_carry_a_head_says_why(method: str, settings: dict, message: str) -> None:
    with pytest.raises(VlpromptError, match=message) as error:
        make(method, **settings)
    assert "\n" not in str(error.value)


def test_a_constant_warm_up_is_one_rate_for_all_groups_and_the_rest_are_in_proportion() -> None:
    learner, rates = make("coop", head="dept(lr_scale=6.5)"), []

    def batches(epoch: int):
        yield toy_batch()

    options = TrainOptions(epochs=2, lr=0.01, warmup_epochs=1, warmup_lr=1e-5)
    step = torch.optim.SGD.step

    def stepped(optimizer, *arguments, **others):
        rates.append([group["lr"] for group in optimizer.param_groups])
        return step(optimizer, *arguments, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", stepped)
        train(learner, batches, options)
    assert rates[0] == [1e-5, 1e-5]
    assert rates[1] == pytest.approx([0.01, 0.065])


def test_what_the_classes_of_a_test_are_follows_from_the_plan() -> None:
    def of(protocol: str, **options: object) -> dict[str, str]:
        plan = PROTOCOLS.get(protocol).plan("glyphs/symbols", **options)
        parts = (plan.train, *plan.tests.values())
        data = {part: load_split(part.dataset).select(part.half) for part in parts}
        return {name: familiar(plan.train, part, data) for name, part in plan.tests.items()}

    assert of("few_shot") == {"all": "trained"}
    assert of("base_to_new") == {"base": "trained", "new": "new"}
    assert set(of("generalized").values()) == {"new"}
    assert of("cross_dataset", targets=["emoji"]) == {"source": "trained", "emoji": "new"}
    shifted = of("domain_generalization")
    assert shifted.pop("source") == "trained"
    assert set(shifted.values()) == {"shifted"}


def test_a_result_and_its_report_tell_what_each_part_scores(tmp_path: Path) -> None:
    how = {"dataset": "digits", "shots": 2, "epochs": 1, "views": 1, "limit": 40, "output": tmp_path, "quiet": True}
    rows = {row.target: row for row in run(method="coop", head="dept", **how).rows}
    assert rows["base"].familiar == "trained"
    assert rows["base"].parts.keys() == {"similarity", "linear"}
    assert (rows["new"].familiar, rows["new"].parts) == ("new", None)
    text = make_report([tmp_path]).text("markdown")
    assert f"similarity {rows['base'].parts['similarity']:.2f}, linear {rows['base'].parts['linear']:.2f}" in text
    learner = load_learner(next(tmp_path.glob("**/learner")))
    base = evaluate(learner, load_split("digits").select("base"), limit=40).row
    assert (base.accuracy, base.parts) == (rows["base"].accuracy, rows["base"].parts)


def test_a_saved_learner_knows_images_of_another_dataset(tmp_path: Path) -> None:
    own, other = load_split("glyphs/symbols"), load_split("glyphs/symbols-a")
    clip = load_clip("vlprompt-tiny", device="cpu")
    made = create_learner("mmrl", clip, own.class_names, n_rep_tokens=1, rep_dim=8)
    learner = load_learner(made.save_pretrained(tmp_path, extra={"dataset": own.name}), clip=clip)
    assert evaluate(learner, own, limit=4).row.familiar == "trained"
    row = evaluate(learner, other, limit=12).row
    assert row.familiar == "shifted"
    assert row.accuracy == evaluate(learner, other, limit=12, familiar="shifted").row.accuracy
    assert 100 * evaluate_learner(learner, other, limit=12) == pytest.approx(row.accuracy)
    assert evaluate(made, other, limit=4).row.familiar == "trained", "by its names alone, where nothing else is known"


def test_without_a_second_head_a_run_is_what_it_was() -> None:
    assert resolve({"method": "coop"}).id == resolve({"method": "coop", "head": None}).id
    assert resolve({"method": "coop"}).id != resolve({"method": "coop", "head": "dept"}).id

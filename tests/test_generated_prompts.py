"""What MoCoOp, SPG and CTP+TFT promise beyond their authors' numbers: where they start, what they share and tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vlprompt import FrozenCLIP, PromptLearner, VlpromptError, load_split, run
from vlprompt.base.layout import LEARNABLES
from vlprompt.clip.edits import Edit
from vlprompt.clip.text import Prompts, encode_prompts_plain
from vlprompt.data import DatasetSplits
from vlprompt.evaluation.results import read_result, spread_over_draws
from vlprompt.methods.prompts import mocoop
from vlprompt.testing import NAMES, NEW_NAMES, close, fit, logits_of, make, small_clip, toy_batch, toy_feed
from vlprompt.training import Log

GROUPS = {"plain": ["a photo of a {}.", "a photo of the {}."], "game": ["a {} in a video game."], "far": ["{} far off"]}


@pytest.fixture(autouse=True)
def banks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLPROMPT_CACHE", str(tmp_path / "cache"))


def test_mocoops_experts_start_as_the_first_template_of_each_group() -> None:
    learner = make("mocoop", groups=GROUPS)
    first = torch.stack([learner.teacher.text_features(NAMES, templates[:1]) for templates in GROUPS.values()])
    assert close(learner.experts(), first)
    assert [expert.before for expert in learner.prompts] == [4, 1, 0]


def test_mocoop_with_one_expert_is_zero_shot_by_its_template() -> None:
    learner = make("mocoop", groups={"one": ["a {} in a video game."]}, active=1)
    assert close(logits_of(learner), logits_of(make("zero_shot", template=["a {} in a video game."])))


def test_mocoop_encodes_its_experts_once_a_step_and_once_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, encoded = make("mocoop", groups=GROUPS, image_chunk=3), []
    encode = mocoop.Expert.encode
    monkeypatch.setattr(mocoop.Expert, "encode", lambda self, *a, **k: encoded.append(self) or encode(self, *a, **k))
    fit(learner, 2)
    assert len(encoded) == 2 * len(GROUPS)
    whole = logits_of(learner)
    assert len(encoded) == 3 * len(GROUPS)
    with torch.no_grad():
        parts = [learner(part) for part in toy_batch()["image"].split(4)]
    assert close(torch.cat(parts), whole)
    assert len(encoded) == 3 * len(GROUPS), "nothing has changed since"


def test_mocoop_holds_experts_near_later_classes_only_if_it_is_asked(tmp_path: Path) -> None:
    learner = make("mocoop", groups=GROUPS)
    before = learner.loss(toy_batch())
    learner.see_names(NEW_NAMES)
    after = learner.loss(toy_batch())
    assert before["ce"] == after["ce"]
    assert before["expert_text"] != after["expert_text"]
    settings = {
        "method": "mocoop",
        "dataset": "digits",
        "shots": 1,
        "epochs": 1,
        "views": 1,
        "limit": 20,
        "quiet": True,
    }
    settings |= {"clip": small_clip(), "groups": GROUPS, "output": str(tmp_path)}
    told = [run(**settings, new_class_names_in_text_loss=each) for each in (False, True)]
    assert [result.config["new_class_names_in_text_loss"] for result in told] == [False, True]
    assert [result.config["tune_vit_ln"] for result in told] == [False, False]
    with pytest.raises(VlpromptError, match="classes that are tested and not trained on: use protocol=base_to_new"):
        run(**settings, new_class_names_in_text_loss=True, protocol="few_shot")


def test_mocoops_norms_learn_at_a_tenth_of_the_rate() -> None:
    learner = make("mocoop", tune_vit_ln=True)
    assert not learner.facts.cacheable_images
    assert [group.lr_scale for group in learner.parameter_groups()] == [1.0, 0.1]
    assert close(logits_of(learner), logits_of(make("mocoop")))
    with pytest.raises(VlpromptError, match="active=4 must be 1 or more, and at most the 3 groups"):
        make("mocoop", groups=GROUPS, active=4)


# SPG

SMALL = {"generator_width": 16, "discriminator_width": 16, "noise_width": 6, "test_draws": 2}
FAST = {"epochs": 2, "label_epochs": 2, "views": 1, "optimizer": "adamw", "batch_size": 8, "warmup_epochs": 0}


def domains(name: str, each: int = 4) -> DatasetSplits:
    """Digits as if they were of three domains, with few images of each."""
    whole = load_split("digits")
    kept = [item for label in range(3) for item in [i for i in whole.train if i.label == label][: 3 * each]]
    train = [replace(item, domain="abc"[i % 3]) for i, item in enumerate(kept)]
    test = [replace(item, domain="abc"[i % 3]) for i, item in enumerate(i for i in whole.test if i.label < 3)][:30]
    val = [replace(item, domain="abc"[i % 3]) for i, item in enumerate(i for i in whole.val if i.label < 3)][:12]
    return replace(whole, name=name, class_names=whole.class_names[:3], train=train, val=val, test=test)


def spg(splits: DatasetSplits | str, output: Path, **settings: Any) -> Any:
    options = {"protocol": "domain_generalization", "held_out": "c", "shots": "all", "noise": "fixed"}
    options |= SMALL | FAST | {"clip": small_clip(), "output": str(output), "name": "one", "quiet": True} | settings
    return run(method="spg", dataset=splits, **options)


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "one/learner" / LEARNABLES)


def stages(output: Path) -> set[str]:
    """What a run trained one after another, by the names of its logs."""
    return {file.stem.removeprefix("train-") for file in (output / "one").glob("train-*.jsonl")}


def spg_logits(**settings: Any) -> tuple[torch.Tensor, PromptLearner]:
    learner = make("spg", **SMALL, **settings).eval()
    batch = {"image_features": learner.clip.encode_image(toy_batch()["image"])}
    return torch.cat(list(learner.predict_all([batch]))), learner


@pytest.mark.parametrize("noise", ["fixed", "drawn", "averaged"])
def test_spg_predicts_an_image_alike_in_batches_of_any_size(noise: str) -> None:
    whole, learner = spg_logits(noise=noise)
    features = learner.clip.encode_image(toy_batch()["image"])
    for size in (1, 3):
        batches = [{"image_features": part} for part in features.split(size)]
        assert close(torch.cat(list(learner.predict_all(batches))), whole)
    learner.draw(1)
    other = torch.cat(list(learner.predict_all([{"image_features": features}])))
    assert not close(other, whole, 1e-3)
    learner.draw(0)
    assert torch.equal(torch.cat(list(learner.predict_all([{"image_features": features}]))), whole)


def test_spgs_averaged_context_is_the_mean_over_draws() -> None:
    _, learner = spg_logits(noise="averaged", draws=5)
    v = torch.nn.functional.normalize(torch.randn(4, learner.clip.embed_dim), dim=1)
    each = [learner.generator(noise.expand(4, -1), v) for noise in learner.own_noise]
    assert close(learner.contexts(v), torch.stack(each).mean(dim=0))


def test_spg_learns_a_label_for_each_source_domain_and_tells_how_far_draws_lie_apart(tmp_path: Path) -> None:
    result = spg(domains("left-out"), tmp_path)
    assert stages(tmp_path) == {"generator", "prompt-a", "prompt-b"}, "the held-out domain has none"
    (row,) = result.rows
    assert len(row.draws) == 2
    assert spread_over_draws(result.rows).startswith("over 3 draws of noise: c ")
    assert read_result(tmp_path / "one/result.json").rows[0].draws == row.draws


def test_spg_learns_from_a_single_domain_or_from_none(tmp_path: Path) -> None:
    splits = domains("alone")
    result = spg(replace(splits, train=[i for i in splits.train if i.domain == "a"]), tmp_path, held_out="c")
    assert result.n_parameters > 0
    assert stages(tmp_path) == {"generator", "prompt-a"}
    plain = {"protocol": "few_shot", "held_out": None, "shots": 2}
    spg(replace(splits, name="plain", train=[replace(i, domain="") for i in splits.train]), tmp_path / "plain", **plain)
    assert stages(tmp_path / "plain") == {"generator", "prompt"}


def test_spg_chooses_each_stages_epoch_on_its_own_validation_images(tmp_path: Path) -> None:
    result = spg(domains("chosen"), tmp_path, selection="fewshot_val")
    assert result.saw == ["val"]
    logs = [file.read_text().splitlines() for file in (tmp_path / "one").glob("train-*.jsonl")]
    assert all("selection" in json.loads(line) for lines in logs for line in lines)


EVERY_POINT = range(1, 7)  # after each epoch of the three stages


@pytest.mark.parametrize(
    "points", [(2, 3, 6), pytest.param(EVERY_POINT, marks=pytest.mark.nightly)], ids=["some", "every"]
)
def test_spg_killed_at_any_stage_ends_with_the_same_bits(
    points: Sequence[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits, write = domains(f"killed-{len(points)}"), Log.write
    spg(splits, tmp_path / "whole", checkpoint_seconds=0, test_draws=0)
    whole = weights(tmp_path / "whole")
    for point in points:
        seen = 0

        def dies(log: Log, record: dict, point: int = point) -> None:
            nonlocal seen
            seen += 1
            if seen == point:
                raise SystemExit  # before this epoch's checkpoint is written
            write(log, record)

        monkeypatch.setattr(Log, "write", dies)
        with pytest.raises(SystemExit):
            spg(splits, tmp_path / str(point), checkpoint_seconds=0, test_draws=0)
        monkeypatch.setattr(Log, "write", write)
        spg(splits, tmp_path / str(point), checkpoint_seconds=0, test_draws=0, resume=True)
        again = weights(tmp_path / str(point))
        assert whole.keys() == again.keys()
        assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_clipping_names_every_limit_or_none() -> None:
    learner = make("spg", **SMALL, clipping={"d_weight": 1.0})
    with pytest.raises(VlpromptError, match="clipping must have d_weight, d_bias, d_ends, g_weight, g_bias"):
        learner.learn(toy_feed(learner), lambda *_, **__: [])


# CTP and TFT


def plainly(clip: FrozenCLIP, prompts: Prompts, chunk: int | None = None, edits: Sequence[Edit] = ()) -> torch.Tensor:
    return encode_prompts_plain(clip.text, prompts, edits, chunk)


@pytest.mark.parametrize("plain", [False, True])
def test_ctp_tft_starts_as_clip_gradients_included(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, coop = make("ctp_tft", image_chunk=4), make("coop", ctx_init="a photo of a")
    if plain:
        monkeypatch.setattr(FrozenCLIP, "encode_prompts", plainly)
    assert close(logits_of(learner), logits_of(make("zero_shot", template=["a photo of a {}."])))
    for each in (learner, coop):
        each.train().backward(each.loss(toy_batch()))
    assert close(learner.prompt.ctx.grad, coop.prompt.ctx.grad, 1e-4)


def test_ctp_tft_has_a_context_of_each_image_and_class() -> None:
    learner = make("ctp_tft")
    fit(learner, 3, lr=0.01)
    x = torch.nn.functional.normalize(learner.encoded(toy_batch()["image"]), dim=-1)
    assert x.shape == (10, 1 + 16, learner.clip.embed_dim)
    ctx, (n, d_t) = learner.contexts(x[:, 1:]), learner.prompt.ctx.shape
    assert ctx.shape == (10, len(NAMES), n, d_t)
    assert not close(ctx[0, 0], ctx[0, 1], 1e-4)
    assert not close(ctx[0, 0], ctx[1, 0], 1e-4)
    f = learner.clip.encode_image(toy_batch()["image"])
    assert not close(x[:, 0], torch.nn.functional.normalize(f, dim=-1), 1e-4)
    with pytest.raises(VlpromptError, match="depend on each image's patches"):
        learner.classify(f)


def test_ctp_tft_is_marked_as_a_reconstruction() -> None:
    pages = Path(__file__).parents[1] / "docs/methods"
    assert "Fidelity: reconstruction" in (pages / "ctp_tft.md").read_text(encoding="utf-8")
    (line,) = (x for x in (pages / "README.md").read_text(encoding="utf-8").splitlines() if x.startswith("| [ctp_tft]"))
    assert "| reconstruction |" in line

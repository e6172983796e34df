"""PromptKD: a saved learner of another width as the teacher, from its run to the student's report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden_files import CORE, NEW, make_model, read_case, read_config
from safetensors.torch import load_file, save_file

from vlprompt import FrozenCLIP, VlpromptError, create_learner, load_learner, run
from vlprompt.base.settings import TrainOptions
from vlprompt.cli.__main__ import main as cli
from vlprompt.evaluation.results import read_result
from vlprompt.learner.saved_teacher import LearnerTeacher
from vlprompt.report import make_report
from vlprompt.saving.export import export_learner
from vlprompt.saving.published import import_checkpoint
from vlprompt.saving.teacher import teach
from vlprompt.testing import NAMES, NEW_NAMES, fit, logits_of, make, small_clip, small_model, toy_batch
from vlprompt.training.trainer import train


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved PromptSRC learner of a wider model."""
    folder = tmp_path_factory.mktemp("teacher")
    learner = make("promptsrc", small_clip(embed_dim=80), aggregator=None)
    fit(learner, 1)
    return learner.save_pretrained(folder)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let saved learners find the wider model, which has no name to be loaded by."""
    from vlprompt.saving import folder

    monkeypatch.setattr(folder, "_trusted_source", lambda *_: {})
    monkeypatch.setattr(folder, "load_clip", lambda **_: small_clip(embed_dim=80))


def test_a_student_scores_with_its_teachers_class_features_and_needs_it_no_more(
    teacher: Path, wide: None, tmp_path: Path
) -> None:
    with pytest.raises(VlpromptError, match="class features: give names to the teacher"):
        create_learner("promptkd", small_clip(), NAMES, teacher=str(teacher), names={"tench": ["tinca"]}, depth=2)
    student = make("promptkd", teacher=str(teacher))
    own = load_learner(teacher, clip=small_clip(embed_dim=80))
    assert torch.allclose(student.classifier_matrix(), own.classifier_matrix(), atol=1e-6)
    assert student.feature_width == 80
    fit(student, 2)
    expected = logits_of(student)
    student.save_pretrained(tmp_path)
    loaded = load_learner(tmp_path, clip=student.clip)
    assert loaded.taught_by is None
    assert torch.equal(logits_of(loaded), expected)
    loaded.set_class_names(NAMES[3:1:-1])
    assert torch.allclose(logits_of(loaded), expected[:, [3, 2]], atol=1e-5)
    with pytest.raises(VlpromptError, match="keeps its teacher's features of the 5 classes"):
        loaded.set_class_names(NEW_NAMES)
    teach(loaded, teacher)
    loaded.set_class_names(NEW_NAMES)
    own.set_class_names(NEW_NAMES)
    assert torch.allclose(loaded.classifier_matrix(), own.classifier_matrix(), atol=1e-6)


def test_labels_play_no_part_and_a_batch_of_one_is_refused(teacher: Path, wide: None) -> None:
    student = make("promptkd", teacher=str(teacher)).train()
    batch = toy_batch()
    state = {key: value.clone() for key, value in student.state_dict().items()}
    losses = []
    for labels in (batch["label"], batch["label"].flip(0), None):
        student.load_state_dict(state)
        losses.append(student.loss({"image": batch["image"]} | ({} if labels is None else {"label": labels}))["loss"])
    assert losses[0] == losses[1] == losses[2]
    with pytest.raises(VlpromptError, match="a batch of one image cannot be learnt from"):
        student.loss({"image": batch["image"][:1]})


def test_a_student_is_exported_with_its_projection(teacher: Path, wide: None, tmp_path: Path) -> None:
    student = make("promptkd", teacher=str(teacher)).eval()
    file = export_learner(student, "torch", tmp_path / "student.pt2")
    images = toy_batch()["image"]
    assert torch.allclose(torch.export.load(file).module()(images), student(images), atol=1e-4)


def test_the_recorded_teacher_is_promptsrc_on_a_clip_of_its_own_projections(golden_clip: FrozenCLIP) -> None:
    case, config = read_case(NEW, "promptkd"), read_config()
    facts, its = case.facts["teacher"], case.under("teacher/")
    model = make_model(
        config["clip"] | {"embed_dim": case.facts["teacher_width"]}, quick_gelu=config["activation"] == "quickgelu"
    )
    weights = golden_clip.model.state_dict() | {
        "visual.proj": its["visual.proj"],
        "text_projection": its["text_projection"],
        "logit_scale": its["logit_scale"],
    }
    model.load_state_dict(weights)
    clip = FrozenCLIP(model, golden_clip.tokenizer, device="cpu")
    settings = {"n_ctx": facts["n_ctx_text"], "depth": facts["depth_text"], "ctx_init": facts["ctx_init"]}
    settings |= {"vision_n_ctx": facts["n_ctx_vision"], "vision_depth": facts["depth_vision"]}
    learner = create_learner("promptsrc", clip, config["class_names"], aggregator=None, objective=["ce"], **settings)
    learner.load_published({name: tensor for name, tensor in its.items() if "prompts" in name})
    found = LearnerTeacher(learner, golden_clip, {"sha256": ""})
    batch = load_file(CORE / "batch.safetensors")
    close = {"rtol": 1e-4, "atol": 1e-4}
    names = config["class_names"]
    torch.testing.assert_close(found.text_features(names), case.tensors["teacher_text_features"], **close)
    torch.testing.assert_close(found.logits(batch, names), case.tensors["teacher_logits"], **close)


def test_their_checkpoint_becomes_a_learner(teacher: Path, wide: None, tmp_path: Path) -> None:
    student = make("promptkd", teacher=str(teacher))
    fit(student, 1)
    places = {"visual_prompts.0": "image_encoder.VPT"}
    places |= {f"visual_prompts.{i}": f"image_encoder.transformer.resblocks.{i}.VPT_shallow" for i in range(1, 9)}
    state = {places.get(name, name): tensor for name, tensor in student.published_state().items()}
    for name in [name for name in state if name.endswith(("conv1.0.weight", "conv1.3.weight"))]:
        state[name] = state[name][..., None, None].contiguous()  # a 1×1 convolution
    state["VPT_image_trans.conv1.1.num_batches_tracked"] = torch.tensor(3.0)
    save_file(state, tmp_path / "model.safetensors")
    made = import_checkpoint(tmp_path / "model.safetensors", "promptkd", student.clip, NAMES, teacher=str(teacher))
    assert torch.equal(logits_of(made), logits_of(student))


def test_any_design_learns_from_a_teacher_without_labels(teacher: Path, wide: None) -> None:
    coop = make("coop", objective=["promptkd"], teacher=str(teacher))
    assert coop.facts.labels == "none"
    assert make("coop").facts.labels == "needed"
    assert make("coop", objective=["ce", "logit_kl"]).facts.labels == "needed"
    history = train(coop, lambda _: [{"image": toy_batch()["image"]}], TrainOptions(epochs=3, lr=0.01))
    assert history[-1]["loss"] < history[0]["loss"]
    with pytest.raises(VlpromptError, match="without labels, and a head of classes needs them"):
        make("upl", head="dept")


def own_backbone(folder: Path, embed_dim: int) -> str:
    """A random CLIP in a folder of OpenCLIP's."""
    model = small_model(embed_dim=embed_dim)
    vision = {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
    config = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def test_from_a_teachers_run_to_a_students_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = own_backbone(tmp_path / "large", 80)
    here = {"dataset": "digits", "output": str(tmp_path / "runs"), "limit": 40, "quiet": True, "batch_size": 8}
    depths = {"depth": 2, "vision_depth": 2}
    run(method="promptsrc", shots=1, epochs=1, name="teacher", backbone=backbone, **depths, **here)
    place = tmp_path / "runs" / "teacher"
    words = [f"{key}={value}" for key, value in (here | {"teacher": place, "name": "student", "steps": 4}).items()]
    assert cli(["train", "method=promptkd", *words]) == 0
    result = read_result(tmp_path / "runs" / "student" / "result.json")
    assert result.protocol == "base_to_new_unlabelled"
    assert [(row.target, row.n_classes, row.familiar) for row in result.rows] == [
        ("base", 5, "trained"),
        ("new", 5, "trained"),
    ]
    assert result.averages.keys() == {"harmonic_mean", "zero_shot_harmonic_mean"}
    assert cli(["evaluate", f"run={tmp_path / 'runs' / 'student'}"]) == 0
    text = make_report([tmp_path / "runs"], protocol="base_to_new_unlabelled").text("markdown")
    assert f"{result.averages['harmonic_mean']:.2f}" in text

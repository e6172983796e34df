"""A saved learner as a teacher: its logits, its own backbone and transform, its identity, and who refuses it."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import InterpolationMode, resize

from vlprompt import FrozenCLIP, VlpromptError, create_learner, load_clip, load_learner, run
from vlprompt.saving.description import read_description
from vlprompt.saving.teacher import LearnerTeacher, teach

NAMES = ["cat", "spotted dog", "red fox"]
OBJECTIVE = ["ce", "distillation(weight=1)"]


@pytest.fixture(scope="module")
def tiny() -> FrozenCLIP:
    return load_clip("vlprompt-tiny", device="cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny: FrozenCLIP) -> Path:
    """A CoOp that scores otherwise than zero-shot CLIP."""
    return create_learner("coop", tiny, NAMES, n_ctx=2, seed=5).save_pretrained(tmp_path_factory.mktemp("teacher"))


def images(clip: FrozenCLIP, count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))


def other_clip(size: int = 32, mean: float = 0.3) -> FrozenCLIP:
    """Another backbone: other weights, image size, constants and logit scale."""
    torch.manual_seed(3)
    vision = {"image_size": size, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(24, vision, text)
    model.visual.preprocess_cfg = {"mean": (mean,) * 3, "std": (0.2,) * 3}
    model.logit_scale.data.fill_(2.0)
    return FrozenCLIP(model, open_clip.SimpleTokenizer(context_length=32), device="cpu", name="other")


def test_the_objectives_take_the_teachers_logits(tiny: FrozenCLIP, saved: Path) -> None:
    student = create_learner("coop", tiny, NAMES, objective=[*OBJECTIVE, "logit_kl"], teacher=str(saved))
    batch = {"image": images(tiny), "label": torch.tensor([0, 1, 2, 0])}
    losses = student.loss(batch)
    teacher = load_learner(saved, clip=tiny)
    with torch.no_grad():
        theirs, mine = teacher(batch["image"]), student(batch["image"])
    expected = -(theirs.softmax(1) * mine.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses["distillation"].detach(), expected)
    torch.testing.assert_close(
        losses["logit_kl"].detach(), F.kl_div(mine.log_softmax(1), theirs.softmax(1), reduction="sum") / 12
    )
    assert student.taught_by.learner.clip is tiny  # the same frozen model is not loaded twice
    cached = {"image_features": tiny.encode_image(batch["image"]), "label": batch["label"]}
    torch.testing.assert_close(student.loss(cached)["distillation"], losses["distillation"])
    assert not any("taught" in name for name in student.state_dict())
    student.backward(losses)
    assert all(p.grad is None for p in student.taught_by.learner.parameters())


def test_a_teacher_on_another_backbone_sees_the_students_images_as_its_own_takes_them(tiny: FrozenCLIP) -> None:
    other = other_clip()
    learner = create_learner("ivlp", other, NAMES, depth=1, vision_depth=1)
    teacher = LearnerTeacher(learner, tiny, {})
    assert teacher.needs_images
    pixels = images(tiny)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (tiny.image_mean, tiny.image_std))
    size = [other.image_size] * 2
    smaller = resize(pixels, size, InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    with torch.no_grad():
        expected = learner((smaller - 0.3) / 0.2)
    torch.testing.assert_close(teacher.logits({"image": (pixels - mean) / std}, NAMES), expected, rtol=1e-3, atol=1e-4)
    assert teacher.text_features(NAMES).shape == (3, other.embed_dim)
    with pytest.raises(
        VlpromptError, match="another image tower than the student, so it cannot use the student's features"
    ):
        teacher.logits({"image_features": torch.rand(2, tiny.embed_dim)}, NAMES)
    student = create_learner("coop", tiny, NAMES, objective=OBJECTIVE)
    assert not student.learns_from_images
    student.taught_by = teacher
    assert student.learns_from_images


def test_the_teachers_identity_is_saved_and_held_to_where_it_is_needed(
    tiny: FrozenCLIP, saved: Path, tmp_path: Path
) -> None:
    student = create_learner("coop", tiny, NAMES, objective=OBJECTIVE, teacher=str(saved))
    folder = student.save_pretrained(tmp_path / "student")
    told = read_description(folder)["extra"]["teacher"]
    assert (told["method"], told["weights"]) == ("coop", tiny.identity()["weights"])
    saved_as = saved.rename(saved.with_name("moved"))
    loaded = load_learner(folder, clip=tiny)  # and predicts without its teacher
    with torch.no_grad():
        torch.testing.assert_close(loaded(images(tiny)), student(images(tiny)))
    batch = {"image": images(tiny), "label": torch.tensor([0, 1, 2, 0])}
    with pytest.raises(VlpromptError, match=r"was taught by .*, which is not loaded with it: give it its teacher"):
        loaded.loss(batch)
    another = create_learner("coop", tiny, NAMES, n_ctx=2, seed=6).save_pretrained(tmp_path / "another")
    with pytest.raises(VlpromptError, match=r"is not the teacher that this learner had: coop of .* and not coop of"):
        teach(loaded, another)
    teach(loaded, saved_as)
    torch.testing.assert_close(loaded.loss(batch)["distillation"], student.loss(batch)["distillation"])
    assert read_description(loaded.save_pretrained(tmp_path / "again"))["extra"]["teacher"] == told
    saved_as.rename(saved)


def test_teachers_that_cannot_serve_are_refused(tiny: FrozenCLIP, saved: Path, tmp_path: Path) -> None:
    bound = create_learner("coop", tiny, ["hat", "boot"], class_specific=True).save_pretrained(tmp_path / "bound")
    views = create_learner("tpt", tiny, NAMES).save_pretrained(tmp_path / "views")
    for teacher, objective, message in (
        (saved, ["ce"], "method=coop has no use for teacher=.*: give its objective a distillation or logit_kl part"),
        (bound, OBJECTIVE, "cannot score these classes: coop with these settings is bound to the classes"),
        (views, OBJECTIVE, "is of tpt, which needs .*views.* of an image"),
        (tmp_path / "none", OBJECTIVE, "no saved learner in .*none"),
    ):
        with pytest.raises(VlpromptError, match=message):
            create_learner("coop", tiny, NAMES, objective=objective, teacher=str(teacher))
    with pytest.raises(VlpromptError, match="has no use for teacher"):
        run(method="coop", dataset="digits", teacher=str(saved))


def test_a_run_takes_another_run_as_its_teacher(tmp_path: Path) -> None:
    small = {"method": "coop", "dataset": "digits", "protocol": "few_shot", "shots": 1, "epochs": 1, "views": 1}
    small |= {"limit": 10, "device": "cpu", "output": str(tmp_path), "quiet": True, "n_ctx": 2, "batch_size": 10}
    run(**small, name="teacher")
    told = run(**small, name="student", objective=OBJECTIVE, teacher=str(tmp_path / "teacher"))
    assert told.views == 1
    assert read_description(tmp_path / "student/learner")["extra"]["teacher"]["method"] == "coop"
    vision = run(**small | {"method": "vpt", "n_ctx": 2}, name="vision", depth=1)
    told = run(**small, name="student2", objective=OBJECTIVE, teacher=str(tmp_path / "vision"))
    assert (vision.method, told.views) == ("vpt", "fresh")  # its image tower is prompted, so it needs images

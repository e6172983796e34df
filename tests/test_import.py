"""Checkpoints in the layouts of the published repositories become learners that give their authors' logits."""

from __future__ import annotations

import math
import os
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import CORE, NEW, case_names, read_case, read_config
from golden_learned import SETTINGS, learnt_cases
from golden_numbers import close
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlprompt import FrozenCLIP, VlpromptError, create_learner, load_clip, load_learner
from vlprompt.cli.import_checkpoint import main as import_command
from vlprompt.saving.published import import_checkpoint
from vlprompt.testing import NAMES, fit, logits_of, make, small_clip

WHOLE_MODEL = {"vpt", "ivlp", "promptsrc", "maple", "coprompt", "restore", "mvlpt"}  # saved with the frozen towers
# where newer repositories keep what is learnt, and the settings that its shapes tell
SAVED = {
    "tcp": ("prompt_learner.", ("n_ctx", "meta_width")),
    "mma": ("adapter_learner.", ("adapter_start", "adapter_end", "adapter_dim")),
    "mmrl": ("", ("n_rep_tokens", "rep_dim")),
    "mmrlpp": ("", ("n_rep_tokens", "rep_dim", "residual_rank", "projection_rank")),
    "dept": ("", ("n_ctx",)),
    "atprompt": ("", ("n_ctx", "n_att", "published_slicing")),
}
MOVED = (
    (r"text_prompts\.0", "prompt_learner.ctx"),
    (r"text_prompts\.(\d+)", r"text_encoder.transformer.resblocks.\1.VPT_shallow"),
    (r"visual_prompts\.0", "image_encoder.VPT"),
    (r"visual_prompts\.(\d+)", r"image_encoder.transformer.resblocks.\1.VPT_shallow"),
)


def as_published(method: str, learnt: dict[str, Tensor], facts: dict, clip: FrozenCLIP, names: list[str]) -> dict:
    """A state dict as the method's repository saves it, class buffers and frozen weights included."""
    context = next((learnt[n] for n in ("ctx", "text_prompts.0") if n in learnt), None)
    state = dict(learnt)
    if context is not None:
        words = " ".join((facts.get("ctx_init") or "").split()[context.shape[-2] :])
        ids = clip.tokenize([f"{words} {name.replace('_', ' ')}.".strip() for name in names])
        embedded = clip.text.embed(ids)
        state |= {"token_prefix": embedded[:, :1], "token_suffix": embedded[:, 1 : -context.shape[-2]]}
    if method not in WHOLE_MODEL:
        return state
    if "text_ratio" in facts:
        state |= {
            "text_cali_ratio": torch.tensor(facts["text_ratio"]),
            "vis_cali_ratio": torch.tensor(facts["vision_ratio"]),
        }
    moved = {}
    for name, tensor in state.items():
        place = next((re.sub(old, new, name) for old, new in MOVED if re.fullmatch(old, name)), None)
        inside = "adapter" in name or "cali_ratio" in name
        moved[place or (name if inside else f"prompt_learner.{name}")] = tensor
    frozen = {f"image_encoder.{k}": v for k, v in clip.visual.module.state_dict().items()}
    return moved | frozen | {"logit_scale": torch.tensor(4.6)}


def words_and_idle_vectors(learnt: dict[str, Tensor], facts: dict, clip: FrozenCLIP, classes: int) -> dict[str, Tensor]:
    """What ATPrompt saves besides: where it takes words to be, a token each, and vectors of words that it has not."""
    n, x, count = facts["n_att"], " X", len(facts["attributes"])
    tokens = clip.word_embeddings("".join(f"{x * n} {word}" for word in facts["attributes"]) + x * facts["n_ctx"])
    words = {f"token_middle{i}": tokens[(n + 1) * i - 1].expand(classes, 1, -1) for i in range(1, count + 1)}
    idle = {f"ctx_att{i}": learnt["ctx_att1"] * 0 for i in range(count + 1, 4)}
    return {name: tensor.contiguous() for name, tensor in (words | idle).items()}


class WarmUp(torch.optim.lr_scheduler.LRScheduler):
    """As Dassl's schedulers do, its state holds the scheduler that follows, and that one the optimiser."""

    def __init__(self, optimizer: torch.optim.Optimizer, successor: torch.optim.lr_scheduler.LRScheduler):
        self.successor = successor
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [1e-5 for _ in self.base_lrs]


def save(state: dict[str, Tensor], path: Path, legacy: bool = False) -> Path:
    """Save a checkpoint as Dassl's trainer does, the optimiser with momentum and a scheduler object included."""
    learnt = [torch.nn.Parameter(t.clone()) for name, t in state.items() if name.endswith(("ctx", "VPT_shallow"))]
    optimizer = torch.optim.SGD(learnt or [torch.nn.Parameter(torch.zeros(2))], lr=0.002, momentum=0.9)
    for parameter in learnt:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scheduler = WarmUp(optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50))
    content = {
        "state_dict": OrderedDict(state),
        "epoch": 50,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "val_result": np.float64(71.5),
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("name", case_names(CORE))
def test_a_published_style_checkpoint_gives_the_golden_logits(
    name: str, golden_clip: FrozenCLIP, tmp_path: Path
) -> None:
    # case: a checkpoint as Dassl saves it
    case, names = read_case(CORE, name), read_config()["class_names"]
    images, method = load_file(CORE / "batch.safetensors")["image"], case.facts["method"]
    # what a user must say, since no shape shows it
    settings = {key: case.facts[key] for key in ("class_token_position",) if key in case.facts}
    published = as_published(method, case.under("final/"), case.facts, golden_clip, names)
    learner = import_checkpoint(save(published, tmp_path / "model.pth.tar-50"), method, golden_clip, names, **settings)
    with torch.no_grad():
        torch.testing.assert_close(learner(images), case.tensors["logits_final"], rtol=1e-4, atol=2e-5)
    legacy = save(published, tmp_path / "model-best.pth.tar", legacy=True)
    same = import_checkpoint(legacy, method, golden_clip, names, **settings).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in learner.state_dict().items())
    again = load_learner(learner.save_pretrained(tmp_path / "learner"), clip=golden_clip)
    with torch.no_grad():
        assert torch.equal(again(images), learner(images))


@pytest.mark.parametrize("name", [name for name in learnt_cases() if read_case(NEW, name).facts["method"] in SAVED])
def test_what_newer_repositories_save_gives_the_golden_logits(
    name: str, golden_clip: FrozenCLIP, tmp_path: Path
) -> None:
    case, names = read_case(NEW, name), read_config()["class_names"]
    images, (prefix, shown) = load_file(CORE / "batch.safetensors")["image"], SAVED[case.facts["method"]]
    method, settings = SETTINGS[case.facts["method"]](case.facts)
    told = {key: settings.pop(key) for key in shown}
    learnt = case.under("final/")
    if case.facts["method"] == "atprompt":
        learnt |= words_and_idle_vectors(learnt, case.facts, golden_clip, len(names))
    state = {f"{prefix}{tensor}": value for tensor, value in learnt.items()}
    learner = import_checkpoint(save(state, tmp_path / "model.pth.tar-5"), method, golden_clip, names, **settings)
    assert {key: getattr(learner.config, key) for key in told} == told
    with torch.no_grad():
        close(learner(images), case.tensors["logits_final"], name, atol=2e-4)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("coop", {"n_ctx": 5}),
        ("ivlp", {"n_ctx": 3, "depth": 3, "vision_n_ctx": 2, "vision_depth": 1}),
        ("ivlp", {"n_ctx": 4, "vision_depth": 0, "depth": 2}),
        ("maple", {"n_ctx": 3, "depth": 3}),
        ("vpt", {"depth": 1, "n_ctx": 6}),
        ("mvlpt", {"n_ctx": 3, "coupling_width": 16}),
        ("spg", {}),  # of a generator alone, whose tensors are called model.0.weight and so on
    ],
    ids=str,
)
def test_sizes_are_read_from_the_file(method: str, settings: dict, tmp_path: Path) -> None:
    learner = make(method, **settings)
    file = tmp_path / "prompts.safetensors"
    save_file(learner.published_state(), file)
    again = import_checkpoint(file, method, small_clip(), NAMES)
    assert torch.equal(logits_of(again), logits_of(learner))
    assert {key: getattr(again.config, key) for key in settings} == settings


def test_attribute_words_must_be_said_and_be_the_files_own(tmp_path: Path) -> None:
    learner, clip = make("tcp", attributes=["color", "shape"], published_slicing=True), small_clip()
    facts = {"n_att": 4, "n_ctx": 4, "attributes": ["color", "shape"]}
    learnt = learner.published_state()
    file = save(learnt | words_and_idle_vectors(learnt, facts, clip, len(NAMES)), tmp_path / "m.pt")
    again = import_checkpoint(file, "tcp", clip, NAMES, attributes=["color", "shape"])
    assert torch.equal(logits_of(again), logits_of(learner))
    for words, message in (
        ([], "give them, as in"),
        (["color"], "2 attribute words"),
        (["color", "size"], "that are not"),
    ):
        with pytest.raises(VlpromptError, match=message):
            import_checkpoint(file, "tcp", clip, NAMES, attributes=words)


def test_a_second_head_is_read_and_bound_to_its_classes(tmp_path: Path) -> None:
    learner = make("kgcoop", head="dept")
    fit(learner, 1)
    file = save(learner.published_state(), tmp_path / "m.pt")
    again = import_checkpoint(file, "kgcoop", small_clip(), NAMES)
    assert again.config.head == "dept"
    assert torch.equal(logits_of(again), logits_of(learner))
    with pytest.raises(VlpromptError, match="its second head is bound to the classes that were trained on: give those"):
        import_checkpoint(file, "kgcoop", small_clip(), NAMES[:3])


def test_half_precision_and_wrapped_names_are_read(tmp_path: Path) -> None:
    learner = make("maple")
    state = {f"module.prompt_learner.{k}": v.half() for k, v in learner.published_state().items()}
    again = import_checkpoint(save(state, tmp_path / "model.pth.tar-5"), "maple", small_clip(), NAMES)
    assert all(p.dtype == torch.float32 for p in again.parameters())
    torch.testing.assert_close(logits_of(again), logits_of(learner), rtol=0.01, atol=0.05)


def test_other_classes_may_be_scored(tmp_path: Path) -> None:
    learner = make("kgcoop")
    file = save(as_published("kgcoop", learner.published_state(), {}, small_clip(), list(NAMES)), tmp_path / "m.pt")
    again = import_checkpoint(file, "kgcoop", small_clip(), ["okapi", "tapir"])
    learner.set_class_names(["okapi", "tapir"])
    assert torch.equal(logits_of(again), logits_of(learner))


class Payload:
    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, ("something-ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"ctx": Payload()}}, "holds no state dict"),
        ({"state_dict": Payload()}, "holds no state dict"),
        ({"state_dict": {"epoch": 3}}, "holds no state dict"),
        ([torch.zeros(2)], "holds no state dict"),
        ({"state_dict": {"meta": torch.zeros(2)}}, "coop: the tensors lack ctx"),
        ({"ctx": torch.zeros(4, 32)}, "is (4, 32), (4, 64) is expected"),
        ({"ctx": torch.zeros(9, 4, 64)}, "is (9, 4, 64), (5, 4, 64) is expected"),
        ({"ctx": torch.full((4, 64), math.nan)}, "contains NaN or infinity in prompt.ctx"),
        ({"ctx": torch.zeros(4, 64), "token_prefix": torch.ones(3, 1, 64)}, "was trained on another backbone than"),
    ],
    ids=[
        "pickle",
        "object",
        "no tensors",
        "list",
        "other names",
        "other width",
        "other classes",
        "diverged",
        "other backbone",
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(content: object, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "model.pth.tar-50")
    with pytest.raises(VlpromptError) as error:
        import_checkpoint("model.pth.tar-50", "coop", small_clip(), NAMES)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("something-ran").exists()


def test_another_methods_checkpoint_warns(tmp_path: Path) -> None:
    file = save(make("maple").published_state(), tmp_path / "model.pth.tar-5")
    with pytest.warns(UserWarning, match="coop has no use for compound_prompt_projections.0.bias and 4 more"):
        import_checkpoint(file, "coop", small_clip(), NAMES)


def test_the_command_saves_a_learner(tmp_path: Path, capsys) -> None:
    clip = load_clip("vlprompt-tiny", device="cpu")
    names = ["cat", "dog", "owl"]
    learner = create_learner("coop", clip, names, n_ctx=4)
    file = save(as_published("coop", learner.published_state(), {}, clip, names), tmp_path / "model.pth.tar-50")
    start = [str(file), "method=coop", "backbone=vlprompt-tiny", f"output={tmp_path / 'learner'}"]
    assert import_command([*start, "classes=[cat,dog,owl]"]) == 0
    assert "coop on vlprompt-tiny, 768 learnt numbers, 3 classes" in capsys.readouterr().out.replace("\n", " ")
    again = load_learner(tmp_path / "learner", device="cpu")
    torch.testing.assert_close(again.classifier_matrix(), learner.classifier_matrix())
    assert import_command([*start, "dataset=emoji", "half=new"]) == 0
    for arguments, message in (
        ([], "say which file"),
        ([str(file)], "method= is missing"),
        (start, "either classes=[cat,dog] or dataset=NAME"),
        ([*start, "classes=cat"], "classes=cat is neither a list nor a readable file"),
        ([*start, "classes=[a,b]", "n_cxt=4"], "unknown key 'n_cxt': did you mean n_ctx"),
        ([*start, "dataset=emoji", "half=old"], "half must be all, base or new"),
        (["/no/file", *start[1:], "classes=[a,b]"], "no checkpoint at /no/file"),
    ):
        assert import_command(arguments) == 2
        assert message in capsys.readouterr().err

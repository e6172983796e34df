"""What every prompt learner promises, as checks that run over any registered method, yours included.

Example:
    import pytest
    from vlprompt.testing import CHECKS

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_method(check, tmp_path):
        check("my_method", tmp_path)

Each check takes a method's name, a folder to write to, and settings for the method; it raises AssertionError.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP, convert_to_custom_text_state_dict
from torch import Tensor

from vlprompt.base.devices import Precision
from vlprompt.base.layout import LEARNABLES
from vlprompt.clip.frozen import FrozenCLIP
from vlprompt.data.batch import Batch
from vlprompt.data.splits import Item
from vlprompt.errors import VlpromptError
from vlprompt.estimator.inputs import training_set
from vlprompt.learner.contract import PromptLearner
from vlprompt.learner.creation import create_learner
from vlprompt.learner.learning import Feed
from vlprompt.learner.objectives import Outputs
from vlprompt.learner.registration import method_info
from vlprompt.saving.folder import load_learner
from vlprompt.training.feed import FeatureFeed, Loading

NAMES = ("tench", "highway or road", "lamb's ear", "annual_crop land", "Pilatus PC-12")
NEW_NAMES = ("sea or lake", "okapi", "vending machine")
Check = Callable[..., None]
CHECKS: list[Check] = []


def small_model(
    custom_text: bool = False, resnet: bool = False, quick_gelu: bool = True, embed_dim: int = 64, **text: Any
) -> CLIP:
    """A CLIP with three small blocks a tower, 32 px, joint width D, and weights that are the same every time."""
    vision: dict[str, Any] = {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8, "head_width": 64}
    if resnet:
        vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3} | text
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = CLIP(embed_dim, vision, text, quick_gelu=quick_gelu)
        # OpenCLIP's initial deviations are tiny; larger ones make differences show
        for name, parameter in model.named_parameters():
            if "resblocks" in name and name.endswith("weight") and "ln" not in name:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    if not custom_text:
        return model
    custom = CustomTextCLIP(embed_dim, vision, text, quick_gelu=quick_gelu)
    custom.load_state_dict(convert_to_custom_text_state_dict(dict(model.state_dict())))
    return custom


@functools.cache
def small_clip(precision: Precision = "fp32", **options: Any) -> FrozenCLIP:
    """``small_model`` frozen on the CPU, with CLIP's tokenizer; one for all who ask alike, since nothing changes it."""
    return FrozenCLIP(small_model(**options), open_clip.SimpleTokenizer(), precision=precision, device="cpu")


def make(method: str, clip: FrozenCLIP | None = None, names: tuple[str, ...] = NAMES, **settings: Any) -> PromptLearner:
    """A learner on the small model, with depths that fit it unless ``settings`` say otherwise."""
    fitting = {key: 2 for key in ("depth", "vision_depth") if key in method_info(method)["config"]}
    return create_learner(method, clip or small_clip(), names, **(fitting | settings))


def make_ready(method: str, clip: FrozenCLIP | None = None, **options: Any) -> PromptLearner:
    """``make``, and let a head look at toy images: the data decide what it holds, of which nothing is trained yet."""
    learner = make(method, clip, **options)
    if learner.facts.head and learner.facts.labels == "needed":
        learner.learn(toy_feed(learner), lambda *_, **__: [])
    return learner


def toy_feed(learner: PromptLearner, per_class: int = 2) -> Feed:
    """Random features in hand of a learner's classes, images of one class near one another."""
    classes, width = len(learner.class_names), learner.clip.embed_dim
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(per_class * classes) % classes
    rows = torch.randn(len(labels), width, generator=generator) + 2 * torch.eye(classes, width)[labels]
    data = training_set((), (), learner.class_names)
    items = [Item(str(i), y, data.class_names[y]) for i, y in enumerate(labels.tolist())]
    return FeatureFeed(replace(data, train=items), learner.clip, Loading(views=1), rows=rows)


def toy_batch(count: int = 10) -> Batch:
    """Random images with labels that cycle through the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % len(NAMES)
    images = torch.randn(count, 3, 32, 32, generator=generator) + labels.view(-1, 1, 1, 1) / 2
    strong = images + torch.randn(images.shape, generator=generator) / 4
    masks = torch.zeros(count, 1, 32, 32)
    for i, mask in enumerate(masks):
        mask[:, : 8 + i, 4:28] = 1  # regions of several sizes, none of the whole image
    index = torch.arange(count)
    return {"image": images, "image_strong": strong, "mask": masks, "label": labels, "index": index}


def loss_of(learner: PromptLearner, batch: Batch | None = None) -> dict[str, Tensor]:
    """Losses on the toy batch, where random draws of a method's own are the same every time."""
    torch.manual_seed(0)
    return learner.loss(batch or toy_batch())


def fit(learner: PromptLearner, steps: int, lr: float = 0.002) -> list[float]:
    """Train on the toy batch for a few steps; return the losses."""
    optimizer = torch.optim.Adam(learner.trainable_parameters(), lr=lr)
    batch, history = toy_batch(), []
    for _ in range(steps):
        losses = learner.loss(batch)
        optimizer.zero_grad()
        learner.backward(losses)
        optimizer.step()
        history.append(losses["loss"].item())
    return history


def logits_of(learner: PromptLearner) -> Tensor:
    """Evaluation logits on the toy batch."""
    with torch.no_grad():
        outputs: Outputs = learner.eval()(toy_batch())
        return outputs.logits


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two tensors agree relative to their norm."""
    return bool((a - b).norm() <= tolerance * b.norm().clamp_min(1e-12))


def check(function: Check) -> Check:
    """Add a function to the suite."""
    CHECKS.append(function)
    return function


def _trains(learner: PromptLearner) -> bool:
    return bool(learner.trainable_parameters())


@check
def check_backbone_is_untouched(method: str, folder: Path, **settings: Any) -> None:
    """Training changes no weight of the frozen model and leaves no gradient on it."""
    learner = make_ready(method, **settings)
    before = learner.clip.weights_hash()
    if _trains(learner):
        fit(learner, 2)
    assert learner.clip.weights_hash() == before
    assert all(p.grad is None and not p.requires_grad for p in learner.clip.model.parameters())


@check
def check_loss_falls(method: str, folder: Path, **settings: Any) -> None:
    """The loss is finite, names its parts, reaches every learnable tensor and falls on a toy set."""
    learner = make_ready(method, **settings)
    losses = learner.loss(toy_batch())
    assert all(torch.isfinite(value) for value in losses.values())
    if not _trains(learner):
        return
    assert len(losses) > 1
    learner.backward(losses)
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, f"no gradient reaches {name}"
        assert parameter.dtype == torch.float32, f"{name} is {parameter.dtype}"
    history = fit(learner, 12)
    assert history[-1] < history[0], f"the loss went from {history[0]} to {history[-1]}"


@check
def check_new_class_names(method: str, folder: Path, **settings: Any) -> None:
    """New class names work at once and equal a learner made for them, or are refused and names of its own are not."""
    learner = make_ready(method, **settings)
    if not learner.facts.new_classes:
        with _raises(method):
            learner.set_class_names(NEW_NAMES)
        _check_part_of_classes(learner)
        return
    old = logits_of(learner)
    learner.set_class_names(NEW_NAMES)
    bound = bool(learner.facts.parts)  # a part of it knows the classes that were trained on, and scores no others
    fresh = make_ready(method, names=NAMES if bound else NEW_NAMES, **settings)
    fresh.load_state_dict(learner.state_dict())
    fresh.set_class_names(NEW_NAMES)
    assert close(logits_of(learner), logits_of(fresh))
    learner.set_class_names(NAMES)
    assert torch.equal(logits_of(learner), old)


def _check_part_of_classes(learner: PromptLearner) -> None:
    """Of its own classes a bound learner scores some, in any order, as it does among all."""
    places = [3, 0, 1]
    some, whole = [NAMES[place] for place in places], logits_of(learner)
    with learner.scoring(some):
        assert learner.class_names == tuple(some)
        assert torch.equal(logits_of(learner), whole[:, places])
    assert torch.equal(logits_of(learner), whole)


@check
def check_save_and_load(method: str, folder: Path, **settings: Any) -> None:
    """A saved learner gives the same logits, holds its learnables only, and refuses another backbone."""
    learner = make_ready(method, **settings)
    if _trains(learner):
        fit(learner, 1)
    learner.save_pretrained(folder)
    assert torch.equal(logits_of(load_learner(folder, clip=learner.clip)), logits_of(learner))
    learnt = sum(tensor.numel() for tensor in learner.state_dict().values())
    size = (folder / LEARNABLES).stat().st_size
    assert size < 4 * learnt + 100 * len(learner.state_dict()) + 1000, f"{size} bytes for {learnt} numbers"
    with _raises(method):
        load_learner(folder, clip=small_clip(quick_gelu=False))


@check
def check_published_names(method: str, folder: Path, **settings: Any) -> None:
    """The learnables go out and come in under the authors' names."""
    learner, other = make_ready(method, **settings), make_ready(method, **settings)
    if not _trains(learner):
        return
    fit(learner, 1)
    other.load_published(learner.published_state())
    assert torch.equal(logits_of(other), logits_of(learner))


@check
def check_chunking_changes_nothing(method: str, folder: Path, **settings: Any) -> None:
    """Encoding classes in checkpointed chunks gives the same loss and gradients."""
    clip = small_clip()
    whole, chunked = make_ready(method, clip, **settings), make_ready(method, clip, text_chunk=2, **settings)
    chunked.load_state_dict(whole.state_dict())
    a, b = loss_of(whole), loss_of(chunked)
    assert close(a["loss"], b["loss"])
    if not _trains(whole):
        return
    whole.backward(a)
    chunked.backward(b)
    for (name, p), q in zip(whole.named_parameters(), chunked.parameters(), strict=True):
        assert p.grad is not None, f"no gradient reaches {name}"
        assert q.grad is not None, f"no gradient reaches {name}, chunk by chunk"
        assert close(q.grad, p.grad, 1e-4), f"the gradient of {name} differs"


@check
def check_cached_features_change_nothing(method: str, folder: Path, **settings: Any) -> None:
    """Where images are cacheable, cached features give the loss that images give."""
    learner = make_ready(method, **settings)
    if not learner.facts.cacheable_images:
        return
    cached = toy_batch()
    cached["image_features"] = learner.clip.encode_image(cached.pop("image"))
    assert close(loss_of(learner, cached)["loss"], loss_of(make_ready(method, **settings))["loss"])


@check
def check_same_seed_same_weights(method: str, folder: Path, **settings: Any) -> None:
    """Two learners of one seed train to the same bits; making one leaves the global generator alone."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    learners = [make_ready(method, **settings) for _ in range(2)]
    assert torch.equal(torch.rand(1), expected)
    for learner in learners:
        if _trains(learner):
            torch.manual_seed(0)
            fit(learner, 2)
    for (name, p), q in zip(learners[0].named_parameters(), learners[1].parameters(), strict=True):
        assert torch.equal(p, q), f"{name} differs between two runs of one seed"


@check
def check_bf16_towers(method: str, folder: Path, **settings: Any) -> None:
    """On bf16 towers losses and gradients are finite, learnables stay fp32, and logits are near the fp32 ones."""
    learner, exact = make_ready(method, small_clip("bf16"), **settings), make_ready(method, **settings)
    exact.load_state_dict(learner.state_dict())
    assert close(logits_of(learner), logits_of(exact), 0.05)
    if _trains(learner):
        assert all(value == value for value in fit(learner, 2))
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in learner.parameters())


@check
def check_both_text_layouts(method: str, folder: Path, **settings: Any) -> None:
    """``CLIP`` and ``CustomTextCLIP`` of the same weights give the same logits."""
    flat, custom = make_ready(method, **settings), make_ready(method, small_clip(custom_text=True), **settings)
    custom.load_state_dict(flat.state_dict())
    assert close(logits_of(custom), logits_of(flat))


@check
def check_resnet(method: str, folder: Path, **settings: Any) -> None:
    """On a ResNet text-only methods work, and visual prompts are refused in one sentence."""
    clip = small_clip(resnet=True)
    if make_ready(method, **settings).facts.cacheable_images:
        assert torch.isfinite(logits_of(make_ready(method, clip, **settings))).all()
        return
    with _raises(method):
        make_ready(method, clip, **settings)


@contextlib.contextmanager
def _raises(method: str) -> Iterator[None]:
    """Expect a VlpromptError of one line."""
    said = None
    try:
        yield
    except VlpromptError as error:
        said = str(error)
    assert said is not None, f"{method}: no refusal"
    assert "\n" not in said, f"{method}: the refusal has more than one line"

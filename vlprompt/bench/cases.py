"""What is measured: cases of one step or tower pass, and the pairs of them that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from vlprompt.base.devices import Precision
from vlprompt.clip.openclip import IMAGENET_CLASSNAMES
from vlprompt.data.splits import DEFAULT_TEMPLATE
from vlprompt.errors import VlpromptError


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        method, settings: the learner.
        classes, batch: C and B.
        what: a training ``step``, the ``text`` side's forward and backward, ``images``, a frozen forward pass, or
            ``adapt``, the tuning and the prediction of one test image by B views.
        text: ``shared``, ``full`` or, for whole sequences cut behind the longest prompt, ``trimmed``.
        images: ``cached`` features, or ``fresh`` ones from the tower.
        precision: of the towers.
        groups: prompts of each class in a step, G: the batch where they are image-conditioned, several of a collection.
        one_by_one: images of a batch in steps of their own, their gradients added, as memory demands at full length.
    """

    method: str = "coop"
    settings: dict[str, Any] = field(default_factory=dict)
    classes: int = 100
    batch: int = 32
    what: str = "step"
    text: str = "shared"
    images: str = "cached"
    precision: Precision = "fp32"
    groups: int = 1
    one_by_one: bool = False


def class_names(count: int) -> list[str]:
    """ImageNet's first names, which seldom begin alike; behind its thousand, two of them at a time."""
    different = dict.fromkeys(IMAGENET_CLASSNAMES)
    if count > len(different) ** 2:
        raise VlpromptError(f"classes={count} is more than there are names to measure with: {len(different) ** 2}")
    made = (f"{second} and {first}" for first in different for second in different)
    return [*IMAGENET_CLASSNAMES[:count], *islice(made, max(count - len(IMAGENET_CLASSNAMES), 0))]


@dataclass(frozen=True)
class Pair:
    """A comparison: how many times faster and smaller ``fast`` is than ``plain``, and than ``careful`` code."""

    title: str
    fast: Case
    plain: Case
    careful: Case | None = None


SRC = {
    "objective": [
        "ce",
        f"text_anchor(weight=25, distance='l1', templates=['{DEFAULT_TEMPLATE}'])",
        "image_anchor(weight=10)",
        f"logit_kl(templates=['{DEFAULT_TEMPLATE}'])",
    ]
}

# what enters the text tower in the middle or stands beside its blocks, with the recipes' batches
INSIDE: dict[str, dict[str, Any]] = {
    "tcp": {"batch": 32},
    "mma": {"batch": 16, "images": "fresh"},
    "mmrl": {"batch": 4, "images": "fresh"},
}


def pairs(classes: Sequence[int], methods: Sequence[str], layers: int) -> list[Pair]:
    """All comparisons for class counts C, on a backbone whose shallower tower has so many layers."""
    out: list[Pair] = []
    depth = min(9, layers)

    def add(title: str, fast: dict[str, Any], plain: dict[str, Any]) -> None:
        careful = fast | {"text": "trimmed", "precision": "fp32"} if plain.get("text") == "full" else None
        out.append(Pair(title, Case(**fast), Case(**(fast | plain)), Case(**careful) if careful else None))

    def add_text_and_step(case: dict[str, Any]) -> None:
        named = f"{case['method']} C={case['classes']}"
        text = case | {"what": "text"}
        add(f"{named}: text forward+backward, prefix sharing / full length", text, {"text": "full"})
        add(f"{named}: step, prefix sharing / full length", case, {"text": "full"})

    for c in classes:
        if "coop" in methods:
            coop = {"method": "coop", "settings": {"n_ctx": 16, "text_chunk": "auto"}, "classes": c}
            add(
                f"coop C={c}: text forward+backward, prefix sharing / full length",
                coop | {"what": "text"},
                {"text": "full"},
            )
            add(
                f"coop C={c}: step, prefix sharing + cached images / full length + fresh images",
                coop,
                {"text": "full", "images": "fresh"},
            )
            add(
                f"coop C={c}: the same with bf16 towers",
                coop | {"precision": "bf16"},
                {"text": "full", "images": "fresh", "precision": "fp32"},
            )
            add(f"coop C={c}: step, cached / fresh images", coop, {"images": "fresh"})
            add(f"coop C={c}: step, bf16 / fp32 towers", coop | {"precision": "bf16"}, {"precision": "fp32"})
        if "maple" in methods:
            maple = {"method": "maple", "classes": c, "batch": 4, "images": "fresh", "settings": {"depth": depth}}
            add(f"maple C={c}: step, prefix sharing / full length", maple, {"text": "full"})
            add(f"maple C={c}: step, bf16 / fp32 towers", maple | {"precision": "bf16"}, {"precision": "fp32"})
    hundred = min(max(classes), 100)
    if "cocoop" in methods:
        for b in (1, 8):
            cocoop = {"method": "cocoop", "classes": hundred, "batch": b, "groups": b, "settings": {"n_ctx": 4}}
            add(
                f"cocoop C={hundred} B={b}: step, prefix sharing / full length",
                cocoop,
                {"text": "full", "one_by_one": b > 1},
            )
    if "promptsrc" in methods:
        promptsrc = {
            "method": "promptsrc",
            "classes": hundred,
            "batch": 4,
            "images": "fresh",
            "settings": SRC | {"depth": depth, "vision_depth": depth},
        }
        add_text_and_step(promptsrc)
    if "proda" in methods:
        proda = {"method": "proda", "classes": hundred, "batch": 4, "groups": 4}
        add(f"proda C={hundred}: step, prefix sharing / full length", proda, {"text": "full"})
    for method in [method for method in INSIDE if method in methods]:
        add_text_and_step({"method": method, "classes": hundred, **INSIDE[method]})
    if "tpt" in methods:
        tpt = {"method": "tpt", "classes": hundred, "batch": 64, "what": "adapt", "settings": {"n_views": 64}}
        add(f"tpt C={hundred}: text side of one test image, prefix sharing / full length", tpt, {"text": "full"})
        add(
            f"tpt C={hundred}: one test image with its 64 views, prefix sharing / full length",
            tpt | {"images": "fresh"},
            {"text": "full"},
        )
    if "images" in methods:
        images = {"what": "images", "batch": 8, "precision": "bf16"}
        add("image encoding, bf16 / fp32 towers", images, {"precision": "fp32"})
    return out

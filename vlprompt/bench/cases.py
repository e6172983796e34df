"""The cases of ``vlprompt bench``: a training step or tower pass each, and the pairs that are compared."""

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
        text: ``shared`` prefixes, ``full`` sequences, or sequences ``trimmed`` to the longest prompt.
        images: ``cached`` features, or ``fresh`` ones from the tower.
        precision: of the towers.
        groups: G, prompts per class in a step: the batch size if they are image-conditioned, or those of a collection.
        one_by_one: accumulate gradients image by image, as full-length prompts require to fit in memory.
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
    """ImageNet's first class names, which rarely share a beginning; after its thousand, pairs of them."""
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

# methods with tokens or adapters inside the text tower, with the batches of their recipes
INSIDE: dict[str, dict[str, Any]] = {
    "tcp": {"batch": 32},
    "mma": {"batch": 16, "images": "fresh"},
    "mmrl": {"batch": 4, "images": "fresh"},
}


def pairs(classes: Sequence[int], methods: Sequence[str], layers: int) -> list[Pair]:
    """Return the comparisons of some methods.

    Args:
        classes: class counts C; methods that are measured once take the largest, but at most 100.
        methods: names of methods, and ``images`` for the image tower.
        layers: the number of blocks of the backbone's shallower tower.
    """
    depth = min(9, layers)
    groups = [*(_for_each_count(c, depth) for c in classes), _for_one_count(min(max(classes), 100), depth)]
    return [pair for group in groups for method, found in group.items() if method in methods for pair in found]


def _for_each_count(c: int, depth: int) -> dict[str, list[Pair]]:
    """The comparisons that are made for every class count, by method."""
    coop = {"method": "coop", "settings": {"n_ctx": 16, "text_chunk": "auto"}, "classes": c}
    maple = {"method": "maple", "classes": c, "batch": 4, "images": "fresh", "settings": {"depth": depth}}
    full, fresh, fp32 = {"text": "full"}, {"images": "fresh"}, {"precision": "fp32"}
    bf16 = {"precision": "bf16"}
    return {
        "coop": [
            _pair(f"coop C={c}: text forward+backward, prefix sharing / full length", coop | {"what": "text"}, full),
            _pair(f"coop C={c}: step, prefix sharing + cached images / full length + fresh images", coop, full | fresh),
            _pair(f"coop C={c}: the same with bf16 towers", coop | bf16, full | fresh | fp32),
            _pair(f"coop C={c}: step, cached / fresh images", coop, fresh),
            _pair(f"coop C={c}: step, bf16 / fp32 towers", coop | bf16, fp32),
        ],
        "maple": [
            _pair(f"maple C={c}: step, prefix sharing / full length", maple, full),
            _pair(f"maple C={c}: step, bf16 / fp32 towers", maple | bf16, fp32),
        ],
    }


def _for_one_count(c: int, depth: int) -> dict[str, list[Pair]]:
    """The comparisons that are made for one class count, by method."""
    full = {"text": "full"}
    cocoop = {"method": "cocoop", "classes": c, "settings": {"n_ctx": 4}}
    promptsrc = {
        "method": "promptsrc",
        "classes": c,
        "batch": 4,
        "images": "fresh",
        "settings": SRC | {"depth": depth, "vision_depth": depth},
    }
    proda = {"method": "proda", "classes": c, "batch": 4, "groups": 4}
    tpt = {"method": "tpt", "classes": c, "batch": 64, "what": "adapt", "settings": {"n_views": 64}}
    return {
        "cocoop": [
            _pair(
                f"cocoop C={c} B={b}: step, prefix sharing / full length",
                cocoop | {"batch": b, "groups": b},
                full | {"one_by_one": b > 1},
            )
            for b in (1, 8)
        ],
        "promptsrc": _text_and_step(promptsrc),
        "proda": [_pair(f"proda C={c}: step, prefix sharing / full length", proda, full)],
        **{method: _text_and_step({"method": method, "classes": c, **case}) for method, case in INSIDE.items()},
        "tpt": [
            _pair(f"tpt C={c}: text side of one test image, prefix sharing / full length", tpt, full),
            _pair(
                f"tpt C={c}: one test image with its 64 views, prefix sharing / full length",
                tpt | {"images": "fresh"},
                full,
            ),
        ],
        "images": [
            _pair(
                "image encoding, bf16 / fp32 towers",
                {"what": "images", "batch": 8, "precision": "bf16"},
                {"precision": "fp32"},
            )
        ],
    }


def _pair(title: str, fast: dict[str, Any], plain: dict[str, Any]) -> Pair:
    """A comparison of a case with a plain one that differs in some fields."""
    careful = Case(**(fast | {"text": "trimmed", "precision": "fp32"})) if plain.get("text") == "full" else None
    return Pair(title, Case(**fast), Case(**(fast | plain)), careful)


def _text_and_step(case: dict[str, Any]) -> list[Pair]:
    """Prefix sharing compared with full length, for the text side and for a whole step."""
    name = f"{case['method']} C={case['classes']}"
    return [
        _pair(
            f"{name}: text forward+backward, prefix sharing / full length", case | {"what": "text"}, {"text": "full"}
        ),
        _pair(f"{name}: step, prefix sharing / full length", case, {"text": "full"}),
    ]

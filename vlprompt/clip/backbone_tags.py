"""Preprocessing and activation of published weights, from OpenCLIP's table.

A file of weights does not contain them, and features are silently worse with the wrong ones: 58 published tags differ
from OpenCLIP's defaults.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg

from vlprompt.errors import VlpromptError, nearest

PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class TagFacts:
    """What weights need besides their architecture.

    Attributes:
        preprocessing: mean, std, interpolation and resize mode of the image transform.
        quick_gelu: whether the towers' activation is QuickGELU.
        doubts: what is not certain because tags of the architecture differ, as phrases.
    """

    preprocessing: dict[str, Any]
    quick_gelu: bool
    doubts: tuple[str, ...] = ()


def tag_facts(name: str, tag: str) -> TagFacts:
    """Facts of a published tag; an unknown one raises ``VlpromptError`` with the nearest tags."""
    if not get_pretrained_cfg(name, tag):
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise VlpromptError(f"unknown pretrained tag '{tag}' for {name}: {nearest(tag, tags)}")
    facts = _facts(name, tag)
    return TagFacts({key: facts[key] for key in PREPROCESSING}, facts["quick_gelu"])


def openai_facts() -> TagFacts:
    """Facts of all weights published by OpenAI: OpenCLIP's default preprocessing, and QuickGELU."""
    return TagFacts({key: asdict(PreprocessCfg())[key] for key in PREPROCESSING}, quick_gelu=True)


def common_facts(name: str, quick_gelu: bool = False) -> TagFacts:
    """What all published tags of an architecture have in common, and OpenCLIP's defaults with a doubt where not.

    Args:
        name: the architecture.
        quick_gelu: whether to assume QuickGELU if tags differ or there are none, even if the architecture has GELU.
    """
    facts = {"quick_gelu": quick_gelu or _quick_gelu(name), **openai_facts().preprocessing}
    of_tags = {tag: _facts(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    doubts = []
    for key in facts:
        by_value: dict[Any, list[str]] = {}
        for tag, values in of_tags.items():
            by_value.setdefault(values[key], []).append(tag)
        if len(by_value) == 1:
            facts[key] = next(iter(by_value))
        elif by_value:
            choices = [f"{_said(key, value)} for {_listed(tags)}" for value, tags in by_value.items()]
            doubts.append(f"{' and '.join(choices)} ({_said(key, facts[key])} is taken)")
    return TagFacts({key: facts[key] for key in PREPROCESSING}, facts["quick_gelu"], tuple(doubts))


def _facts(name: str, tag: str) -> dict[str, Any]:
    listed = get_pretrained_cfg(name, tag)
    facts = asdict(PreprocessCfg()) | {key: listed[key] for key in PREPROCESSING if key in listed}
    facts = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
    return facts | {"quick_gelu": bool(listed.get("quick_gelu")) or _quick_gelu(name)}


def _quick_gelu(name: str) -> bool:
    return bool((open_clip.get_model_config(name) or {}).get("quick_gelu", False))


def _said(key: str, value: Any) -> str:
    return ("QuickGELU" if value else "GELU") if key == "quick_gelu" else f"{key} {value}"


def _listed(tags: list[str], limit: int = 2) -> str:
    more = f" and {len(tags) - limit} more" if len(tags) > limit else ""
    return ", ".join(tags[:limit]) + more

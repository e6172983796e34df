"""Docstrings as the site's renderer wants them: one entry a name, and examples as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

SEVERAL = re.compile(r"^(?P<space> +)(?P<names>\w+(?:, \w+)+):(?P<text>.*(?:\n(?P=space) +\S.*)*)$", re.M)
EXAMPLE = re.compile(r"(?:^(?P<space> *)>>> .*\n?)(?:^(?P=space)\S.*\n?)*", re.M)


def one_entry_a_name(text: str) -> str:
    """Write ``low, high: ends.`` as two entries."""

    def split(entry: re.Match[str]) -> str:
        return "\n".join(f"{entry['space']}{name}:{entry['text']}" for name in entry["names"].split(", "))

    return SEVERAL.sub(split, text)


def examples_as_code(text: str) -> str:
    """Put a fence around lines that start with ``>>>`` and what they print."""

    def fence(example: re.Match[str]) -> str:
        space = example["space"]
        return f"{space}```pycon\n{example[0].rstrip()}\n{space}```\n"

    return EXAMPLE.sub(fence, text)


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = examples_as_code(one_entry_a_name(obj.docstring.value))

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Show the functions that run whose stubs, with overloads alone, the package exports to type checkers."""
        if pkg.name == "vlprompt":
            for name, place in {"create_learner": "learner.creation", "run": "runs.one"}.items():
                pkg.set_member(name, griffe.Alias(name, f"vlprompt.{place}.{name}"))

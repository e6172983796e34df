"""What is chosen among, and how: as users write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlprompt.base.parts import read_part
from vlprompt.base.schema import settings_of
from vlprompt.base.settings import AUTO, ChoiceOptions
from vlprompt.base.settings_text import read_settings
from vlprompt.choosing.budget import seconds_of
from vlprompt.errors import VlpromptError
from vlprompt.learner.registration import METHODS
from vlprompt.training.shipped_recipes import CONFIGS

FILE = CONFIGS / "auto.yaml"


@dataclass(frozen=True)
class Candidate:
    """A method that may be chosen.

    Attributes:
        text: as it was written.
        method: its name.
        settings: of the method or of its training, in place of the recipe's.
    """

    text: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> Candidate:
        """Read ``name`` or ``name(key=value, …)``.

        Raises:
            VlpromptError: it cannot be read, or no method has that name.
        """
        method, settings = read_part(text, "candidate")
        METHODS.info(method)
        return cls(text, method, settings)


def choice_options(given: Mapping[str, Any]) -> ChoiceOptions:
    """The options of a choice: those that are given, and otherwise what ``configs/auto.yaml`` says.

    Raises:
        VlpromptError: one is unknown or of the wrong kind, or a candidate is.
    """
    shipped = settings_of(ChoiceOptions, read_settings(FILE), f"{FILE.name}: ")
    options = ChoiceOptions(**{**shipped, **settings_of(ChoiceOptions, given, of=f" for method={AUTO}")})
    seconds_of(options.budget)
    if not options.candidates:
        raise VlpromptError("candidates is empty: give at least one method, or leave it out")
    twice = next((text for text in options.candidates if options.candidates.count(text) > 1), None)
    if twice is not None:
        raise VlpromptError(f"candidates contains {twice} twice: give it once")
    for text in (*options.candidates, options.alone):
        Candidate.of(text)
    return options

"""Hints about class names that make poor prompts: numbers, ids, and words run together."""

from __future__ import annotations

import re
from collections.abc import Sequence

NUMBER = re.compile(r"[a-z]{0,2}[\d\s._-]+", re.IGNORECASE)  # 7, 007, 12.5, n02124075
CAMEL = re.compile(r"[A-Z]?[a-z]+(?:[A-Z][a-z]+)+")  # AnnualCrop


def hint_names(class_names: Sequence[str]) -> str:
    """Return a sentence about names that are numbers or words run together; empty if there are none.

    >>> hint_names(["cat", "AnnualCrop"])
    "1 of 2 class names is made of words without spaces, which make poor prompts, such as 'a photo of a AnnualCrop.': \
give the names that you would say (in classnames.txt, or the column class of a table)"
    """
    for what, form in (("numbers or codes", NUMBER), ("words without spaces", CAMEL)):
        odd = [name for name in class_names if form.fullmatch(name)]
        if odd:
            are = "are" if len(odd) > 1 else "is"
            return (
                f"{len(odd)} of {len(class_names)} class names {are} made of {what}, which make poor prompts, such as "
                f"'a photo of a {odd[0]}.': give the names that you would say (in classnames.txt, or the column class "
                "of a table)"
            )
    return ""

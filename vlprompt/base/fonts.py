"""Fonts for figures with class names in any script: installed fonts that have the characters, or a warning.

matplotlib's default font has Latin, Greek, Cyrillic and more, but no Chinese, Japanese or Korean and few emoji; for
missing characters matplotlib draws boxes and gives a warning each.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, ParamSpec

from rich.cells import cell_len, set_cell_size

from vlprompt.errors import warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

P = ParamSpec("P")
BOXES = "Last Resort"  # a font with a box for every character
JOINED = {"AL", "R"}  # bidirectional classes of letters that are written from right to left
SHAPES_TEXT = (3, 11)  # the first matplotlib that joins and orders such letters
UNKNOWN = "?"  # replaces characters that no font has


def shorten(text: str, most: int) -> str:
    """Shorten a label to a width in columns; Chinese, Japanese and Korean characters and emoji take two.

    >>> shorten("sunflower", 6), shorten("向日葵の花", 6)
    ('sunfl…', '向日…')
    """
    return text if cell_len(text) <= most else set_cell_size(text, most - 1).rstrip() + "…"


def legible(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Apply ``make_legible`` to the figure that a function returns, as a decorator."""

    @wraps(draw)
    def lettered(*args: P.args, **kwargs: P.kwargs) -> Figure:
        figure = draw(*args, **kwargs)
        make_legible(figure)
        return figure

    return lettered


def make_legible(figure: Figure) -> None:
    """Set fonts that have the characters of a figure's texts, and warn if none are installed.

    Characters that no installed font has become question marks.
    """
    import matplotlib
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    signs = {sign for text in texts for sign in text.get_text() if not sign.isspace()}
    usual = list(matplotlib.rcParams["font.family"])
    missing = signs - _signs_of(_default_font())
    if missing:
        fonts = _fonts_for(frozenset(missing))
        lacking = missing - set().union(*map(_signs_of, fonts.values()))
        families = [*usual, *fonts]
        for text in texts:
            text.set_fontfamily(families)
        _replace(figure, texts, lacking)
        _say(lacking)
    _say_unjoined(signs, matplotlib.__version_info__[:2])


def _default_font() -> str:
    from matplotlib.font_manager import FontProperties, findfont

    return findfont(FontProperties())


@lru_cache(maxsize=256)
def _signs_of(path: str) -> frozenset[str]:
    """The characters in a font file; empty if it cannot be read."""
    from matplotlib.font_manager import get_font

    try:
        return frozenset(map(chr, get_font(path).get_charmap()))
    except (RuntimeError, OSError, ValueError):
        return frozenset()


@lru_cache(maxsize=64)
def _fonts_for(signs: frozenset[str]) -> dict[str, str]:
    """Files by family of a few installed fonts that together have the characters, as far as possible."""
    chosen: dict[str, str] = {}
    left, known = set(signs), _installed()
    while left:
        gains = {family: len(left & _signs_of(path)) for family, path in known.items() if family not in chosen}
        best = max(gains, key=lambda family: (gains[family], "Sans" in family), default=None)
        if best is None or not gains[best]:
            break
        chosen[best] = known[best]
        left -= _signs_of(known[best])
    return chosen


def _installed() -> dict[str, str]:
    """A file of each installed font family, including fonts installed since matplotlib cached its list."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    listed = {font.fname for font in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - listed):
        try:
            fontManager.addfont(path)
        except (RuntimeError, OSError, NotImplementedError, ValueError):
            continue  # bitmap fonts, such as coloured emoji, which matplotlib cannot draw
    known = [font for font in fontManager.ttflist if not font.name.startswith(BOXES)]
    fonts = [font for font in known if os.path.isfile(font.fname)]  # matplotlib's cached list may be outdated
    fonts.sort(key=lambda font: (font.style != "normal", abs(_weight(font.weight) - 400), font.fname))
    return {font.name: font.fname for font in reversed(fonts)}


def _weight(weight: int | str) -> int:
    from matplotlib.font_manager import weight_dict

    return weight if isinstance(weight, int) else weight_dict.get(weight, 400)


def _replace(figure: Figure, texts: Iterable[Text], lacking: set[str]) -> None:
    """Replace characters that no font has in the texts and tick labels."""
    from matplotlib.ticker import FixedLocator

    # joiners and combining marks are just removed
    table = {ord(sign): "" if unicodedata.category(sign) in ("Cf", "Mn") else UNKNOWN for sign in lacking}
    for text in texts:
        text.set_text(text.get_text().translate(table))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if lacking and isinstance(axis.get_major_locator(), FixedLocator):  # other tick labels are numbers
                axis.set_ticklabels([label.get_text().translate(table) for label in axis.get_ticklabels()])


def _say(lacking: set[str]) -> None:
    drawn = sorted(sign for sign in lacking if unicodedata.category(sign) not in ("Cf", "Mn"))
    if not drawn:
        return
    shown = "".join(drawn[:8]) + ("…" if len(drawn) > 8 else "")
    wanted = dict.fromkeys(_package(sign) for sign in drawn)
    warn(
        f"no font on this machine draws {shown}, so the figure shows '{UNKNOWN}' for {len(drawn)} of its signs: "
        f"install {' and '.join(wanted)}, and draw it again",
    )


def _package(sign: str) -> str:
    """The fonts to install for a character."""
    name = unicodedata.name(sign, "")
    if name.startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "FULLWIDTH", "HALFWIDTH", "IDEOGRAPHIC", "BOPOMOFO")):
        return "Noto Sans CJK (fonts-noto-cjk)"
    if unicodedata.category(sign) in ("So", "Sk"):
        return "Noto Emoji or Symbola (fonts-symbola)"
    return "Noto Sans (fonts-noto-core)"


def _say_unjoined(signs: set[str], version: tuple[int, int]) -> None:
    """Warn if matplotlib is too old to draw Arabic and Hebrew correctly."""
    if version < SHAPES_TEXT and any(unicodedata.bidirectional(sign) in JOINED for sign in signs):
        warn(
            f"matplotlib {'.'.join(map(str, version))} draws Arabic and Hebrew from left to right and unjoined: "
            f"upgrade it to {'.'.join(map(str, SHAPES_TEXT))}",
        )

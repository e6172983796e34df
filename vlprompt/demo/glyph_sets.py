"""The symbols of the embedded `glyphs/*` datasets: which code points and fonts, and their names as words."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

SOURCE = "symbols"

EVERYDAY_FONTS: tuple[str, ...] = ("DejaVuSans", "DejaVuSans-Bold")
OTHER_FONTS = (
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
)

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ARROWS = "←↑→↓↔↕↖↗↘↙↜↝↞↠↢↣↤↥↦↧↩↪↫↬↭↯↰↱↲↳↴↵↶↷↺↻⇄⇅⇆⇇⇈⇉⇊⇋⇌⇐⇑⇒⇓⇔⇕⇚⇛⇠⇡⇢⇣⇦⇧⇨⇩"


@cache
def font_path(name: str) -> Path:
    """Return the path of one of matplotlib's fonts, such as `DejaVuSans-Bold`."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


@cache
def font_codes(name: str) -> frozenset[int]:
    """Return the code points for which a font has a glyph."""
    from fontTools.ttLib import TTFont

    with TTFont(font_path(name), lazy=True) as font:
        return frozenset(font.getBestCmap())


def code_point_name(code: int) -> str:
    """Return a code point's Unicode name as natural lower-case words.

    >>> code_point_name(0x2654), code_point_name(0x1F0A1), code_point_name(0x431), code_point_name(0x1F064)
    ('white chess king', 'ace of spades', 'cyrillic letter be', 'domino zero one')
    """
    name = unicodedata.name(chr(code)).lower()
    if name.startswith("domino tile vertical-"):
        first, second = (DIGITS[int(part)] for part in name.split("-")[1:])
        return f"domino {first} {second}"
    return name.removeprefix("playing card ").replace("small letter", "letter").replace("-", " ")


def _codes(*spans: tuple[int, int]) -> list[int]:
    return [code for start, stop in spans for code in range(start, stop)]


def _symbols() -> list[int]:
    """Return the source's code points: symbols and dingbats, without those of the targets and odd ones."""
    left_out = _codes(
        (0x2619, 0x261A),
        (0x2630, 0x2638),  # trigrams, close to the hexagrams
        (0x2648, 0x2660),  # zodiac and chess
        (0x2673, 0x267A),  # numbered recycling signs
        (0x2686, 0x2690),
        (0x269E, 0x26A0),
        (0x26A2, 0x26AA),
        (0x26AC, 0x26B0),
    )
    faces = _codes((0x1F42D, 0x1F42F), (0x1F431, 0x1F432), (0x1F435, 0x1F436))  # of four animals
    codes = _codes((0x2600, 0x26C4), (0x2701, 0x2753), (0x2761, 0x2768)) + faces
    return [code for code in codes if code not in set(left_out)]


@cache
def glyph_sets() -> dict[str, dict[str, tuple[int, ...]]]:
    """Return `{set: {class name: code points}}` for the source and the targets, as far as DejaVu Sans has them."""
    cards = [start + rank for start in (0x1F0A0, 0x1F0B0, 0x1F0C0, 0x1F0D0) for rank in range(1, 15) if rank != 12]
    sets = {
        "symbols": _symbols(),
        "arrows": [ord(arrow) for arrow in ARROWS],
        "cards": cards,
        "chess": _codes((0x2654, 0x2660)),
        "cyrillic": _codes((0x430, 0x450)),
        "dominoes": _codes((0x1F063, 0x1F094)),
        "faces": _codes((0x1F600, 0x1F641)),
        "georgian": _codes((0x10D0, 0x10F1)),
        "greek": [code for code in _codes((0x3B1, 0x3CA)) if code != 0x3C2],  # without the final sigma
        "hexagrams": _codes((0x4DC0, 0x4E00)),
        "zodiac": _codes((0x2648, 0x2654)),
    }
    drawn = font_codes("DejaVuSans")
    upper = {"cyrillic", "greek"}  # the capital is a second drawing of the same letter
    return {
        name: {
            code_point_name(code): (code, ord(chr(code).upper())) if name in upper else (code,)
            for code in codes
            if code in drawn
        }
        for name, codes in sets.items()
    }


@cache
def fonts_with(code: int, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of some fonts that have a code point; the everyday ones if none has."""
    return tuple(name for name in wanted if code in font_codes(name)) or EVERYDAY_FONTS

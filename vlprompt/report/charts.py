"""The charts of the HTML page: hand-written SVG with the page's colours, which follow its light and dark modes.

``figures`` draws three of them for papers, from the same tables and summaries. Matplotlib's SVG would be too large for
the page, which has two charts per method and test: 20 KB instead of 3, 0.1 s instead of 0.4 ms; and it has no text that
appears when one points at a dot or bar.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from vlprompt.base.fonts import shorten
from vlprompt.base.sanitizing import printable
from vlprompt.evaluation.abstention import AccuracyCoverage
from vlprompt.evaluation.metrics import Reliability
from vlprompt.evaluation.robin_hood import robin_hood
from vlprompt.evaluation.statistics import ClassChange
from vlprompt.report.cells import Cell
from vlprompt.report.groups import ZERO_SHOT
from vlprompt.report.summaries import SHAPES, WIDEST, Style, reach, within_percent
from vlprompt.report.tables import Line, Section

Styles = Mapping[str, Style]  # of the curve and dots of each method
MARGIN, HALF_SIGN = 8, 4.0  # pixels to the right of an axis, and half the width of a character
MOST_POINTS = 100  # of an accuracy–coverage curve
MANY = 200  # classes; with more, dots have no text of their own, since ImageNet's would be half of the page


@dataclass(frozen=True)
class Axis:
    """One axis of a chart: from values to pixels.

    Attributes:
        low, high: values at its ends.
        start, end: pixels at its ends.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        """About five round values."""
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        first = math.ceil(self.low / step)
        return [round(i * step, 6) for i in range(first, math.floor(self.high / step) + 1)]


def _around(values: Iterable[float], margin: float = 0.08) -> tuple[float, float]:
    """The range of values, with a margin on both sides."""
    values = list(values)
    low, high = min(values), max(values)
    pad = (high - low) * margin or 1.0
    return low - pad, high + pad


def _escaped(text: str) -> str:
    return escape(printable(text))


def _svg(width: int, height: int, label: str, parts: Iterable[str]) -> str:
    """A chart of some elements, with a label for screen readers."""
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_escaped(label)}">'
    return "".join([head, *parts, "</svg>"])


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{_escaped(text)}</text>'


def _grid(x: Axis, y: Axis, x_ticks: Mapping[str, float]) -> list[str]:
    """Horizontal lines with their values, and the values on the x axis, of which the last stays within the chart."""
    parts = []
    for tick in y.ticks:
        parts.append(f'<path class="grid" d="M{x.start} {y(tick)}H{x.end}"/>')
        parts.append(_text(x.start - 5, y(tick) + 3, f"{tick:g}", "end"))
    places = {name: min(x(value), round(x.end + MARGIN - HALF_SIGN * len(name), 1)) for name, value in x_ticks.items()}
    return parts + [_text(place, y.start + 14, name, "mid") for name, place in places.items()]


def style_classes(label: str, styles: Styles) -> str:
    """The CSS classes of a method: its colour, and its shape unless that is a circle."""
    if label == ZERO_SHOT:
        return "zs"
    colour, shape = styles[label]
    return f"c{colour} {SHAPES[shape]}" if shape else f"c{colour}"


def few_shot_chart(section: Section, shots: Mapping[str, float], styles: Styles) -> str:
    """Draw a section of a few-shot table as curves with 95% intervals, cut off at 0 and 100."""
    cells = [cell for line in section.lines for cell in line.cells if cell.value is not None]
    if not cells:
        return ""
    positions = {name: math.log2(value) for name, value in shots.items()}
    x = Axis(*_around(positions.values(), 0.05), 34, 312)
    ends = _around([cell.number for cell in cells] + [e for cell in cells for e in cell.interval or ()])
    y = Axis(*within_percent(*ends), 196, 8)
    parts = _grid(x, y, positions)
    for line in section.lines:
        points = [
            (x(p), cell) for p, cell in zip(positions.values(), line.cells, strict=True) if cell.value is not None
        ]
        parts.append(_curve(line, points, y, style_classes(line.label, styles)))
    return _svg(320, 216, f"Accuracy by training images a class, {section.heading}", parts)


def _curve(line: Line, points: Sequence[tuple[float, Cell]], y: Axis, classes: str) -> str:
    """The curve of a method with its band of intervals and its dots."""
    banded = [(px, *within_percent(*cell.interval)) for px, cell in points if cell.interval]
    band = ""
    if len(banded) > 1:
        corners = [f"{px} {y(high)}" for px, _, high in banded] + [f"{px} {y(low)}" for px, low, _ in banded[::-1]]
        band = f'<path class="band {classes}" d="M{"L".join(corners)}Z"/>'
    path = "L".join(f"{px} {y(cell.number)}" for px, cell in points)
    dots = "".join(_dot(px, y(cell.number), f"{line.label}: {_value(cell)}", classes) for px, cell in points)
    return f'{band}<path class="line {classes}" d="M{path}"/>{dots if classes != "zs" else ""}'


def _value(cell: Cell) -> str:
    """A number and its deviation."""
    spread = "" if cell.std is None else f" ± {cell.std:.2f}"
    return f"{cell.value:.2f}{spread}"


def _dot(x: float, y: float, title: str, classes: str, radius: float = 3) -> str:
    """A dot of a method's shape, which shows its title when one points at it."""
    r, tooltip = radius, f"<title>{_escaped(title)}</title>"
    if "square" in classes:
        corner = f'x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"'
        return f'<rect class="dot {classes}" {corner}>{tooltip}</rect>'
    if "diamond" in classes:
        r *= 1.3  # looks as large as the others
        return f'<path class="dot {classes}" d="M{x} {y - r:.1f}l{r} {r}l{-r} {r}l{-r} {-r}Z">{tooltip}</path>'
    return f'<circle class="dot {classes}" cx="{x}" cy="{y}" r="{r}">{tooltip}</circle>'


def base_new_chart(section: Section, styles: Styles, names: tuple[str, str] = ("base", "new")) -> str:
    """Draw a section of a base-to-new table: new against base, deviations over seeds, lines of equal harmonic mean."""
    sides = [(line.label, line.cells[0], line.cells[1]) for line in section.lines]
    points = [side for side in sides if side[1].value is not None and side[2].value is not None]
    if not points:
        return ""
    x = Axis(*_around([end for _, base, _ in points for end in reach(base)], 0.12), 34, 312)
    y = Axis(*_around([end for _, _, new in points for end in reach(new)], 0.12), 220, 8)
    parts = _grid(x, y, {f"{tick:g}": tick for tick in x.ticks})
    parts += _equal_harmonic_means(x, y)
    for label, base, new in points:
        classes, px, py = style_classes(label, styles), x(base.number), y(new.number)
        if base.std or new.std:
            (left, right), (low, high) = reach(base), reach(new)
            whiskers = f"M{x(left)} {py}H{x(right)}M{px} {y(low)}V{y(high)}"
            parts.append(f'<path class="whisker {classes}" d="{whiskers}"/>')
        parts.append(_dot(px, py, f"{label}: {names[0]} {_value(base)}, {names[1]} {_value(new)}", classes, 5))
    parts.append(_text(312, 246, f"{names[0]} →", "end"))
    parts.append(_text(34, 246, f"↑ {names[1]}"))
    return _svg(320, 252, f"{names[1].capitalize()} against {names[0]} accuracy, {section.heading}", parts)


def _equal_harmonic_means(x: Axis, y: Axis) -> list[str]:
    """Curves y = Hx / (2x - H) of equal harmonic mean H within the axes, each labelled at its left end."""
    low, high = sorted(2 * b * n / max(b + n, 1e-9) for b, n in ((x.low, y.low), (x.high, y.high)))
    span = Axis(low, high, 0, 1)
    parts = []
    for mean in span.ticks if span.low > 0 and span.high > span.low else []:
        steps = [x.low + (x.high - x.low) * i / 40 for i in range(41)]
        curve = [(b, mean * b / (2 * b - mean)) for b in steps if 2 * b > mean]
        inside = [(b, n) for b, n in curve if y.low <= n <= y.high]
        if len(inside) > 1:
            path = "L".join(f"{x(b)} {y(n)}" for b, n in inside)
            name = _text(x(inside[0][0]) + 3, y(inside[0][1]) + 9, f"H {mean:g}", "isot")
            parts.append(f'<path class="iso" d="M{path}"/>{name}')
    return parts


def gains_chart(changes: Sequence[ClassChange], most: int = 8) -> str:
    """Draw the gains of classes over zero-shot CLIP: the largest gains and losses.

    Args:
        changes: from ``vlprompt.evaluation.statistics.class_changes``, the largest gain first.
        most: number of classes at each end.
    """
    if not changes:
        return ""
    cut = len(changes) > 2 * most
    shown = [*changes[:most], None, *changes[-most:]] if cut else list(changes)
    reach = max(max(abs(c.gain) for c in changes), 1.0)
    x = Axis(-reach, reach, 164, 300)
    parts = [f'<path class="grid" d="M{x(0)} 2V{len(shown) * 17 + 2}"/>']
    for i, change in enumerate(shown):
        middle = i * 17 + 13
        if change is None:
            parts.append(_text(128, middle, f"… {len(changes) - 2 * most} between", "end faint"))
            continue
        left, right = sorted((x(0), x(change.gain)))
        tooltip = f"{change.name}: {change.zero_shot:.1f} → {change.accuracy:.1f} of {change.n_images} images"
        parts.append(_text(128, middle, shorten(change.name, WIDEST), "end"))
        if change.gain:
            parts.append(
                f'<rect class="{"gain" if change.gain > 0 else "loss"}" x="{left}" y="{middle - 9}" '
                f'width="{max(round(right - left, 1), 0.5)}" height="12"><title>{_escaped(tooltip)}</title></rect>'
            )
        end, kind = (round(left - 4, 1), "end") if change.gain < 0 else (round(right + 4, 1), "")
        parts.append(_text(end, middle, f"{change.gain:+.0f}" if abs(change.gain) >= 0.5 else "0", kind))
    return _svg(336, len(shown) * 17 + 6, "Change of each class's accuracy against zero-shot", parts)


def robin_hood_chart(changes: Sequence[ClassChange], classes: str) -> str:
    """Draw the gain of each class against its zero-shot accuracy, with the fitted line; empty without classes.

    The dashed line is the largest possible gain.

    Args:
        changes: from ``vlprompt.evaluation.statistics.class_changes``.
        classes: CSS classes of the method, from ``style_classes``.
    """
    if not changes:
        return ""
    fitted = robin_hood(changes)
    x = Axis(*within_percent(*_around([each.zero_shot for each in changes])), 34, 312)
    y = Axis(*_around([0.0, *(each.gain for each in changes)]), 196, 8)
    parts = _grid(x, y, {f"{tick:g}": tick for tick in x.ticks})
    parts.append(f'<path class="zero" d="M{x.start} {y(0)}H{x.end}"/>')
    parts += _segment(x, y, 100, -1, "diagonal")
    parts += [_dots(changes, x, y, classes)]
    if fitted is not None:
        parts += _segment(x, y, fitted.intercept, fitted.slope, f"line {classes}")
        rho = "" if fitted.rho is None else f", Spearman's ρ {fitted.rho:+.2f}"
        parts.append(_text(312, 246, f"slope {fitted.slope:+.2f}{rho}", "end"))  # below the axes
    parts.append(_text(312, 228, "zero-shot accuracy →", "end"))
    parts.append(_text(34, 228, "↑ gain"))
    return _svg(320, 252, "Gain of each class against its zero-shot accuracy", parts)


def _dots(changes: Sequence[ClassChange], x: Axis, y: Axis, classes: str) -> str:
    """A dot per class; if there are many, all in one element without tooltips."""
    if len(changes) <= MANY:
        tooltips = ((each, f"{each.name}: {each.zero_shot:.1f} {each.gain:+.1f}") for each in changes)
        return "".join(_dot(x(each.zero_shot), y(each.gain), text, classes) for each, text in tooltips)
    places = "".join(f"M{x(each.zero_shot)} {y(each.gain)}h0" for each in changes)
    return f'<path class="dots {classes}" d="{places}"/>'


def _segment(x: Axis, y: Axis, at_zero: float, slope: float, kind: str) -> list[str]:
    """The part of a straight line within the axes; empty if there is none."""
    ends = [x.low, x.high]
    if slope:
        ends = sorted(min(max((value - at_zero) / slope, x.low), x.high) for value in (y.low, y.high))
    inside = all(y.low - 1e-6 <= at_zero + slope * end <= y.high + 1e-6 for end in ends)
    if ends[0] == ends[1] or not inside:
        return []
    return [f'<path class="{kind}" d="M{"L".join(f"{x(end)} {y(at_zero + slope * end)}" for end in ends)}"/>']


def confusion_chart(names: Sequence[str], counts: Sequence[Sequence[int]], totals: Sequence[int]) -> str:
    """Draw a confusion matrix, whose columns are labelled by the numbers of the classes.

    The opacity of a cell is its share of the true class; correct predictions and mistakes have different colours.

    Args:
        names: C class names.
        counts: (C, C) images by true (rows) and predicted class (columns).
        totals: (C,) images of each true class, including those predicted as classes that are not drawn.
    """
    n, left, top = len(names), 150, 18
    size = max(14, min(30, 330 // n))
    parts = [_text(left + (j + 0.5) * size, top - 6, str(j + 1), "mid") for j in range(n)]
    for i, row in enumerate(counts):
        middle = top + (i + 0.5) * size + 4
        parts.append(_text(left - 6, middle, f"{shorten(names[i], WIDEST)} {i + 1}", "end"))
        for j, images in enumerate(row):
            if images:
                parts.append(_cell(left + j * size, top + i * size, size, images / totals[i], images, i == j))
                tooltip = f"{images:,} of {totals[i]:,} images of {names[i]}: {names[j]}"
                parts.append(f"<title>{_escaped(tooltip)}</title></g>")
    frame = f'<rect class="frame" x="{left}" y="{top}" width="{n * size}" height="{n * size}"/>'
    description = f"Confusion of {n} classes: true ones in rows, what they were taken for in columns"
    return _svg(left + n * size + 8, top + n * size + 6, description, [frame, *parts])


def _cell(x: float, y: float, size: float, share: float, images: int, right: bool) -> str:
    """A cell of a confusion matrix, with its number if that fits; the caller adds a tooltip and closes the group."""
    shape = f'x="{x + 0.5}" y="{y + 0.5}" width="{size - 1}" height="{size - 1}"'
    drawn = f'<g><rect class="{"right" if right else "wrong"}" fill-opacity="{0.12 + 0.88 * share:.2f}" {shape}/>'
    if len(str(images)) * 6.2 > size:
        return drawn
    return drawn + _text(x + size / 2, y + size / 2 + 4, str(images), "mid over" if share > 0.5 else "mid ink")


def reliability_chart(each: Reliability, colour: str) -> str:
    """Draw accuracy by confidence: more opaque bars have more images; the diagonal is that of a calibrated model."""
    x, y = Axis(0, 1, 34, 312), Axis(0, 1, 196, 8)
    bins, most = len(each.images), max(max(each.images), 1)
    parts = _grid(x, y, {"0": 0, "0.5": 0.5, "1": 1})
    for i, (n, accuracy) in enumerate(zip(each.images, each.accuracy, strict=True)):
        if n:
            left, right = x(i / bins), x((i + 1) / bins)
            tooltip = f"confidence {i / bins:.2f} to {(i + 1) / bins:.2f}: accuracy {accuracy:.2f} of {n:,} images"
            parts.append(
                f'<rect class="bar {colour}" fill-opacity="{0.25 + 0.75 * n / most:.2f}" x="{left + 0.6:.1f}" '
                f'y="{y(accuracy)}" width="{right - left - 1.2:.1f}" height="{y(0) - y(accuracy):.1f}">'
                f"<title>{_escaped(tooltip)}</title></rect>"
            )
    parts.append(f'<path class="diagonal" d="M{x(0)} {y(0)}L{x(1)} {y(1)}"/>')
    return _svg(320, 216, "Accuracy by confidence", parts)


def coverage_chart(curve: AccuracyCoverage, colour: str, min_probability: float | None = None) -> str:
    """Draw the accuracy–coverage curve, with a dot at a threshold or at full coverage.

    Args:
        curve: from ``vlprompt.evaluation.abstention.accuracy_coverage``.
        colour: a CSS class, such as ``c0``.
        min_probability: the threshold; None if there is none.
    """
    points = list(zip(*curve.to_lists(MOST_POINTS).values(), strict=True))
    x = Axis(0, 1, 34, 312)
    y = Axis(*within_percent(*_around([100 * accuracy for *_, accuracy in points])), 196, 8)
    parts = _grid(x, y, {"0": 0, "50%": 0.5, "100%": 1})
    path = "L".join(f"{x(coverage)} {y(100 * accuracy)}" for _, coverage, accuracy in points)
    parts.append(f'<path class="line {colour}" d="M{path}"/>')
    marked = points[-1:] if min_probability is None else [(min_probability, *curve.at(min_probability))]
    for threshold, coverage, accuracy in marked:
        if accuracy is not None:
            tooltip = f"from {threshold:.2f}: {coverage:.1%} of the images answered, {accuracy:.1%} of these right"
            parts.append(_dot(x(coverage), y(100 * accuracy), tooltip, colour, 4))
    return _svg(320, 216, "Accuracy by the share of images that are answered", parts)

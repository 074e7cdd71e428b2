"""Small SVG pictures in light and dark: points with error bars, lines, heat maps, boundaries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, TOP, BOTTOM, HEIGHT = 860, 64, 44, 52, 340  # of a picture with a plot, and of the plot in it

STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; font-size: 12px;
fill: #1d2633 } .title { font-size: 15px; font-weight: 600 } .back { fill: #ffffff } .grid { stroke: #e3e7ed }
.zero { stroke: #9aa5b4; stroke-dasharray: 4 3 } .bar { stroke: #2f6fd0; stroke-width: 1.5 } .dot { fill: #2f6fd0 }
.number { fill: #ffffff; font-size: 10px; font-weight: 600 }
@media (prefers-color-scheme: dark) { text { fill: #e6eaf0 } .back { fill: #161b22 } .grid { stroke: #2a323d }
.bar { stroke: #4f8ff0 } .dot { fill: #4f8ff0 } }
"""


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels; `start` is the pixel of `low`, `length` is negative where pixels go the other way."""

    low: float
    high: float
    start: float
    length: float  # negative where pixels go the other way
    step: float

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + self.length * (value - self.low) / (self.high - self.low)

    def marks(self) -> list[float]:
        """Return the values that get a line."""
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [number * self.step for number in range(first, last + 1)]

    def text(self, value: float) -> str:
        """Write a value to the digits of the marks."""
        return f"{value:.{max(0, -math.floor(math.log10(self.step) + 1e-9))}f}"


def picture(width: float, height: float, title: str, *parts: str) -> str:
    """Return the text of an SVG file.

    Args:
        width: In pixels, as all lengths here.
        height: Likewise.
        title: Above the picture; also what a screen reader says.
        parts: What is drawn, in order.
    """
    size = f"{width:g}", f"{height:g}"
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" '
            f'height="{size[1]}" role="img" aria-label="{escape(title, quote=True)}"><style>{STYLE}</style>',
            f'<rect class="back" width="{size[0]}" height="{size[1]}"/>',
            text(16, 20, title, "title"),
            *parts,
            "</svg>\n",
        )
    )


def plot(x: Axis, y: Axis, title: str, x_words: str, y_words: str, parts: Sequence[str], listed: float) -> str:
    """Return the text of an SVG file with a plot at the left, and room for a list of names beside it.

    Args:
        x: From the plot's left.
        y: From its bottom, upwards.
        title: Above the picture; also what a screen reader says.
        x_words: Below the horizontal axis.
        y_words: Above the vertical axis.
        parts: What is drawn, in order.
        listed: Height of the list.
    """
    return picture(
        WIDTH,
        max(TOP + HEIGHT + BOTTOM, TOP + listed),
        title,
        text(16, TOP - 6, y_words),
        text(x.start + x.length / 2, TOP + HEIGHT + 38, x_words, anchor="middle"),
        *parts,
    )


def grid(x: Axis, y: Axis, zero: bool = False) -> list[str]:
    """Return lines and numbers at the marks of both axes; with `zero`, the line at 0 stands out."""
    bottom, top, left, right = y.start, y.start + y.length, x.start, x.start + x.length
    lines = []
    for value in x.marks():
        lines.append(line("grid", x.at(value), top, x.at(value), bottom))
        lines.append(text(x.at(value), bottom + 18, x.text(value), anchor="middle"))
    for value in y.marks():
        nought = zero and abs(value) < y.step / 2
        lines.append(line("zero" if nought else "grid", left, y.at(value), right, y.at(value)))
        lines.append(text(left - 8, y.at(value) + 4, y.text(abs(value) if nought else value), anchor="end"))
    return lines


def axis(values: Sequence[float], start: float, length: float) -> Axis:
    """Return an axis with some room around the values; at least one, all finite."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or max(abs(high) * 0.1, 0.1)
    step = _round_step((high - low + 2 * room) / 5)
    return Axis(low - room, high + room, start, length, step)


def _round_step(size: float) -> float:
    """Return the nearest larger 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= size * (1 - 1e-9))


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a line between two points."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Return words at a point."""
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


_PLOT, _LINE = 440, 18


@dataclass(frozen=True)
class Point:
    """One point: x, y and the length of its error bar to each side in y."""

    name: str
    x: float
    y: float
    error: float


def scatter(points: Sequence[Point], title: str, x_words: str, y_words: str) -> str:
    """Draw numbered points with error bars, and the list of their names beside them.

    Args:
        points: At least one, with finite numbers.
        title: Above the picture; also what a screen reader says.
        x_words: Below the horizontal axis.
        y_words: Above the vertical axis.

    Returns:
        The text of an SVG file.
    """
    x = axis([p.x for p in points], LEFT, _PLOT)
    ends = [value for p in points for value in (p.y - p.error, p.y + p.error)]
    y = axis([0.0, *ends], TOP + HEIGHT, -HEIGHT)
    marks = (mark for number, point in enumerate(points, start=1) for mark in _mark(number, point, x, y))
    return plot(x, y, title, x_words, y_words, [*grid(x, y, zero=True), *marks], _LINE * (len(points) + 1))


def _mark(number: int, point: Point, x: Axis, y: Axis) -> list[str]:
    """Return the point, its error bar, its number, and its line in the list of names."""
    left, top, row = x.at(point.x), y.at(point.y), TOP + _LINE * number
    error = f" ± {point.error:.2f}" if point.error else ""
    words = f"{number}  {point.name}: {point.y:+.2f}{error}, x {point.x:.2f}"
    return [
        line("bar", left, y.at(point.y - point.error), left, y.at(point.y + point.error)),
        f'<circle class="dot" cx="{left:.1f}" cy="{top:.1f}" r="8"/>',
        text(left, top + 3.5, str(number), "number", "middle"),
        text(LEFT + _PLOT + 24, row, words),
    ]


_PLOT, _LINE = 520, 16
_NAMES, _MOST_CELL, _CELL_HEIGHT = 190, 40.0, 16
_COLOURS = ("#2f6fd0", "#d9822b", "#2c9f6b", "#c23b5e", "#7d5bd1", "#148a9c", "#9c7a1c", "#8a8f99")
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_NONE = "#8a8f99"


@dataclass(frozen=True)
class Series:
    """A line: its name, and points (x, y) in order; ``joined`` off draws points alone."""

    name: str
    points: tuple[tuple[float, float], ...]
    joined: bool = True


def lines(series: Sequence[Series], title: str, x_words: str, y_words: str) -> str:
    """Draw lines over each other, and the list of their names beside them.

    Args:
        series: At least one with a point; all numbers finite.
        title: Above the picture; also what a screen reader says.
        x_words: Below the horizontal axis.
        y_words: Above the vertical axis.

    Returns:
        The text of an SVG file.
    """
    points = [point for each in series for point in each.points]
    x = axis([point[0] for point in points], LEFT, _PLOT)
    y = axis([point[1] for point in points], TOP + HEIGHT, -HEIGHT)
    marks = (mark for number, each in enumerate(series) for mark in _drawn(number, each, x, y))
    return plot(x, y, title, x_words, y_words, [*grid(x, y), *marks], _LINE * (len(series) + 1))


def _drawn(number: int, series: Series, x: Axis, y: Axis) -> list[str]:
    """Return a line, its points and its name; colours repeat with other dashes."""
    colour = _COLOURS[number % len(_COLOURS)]
    dash = _DASHES[number // len(_COLOURS) % len(_DASHES)] if series.joined else ""
    style = f'stroke="{colour}" stroke-width="1.8"' + (f' stroke-dasharray="{dash}"' if dash else "")
    places = [(x.at(a), y.at(b)) for a, b in series.points]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    top, left = TOP + _LINE * number + 8, LEFT + _PLOT + 20
    return [
        *([f'<polyline fill="none" {style} points="{path}"/>'] if series.joined else []),
        *(f'<circle fill="{colour}" cx="{a:.1f}" cy="{b:.1f}" r="{2.2 if series.joined else 4}"/>' for a, b in places),
        f'<line {style} x1="{left}" y1="{top - 4}" x2="{left + 22}" y2="{top - 4}"/>',
        text(left + 28, top, series.name),
    ]


def heat(rows: Sequence[tuple[str, Sequence[float | None]]], title: str, x_words: str) -> str:
    """Draw a table of shades: the darker, the higher; a small dot where there is no value.

    Args:
        rows: Name and values; all of one length, at least one.
        title: Above the picture; also what a screen reader says.
        x_words: Below the table.

    Returns:
        The text of an SVG file.
    """
    columns = len(rows[0][1])
    width = min(_MOST_CELL, (WIDTH - _NAMES - 90) / columns)
    known = [value for _, values in rows for value in values if value is not None]
    most = max(known, default=0.0) or 1.0
    bottom = TOP + _CELL_HEIGHT * len(rows)
    every = max(1, round(columns / 12))
    marks = [
        text(_NAMES + width * (i + 0.5), bottom + 16, str(i + 1), anchor="middle") for i in range(0, columns, every)
    ]
    cells = [part for place, row in enumerate(rows) for part in _shades(place, row, width, most)]
    words = text(_NAMES + width * columns / 2, bottom + 36, x_words, anchor="middle")
    return picture(WIDTH, bottom + BOTTOM + 30, title, *cells, *marks, words, *_scale(bottom + 56, most))


def _shades(place: int, row: tuple[str, Sequence[float | None]], width: float, most: float) -> list[str]:
    name, values = row
    top = TOP + _CELL_HEIGHT * place
    parts = [text(_NAMES - 8, top + 12, name, anchor="end")]
    for number, value in enumerate(values):
        left = _NAMES + width * number
        if value is None:
            parts.append(f'<circle fill="{_NONE}" cx="{left + width / 2:.1f}" cy="{top + 8}" r="1.5"/>')
        else:
            parts.append(_shade(left, top, width, value / most))
    return parts


def _shade(left: float, top: float, width: float, share: float) -> str:
    return (
        f'<rect class="dot" fill-opacity="{0.06 + 0.94 * max(0.0, share):.3f}" x="{left:.1f}" y="{top:.1f}" '
        f'width="{width - 1:.1f}" height="{_CELL_HEIGHT - 1}"/>'
    )


def _scale(top: float, most: float) -> list[str]:
    """Return what the shades mean."""
    steps = [_shade(_NAMES + 20 * i, top, 20, i / 5) for i in range(6)]
    return [text(_NAMES - 8, top + 12, "0", anchor="end"), *steps, text(_NAMES + 126, top + 12, f"{most:.3f}")]


_LEFT, _CELL_HEIGHT, _MOST_WIDTH = 90, 30, 86
_STYLES = ('stroke="#c23b5e" stroke-width="3"', 'stroke="#d9822b" stroke-width="2.5" stroke-dasharray="6 4"')
Place = tuple[int, int]  # row, column


def boundary(
    depths: Sequence[int],
    widths: Sequence[int],
    shades: Mapping[Place, float],
    groups: Sequence[tuple[str, set[Place]]],
    title: str,
) -> str:
    """Draw the grid: the darker, the higher; each group of cells has a line around it.

    Args:
        depths: Of the rows, from above.
        widths: Of the columns.
        shades: (row, column) -> value from 0 to 1, also written into the cell; missing ones stay empty.
        groups: Name and cells, at most two.
        title: Above the picture; also what a screen reader says.

    Returns:
        The text of an SVG file.
    """
    size = min(_MOST_WIDTH, (WIDTH - _LEFT - 40) / len(widths))
    bottom = TOP + _CELL_HEIGHT * len(depths)
    names = [text(_LEFT - 8, TOP + _CELL_HEIGHT * (i + 0.6), str(n), anchor="end") for i, n in enumerate(depths)]
    names += [text(_LEFT + size * (i + 0.5), bottom + 18, str(n), anchor="middle") for i, n in enumerate(widths)]
    words = [
        text(16, TOP - 8, "hidden layers"),
        text(_LEFT + size * len(widths) / 2, bottom + 38, "width", "", "middle"),
    ]
    cells = [part for place, value in sorted(shades.items()) for part in _cell(place, value, size)]
    marks = [
        part
        for (name, places), style, number in zip(groups, _STYLES, range(len(groups)), strict=False)
        for part in (*_around(places, size, style), *_named(name, style, bottom + 58 + 20 * number))
    ]
    return picture(WIDTH, bottom + BOTTOM + 60, title, *cells, *names, *words, *marks)


def _cell(place: Place, value: float, size: float) -> Iterator[str]:
    left, top = _LEFT + size * place[1], TOP + _CELL_HEIGHT * place[0]
    yield (
        f'<rect class="dot" fill-opacity="{0.06 + 0.74 * value:.3f}" x="{left:.1f}" y="{top:.1f}" '
        f'width="{size - 1:.1f}" height="{_CELL_HEIGHT - 1}"/>'
    )
    yield text(left + size / 2, top + _CELL_HEIGHT * 0.64, f"{100 * value:.0f}", anchor="middle")


def _around(places: set[Place], size: float, style: str) -> Iterator[str]:
    """Yield the edges between the group and what is not of it."""
    for row, column in sorted(places):
        left, top = _LEFT + size * column, TOP + _CELL_HEIGHT * row
        right, bottom = left + size, top + _CELL_HEIGHT
        edges = {
            (row - 1, column): (left, top, right, top),
            (row + 1, column): (left, bottom, right, bottom),
            (row, column - 1): (left, top, left, bottom),
            (row, column + 1): (right, top, right, bottom),
        }
        for neighbour, ends in edges.items():
            if neighbour not in places:
                yield _edge(ends, style)


def _edge(ends: tuple[float, float, float, float], style: str) -> str:
    return line("", *ends).replace('class=""', style)


def _named(name: str, style: str, y: float) -> tuple[str, str]:
    return _edge((_LEFT, y - 4, _LEFT + 30, y - 4), style), text(_LEFT + 38, y, name)

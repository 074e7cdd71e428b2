"""A small picture of points with error bars, as SVG that needs nothing else and follows light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LEFT, _TOP, _BOTTOM, _PLOT, _HEIGHT, _LINE = 860, 64, 44, 52, 440, 340, 18
_STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; font-size: 12px;
fill: #1d2633 } .title { font-size: 15px; font-weight: 600 } .back { fill: #ffffff } .grid { stroke: #e3e7ed }
.zero { stroke: #9aa5b4; stroke-dasharray: 4 3 } .bar { stroke: #2f6fd0; stroke-width: 1.5 } .dot { fill: #2f6fd0 }
.number { fill: #ffffff; font-size: 10px; font-weight: 600 }
@media (prefers-color-scheme: dark) { text { fill: #e6eaf0 } .back { fill: #161b22 } .grid { stroke: #2a323d }
.bar { stroke: #4f8ff0 } .dot { fill: #4f8ff0 } }
"""


@dataclass(frozen=True)
class Point:
    """One point: x, y and the length of its error bar to each side in y."""

    name: str
    x: float
    y: float
    error: float


@dataclass(frozen=True)
class _Axis:
    """Maps values to pixels; `start` is the pixel of `low`."""

    low: float
    high: float
    start: float
    length: float  # negative where pixels go the other way
    step: float

    def at(self, value: float) -> float:
        return self.start + self.length * (value - self.low) / (self.high - self.low)

    def marks(self) -> list[float]:
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [number * self.step for number in range(first, last + 1)]

    def text(self, value: float) -> str:
        return f"{value:.{max(0, -math.floor(math.log10(self.step) + 1e-9))}f}"


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
    x = _axis([p.x for p in points], _LEFT, _PLOT)
    ends = [value for p in points for value in (p.y - p.error, p.y + p.error)]
    y = _axis([0.0, *ends], _TOP + _HEIGHT, -_HEIGHT)
    height = max(_TOP + _HEIGHT + _BOTTOM, _TOP + _LINE * (len(points) + 1))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title, quote=True)}"><style>{_STYLE}</style>',
        f'<rect class="back" width="{_WIDTH}" height="{height}"/>',
        _text(16, 20, title, "title"),
        _text(16, _TOP - 6, y_words),
        _text(_LEFT + _PLOT / 2, _TOP + _HEIGHT + 38, x_words, anchor="middle"),
        *_grid(x, y),
        *(mark for number, point in enumerate(points, start=1) for mark in _mark(number, point, x, y)),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _axis(values: Sequence[float], start: float, length: float) -> _Axis:
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or max(abs(high) * 0.1, 0.1)
    step = _round_step((high - low + 2 * room) / 5)
    return _Axis(low - room, high + room, start, length, step)


def _round_step(size: float) -> float:
    """Return the nearest larger 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= size * (1 - 1e-9))


def _grid(x: _Axis, y: _Axis) -> list[str]:
    bottom, right = _TOP + _HEIGHT, _LEFT + _PLOT
    lines = []
    for value in x.marks():
        lines.append(_line("grid", x.at(value), _TOP, x.at(value), bottom))
        lines.append(_text(x.at(value), bottom + 18, x.text(value), anchor="middle"))
    for value in y.marks():
        zero = abs(value) < y.step / 2
        lines.append(_line("zero" if zero else "grid", _LEFT, y.at(value), right, y.at(value)))
        lines.append(_text(_LEFT - 8, y.at(value) + 4, y.text(abs(value) if zero else value), anchor="end"))
    return lines


def _mark(number: int, point: Point, x: _Axis, y: _Axis) -> list[str]:
    """Return the point, its error bar, its number, and its line in the list of names."""
    left, top, row = x.at(point.x), y.at(point.y), _TOP + _LINE * number
    error = f" ± {point.error:.2f}" if point.error else ""
    words = f"{number}  {point.name}: {point.y:+.2f}{error}, x {point.x:.2f}"
    return [
        _line("bar", left, y.at(point.y - point.error), left, y.at(point.y + point.error)),
        f'<circle class="dot" cx="{left:.1f}" cy="{top:.1f}" r="8"/>',
        _text(left, top + 3.5, str(number), "number", "middle"),
        _text(_LEFT + _PLOT + 24, row, words),
    ]


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'

"""Parts of small pictures as SVG text that needs nothing else and follows light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
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

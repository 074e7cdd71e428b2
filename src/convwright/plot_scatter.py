"""A small picture of points with error bars, as SVG that needs nothing else and follows light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convwright.plot_svg import HEIGHT, LEFT, TOP, Axis, axis, grid, line, plot, text

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

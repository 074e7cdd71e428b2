"""A small picture of points with error bars, as SVG that needs nothing else and follows light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convwright.runs.svg import Axis, axis, line, picture, text

_WIDTH, _LEFT, _TOP, _BOTTOM, _PLOT, _HEIGHT, _LINE = 860, 64, 44, 52, 440, 340, 18


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
    x = axis([p.x for p in points], _LEFT, _PLOT)
    ends = [value for p in points for value in (p.y - p.error, p.y + p.error)]
    y = axis([0.0, *ends], _TOP + _HEIGHT, -_HEIGHT)
    height = max(_TOP + _HEIGHT + _BOTTOM, _TOP + _LINE * (len(points) + 1))
    return picture(
        _WIDTH,
        height,
        title,
        text(16, _TOP - 6, y_words),
        text(_LEFT + _PLOT / 2, _TOP + _HEIGHT + 38, x_words, anchor="middle"),
        *_grid(x, y),
        *(mark for number, point in enumerate(points, start=1) for mark in _mark(number, point, x, y)),
    )


def _grid(x: Axis, y: Axis) -> list[str]:
    bottom, right = _TOP + _HEIGHT, _LEFT + _PLOT
    lines = []
    for value in x.marks():
        lines.append(line("grid", x.at(value), _TOP, x.at(value), bottom))
        lines.append(text(x.at(value), bottom + 18, x.text(value), anchor="middle"))
    for value in y.marks():
        zero = abs(value) < y.step / 2
        lines.append(line("zero" if zero else "grid", _LEFT, y.at(value), right, y.at(value)))
        lines.append(text(_LEFT - 8, y.at(value) + 4, y.text(abs(value) if zero else value), anchor="end"))
    return lines


def _mark(number: int, point: Point, x: Axis, y: Axis) -> list[str]:
    """Return the point, its error bar, its number, and its line in the list of names."""
    left, top, row = x.at(point.x), y.at(point.y), _TOP + _LINE * number
    error = f" ± {point.error:.2f}" if point.error else ""
    words = f"{number}  {point.name}: {point.y:+.2f}{error}, x {point.x:.2f}"
    return [
        line("bar", left, y.at(point.y - point.error), left, y.at(point.y + point.error)),
        f'<circle class="dot" cx="{left:.1f}" cy="{top:.1f}" r="8"/>',
        text(left, top + 3.5, str(number), "number", "middle"),
        text(_LEFT + _PLOT + 24, row, words),
    ]

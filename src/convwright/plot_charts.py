"""Small pictures of what goes over trials: lines, and tables of shades; as SVG, like the points of `scatter`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convwright.plot_svg import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Axis, axis, grid, picture, plot, text

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

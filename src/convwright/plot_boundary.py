"""The boundary picture: a grid of networks by depth and width, shaded, and lines around those that conflict, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from convwright.plot_svg import BOTTOM, TOP, WIDTH, line, picture, text

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

"""Pictures as SVG that read on light and on dark pages: points with error bars, lines, tables of shades, boundaries.

Each file also holds the numbers that it shows, so that `plotted` can tell whether a picture is out of date.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import unescape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

INK, FAINT = "#767e8a", "#9aa5b480"  # as far from white as from a dark page's background; lines of a grid
COLOURS = ("#2f6fd0", "#d9822b", "#2c9f6b", "#c23b5e", "#7d5bd1", "#148a9c", "#9c7a1c", "#8a8f99")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "convwright", "savefig.transparent": True, "savefig.bbox": "tight",
    "font.size": 9, "font.sans-serif": ["DejaVu Sans"], "text.parse_math": False,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 10.5, "axes.titlepad": 12,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.edgecolor": FAINT,
    "grid.color": FAINT, "grid.linewidth": 0.6, "legend.frameon": False, "legend.borderaxespad": 0,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}  # fmt: skip
_BESIDE: Any = {"loc": "upper left", "bbox_to_anchor": (1.03, 1)}  # where a list of names stands
Place = tuple[int, int]  # row, column


@dataclass(frozen=True)
class Point:
    """One point: x, y and the length of its error bar to each side in y."""

    name: str
    x: float
    y: float
    error: float


@dataclass(frozen=True)
class Series:
    """A line: its name, and points (x, y) in order; ``joined`` off draws points alone."""

    name: str
    points: tuple[tuple[float, float], ...]
    joined: bool = True


def picture(
    title: str,
    data: Mapping[str, object],
    paint: Callable[[Axes], object],
    size: tuple[float, float],
    words: tuple[str, str] = ("", ""),
) -> str:
    """Return the text of an SVG file; the same data and version of matplotlib give the same text.

    Args:
        title: Above the picture; also what a screen reader says.
        data: What is shown, as JSON values; `plotted` finds it in the file, numbers to six digits.
        paint: Draws onto the axes.
        size: Width and height of the axes in points; what stands beside them makes the picture larger.
        words: At the horizontal and the vertical axis.
    """
    import matplotlib
    from matplotlib.figure import Figure

    text = io.StringIO()
    full = json.dumps({"title": title, "words": words, **data})
    known = json.loads(full, parse_float=lambda digits: float(f"{float(digits):.6g}"))
    about = {"Title": title, "Description": json.dumps(known, separators=(",", ":")), "Date": None, "Creator": None}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not what a user's matplotlibrc asks for
        matplotlib.rcParams.update(_STYLE)
        figure = Figure((size[0] / 72, size[1] / 72))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), title=title, xlabel=words[0], ylabel=words[1])
        paint(axes)
        figure.savefig(text, format="svg", dpi=144, metadata=about)
    return text.getvalue()[text.getvalue().index("<svg") :]


def plotted(svg: str) -> dict[str, Any]:
    """Return what a picture shows: its title, the words at its axes, and the data that `picture` was given."""
    (found,) = re.findall(r"<dc:description>(.*?)</dc:description>", svg, re.DOTALL)
    content: dict[str, Any] = json.loads(unescape(found))
    return content


def scatter(points: Sequence[Point], title: str, x_words: str, y_words: str) -> str:
    """Draw numbered points with error bars, and the list of their names beside them.

    Args:
        points: At least one, with finite numbers.
        title: Above the picture; also what a screen reader says.
        x_words: Below the horizontal axis.
        y_words: Beside the vertical axis.

    Returns:
        The text of an SVG file.
    """

    def paint(axes: Axes) -> None:
        axes.grid()
        axes.axhline(0, color=INK, linestyle="--", linewidth=1)
        x, y, errors = ([getattr(point, name) for point in points] for name in ("x", "y", "error"))
        axes.errorbar(x, y, errors, fmt="o", markersize=11, color=COLOURS[0])[0].set_gid("points")
        for number, p in enumerate(points, start=1):
            error = f" ± {p.error:.2f}" if p.error else ""
            words = f"{number}  {p.name}: {p.y:+.2f}{error}, x {p.x:.2f}"
            place: Any = {"xy": (p.x, p.y), "ha": "center", "va": "center_baseline", "color": "white"}
            axes.annotate(str(number), fontsize=7, fontweight="bold", **place)
            axes.annotate(words, (1, 1), (16, -14 * number), xycoords="axes fraction", textcoords="offset points")

    size = 360, max(260, 14 * len(points) + 6)
    return picture(title, {"points": [asdict(p) for p in points]}, paint, size, (x_words, y_words))


def lines(series: Sequence[Series], title: str, x_words: str, y_words: str) -> str:
    """Draw lines over each other, and the list of their names beside them; colours repeat with other dashes.

    Args:
        series: At least one with a point; all numbers finite.
        title: Above the picture; also what a screen reader says.
        x_words: Below the horizontal axis.
        y_words: Beside the vertical axis.

    Returns:
        The text of an SVG file.
    """

    def paint(axes: Axes) -> None:
        axes.grid()
        for number, one in enumerate(series):
            dash = ("-", "--", ":", "-.")[number // len(COLOURS) % 4] if one.joined else ""
            look: Any = {"color": COLOURS[number % len(COLOURS)], "markersize": 3 if one.joined else 6}
            axes.plot(*zip(*one.points, strict=True), f"o{dash}", **look, label=one.name, gid=f"series{number}")
        axes.legend(**_BESIDE)

    return picture(title, {"series": [asdict(one) for one in series]}, paint, (400, 260), (x_words, y_words))


def heat(rows: Sequence[tuple[str, Sequence[float | None]]], title: str, x_words: str) -> str:
    """Draw a table of shades: the darker, the higher; a small dot where there is no value.

    Args:
        rows: Name and values; all of one length, at least one.
        title: Above the picture; also what a screen reader says.
        x_words: Below the table.

    Returns:
        The text of an SVG file.
    """
    names, values = zip(*rows, strict=True)
    count = len(values[0])
    missing = [(column, row) for row, line in enumerate(values) for column, v in enumerate(line) if v is None]

    def paint(axes: Axes) -> None:
        image = _shades(axes, values, max((v for line in values for v in line if v is not None), default=0) or 1)
        axes.plot([x for x, _ in missing], [y for _, y in missing], ".", color=INK, markersize=3, gid="missing")
        axes.set_yticks(range(len(names)), names)
        shown = range(0, count, max(1, round(count / 12)))
        axes.set_xticks(shown, [str(column + 1) for column in shown])
        axes.figure.colorbar(image, ax=axes, aspect=30, pad=0.02).outline.set_linewidth(0)

    return picture(title, {"rows": rows}, paint, (min(30 * count, 460), 14 * len(rows)), (x_words, ""))


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
    values = [[shades.get((row, column)) for column in range(len(widths))] for row in range(len(depths))]

    def paint(axes: Axes) -> None:
        from matplotlib.collections import LineCollection

        _shades(axes, values, 1)
        for (row, column), value in shades.items():
            ink = "white" if value > 0.5 else "black"
            axes.annotate(f"{100 * value:.0f}", (column, row), ha="center", va="center", color=ink)
        for (name, cells), colour, style in zip(groups, (COLOURS[3], COLOURS[1]), ("-", "--"), strict=False):
            look: Any = {"color": colour, "linestyle": style, "linewidth": 2.5, "clip_on": False}
            axes.add_collection(LineCollection(_edges(cells), gid=f"around {name}", **look))
            axes.plot([], [], **look, label=name)
        axes.set_xticks(range(len(widths)), map(str, widths))
        axes.set_yticks(range(len(depths)), map(str, depths))
        axes.legend(**_BESIDE)

    known = {
        "depths": depths,
        "widths": widths,
        "shades": values,
        "groups": [[n, sorted(cells)] for n, cells in groups],
    }
    return picture(title, known, paint, (min(60 * len(widths), 520), 24 * len(depths)), ("width", "hidden layers"))


def _shades(axes: Axes, values: Sequence[Sequence[float | None]], most: float) -> AxesImage:
    import numpy as np

    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    cells = np.array(values, dtype=float)  # None is nan, which stays empty
    return axes.imshow(cells, "Blues", vmin=0, vmax=most, aspect="auto", interpolation="nearest")


def _edges(cells: set[Place]) -> list[list[tuple[float, float]]]:
    """Return the sides, as (x, y) from end to end, between the cells and what is not of them."""
    return [
        [
            (column + (right - down) / 2, row + (down - right) / 2),
            (column + (right + down) / 2, row + (down + right) / 2),
        ]
        for row, column in sorted(cells)
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1))
        if (row + down, column + right) not in cells
    ]

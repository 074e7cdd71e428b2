"""Draw the pictures of the documentation, readable on light and on dark pages.

    python tools/draw_pictures.py [--only NAME] [--out docs/images]

``channel-groups`` is laid out by hand. ``demo`` shows benchmarks/results/demo.json: the widths are worked out anew by
the run's own method, and must give the MACs that the file records. The others are what experiments conclude.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from results_page import EXPERIMENTS, pictures
from table_kit import load

from convwright.plots import COLOURS, FAINT, INK, picture

ROOT = Path(__file__).resolve().parent.parent

# ------------------------------------------------------------------ channel groups

STEP = 24  # from a channel to the next one
STEM, EXPAND, REDUCE, SIDE = ([*range(*ends)] for ends in ((1, 5), (5, 11), (11, 15), (15, 19)))
GONE = {2, 4, 12, 14}  # the channels that leave: 12 and 14 are tied to 2 and 4
LABELS = {"stem": STEM, "expand": EXPAND, "side": SIDE, "frozen": [0]}  # reduce is tied to stem
GROUPS = dict(zip(LABELS, (COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[7]), strict=True))
LAYERS = {  # labels of the rows and of the columns of their weights
    "stem": (STEM, [0, 0, 0]),
    "expand": (EXPAND, STEM),
    "reduce": (REDUCE, EXPAND),
    "side": (SIDE, STEM),
    "head": ([0, 0], [*STEM, *SIDE]),
}
IMAGE, CLASSES, JOINED, ROW = 41, 1001, 851, 195  # where they stand, and the row of the network


def channel_groups() -> str:
    """Labels through a residual network above, the weights of a halved group below."""

    def paint(axes: Axes) -> None:
        axes.set(title="", xlim=(0, 1040), ylim=(690, 0))
        axes.set_axis_off()
        _network(axes)
        _weights(axes)

    words = "Integer labels follow a small residual network; tied labels form groups; one group is halved everywhere"
    return picture(words, {"layers": LAYERS, "gone": sorted(GONE)}, paint, (780, 518))


def _chips(axes: Axes, places: Sequence[tuple[float, float]], labels: Sequence[int]) -> None:
    """Draw channels, the ones that leave pale where the second half of the picture shows the weights."""
    group = {label: name for name, labels in LABELS.items() for label in labels}
    shades = [GROUPS[group.get(label, "stem")] for label in labels]
    faint = [0.3 if label in GONE and y > 400 else 1.0 for label, (_, y) in zip(labels, places, strict=True)]
    axes.scatter(*zip(*places, strict=True), s=16.5**2, marker="s", c=shades, alpha=faint, linewidths=0)
    for label, place, shade in zip(labels, places, faint, strict=True):
        ink = "white" if shade == 1 else INK
        _text(axes, *place, str(label), 8.5, color=ink, ha="center", fontweight="bold")


def _stack(axes: Axes, x: float, middle: float, labels: Sequence[int]) -> None:
    _chips(axes, [(x, middle + (i - (len(labels) - 1) / 2) * STEP) for i in range(len(labels))], labels)


def _text(axes: Axes, x: float, y: float, words: str, size: float = 9, **look: Any) -> None:
    axes.annotate(words, (x, y), fontsize=size, va="center_baseline", **look)


def _arrow(axes: Axes, x: float, y: float, *corners: tuple[float, float]) -> None:
    """Draw a line through the corners that ends in an arrow head at (x, y)."""
    axes.plot(*zip(*corners, strict=True), color=INK, linewidth=1.2)
    axes.annotate("", (x, y), corners[-1], arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0})


def _layer(axes: Axes, x: float, y: float, name: str, operator: str = "conv") -> None:
    style = "round,pad=0,rounding_size=8"
    axes.add_patch(FancyBboxPatch((x - 37, y - 23), 74, 46, style, facecolor="none", edgecolor=INK, linewidth=0.8))
    _text(axes, x, y - 7, name, 10, ha="center", fontweight="bold")
    _text(axes, x, y + 10, operator, 8, ha="center")


def _network(axes: Axes) -> None:
    y = ROW
    _text(axes, 28, 30, "1   Labels follow the network", 12.5, fontweight="bold")
    _text(axes, 28, 54, "Every channel of every layer gets a number. Operators move numbers, or tie them.")
    for x, labels in ((IMAGE, [0, 0, 0]), (193, STEM), (349, EXPAND), (503, REDUCE), (623, STEM), (CLASSES, [0, 0])):
        _stack(axes, x, y, labels)
    _stack(axes, JOINED, y, [*STEM, *SIDE])
    _stack(axes, 793, y + 50, SIDE)
    for x, name in ((117, "stem"), (273, "expand"), (427, "reduce"), (929, "head")):
        _layer(axes, x, y, name, "linear" if name == "head" else "conv")
    _layer(axes, 717, y + 50, "side")
    for start, end in ((54, 80), (154, 182), (206, 236), (310, 338), (362, 390), (464, 492), (516, 549), (577, 612),
                       (864, 892), (966, 990)):  # fmt: skip
        _arrow(axes, end, y, (start, y))
    # the shortcut and the addition, then a branch beside the value itself, joined by a concatenation
    _arrow(axes, 563, y - 13, (218, y), (218, y - 96), (563, y - 96))
    axes.plot([563], [y], "o", markersize=20, markerfacecolor="none", markeredgecolor=INK)
    _text(axes, 563, y, "+", 14, ha="center")
    _arrow(axes, 840, y - 50, (636, y), (656, y), (656, y - 50))
    _arrow(axes, 680, y + 50, (656, y), (656, y + 50))
    _arrow(axes, 782, y + 50, (754, y + 50))
    _arrow(axes, 840, y + 50, (806, y + 50))
    for i, pair in enumerate(zip(REDUCE, STEM, strict=True)):
        row = y + 75 + i * STEP
        _chips(axes, [(539, row), (587, row)], pair)
        _text(axes, 563, row, "=", 11, ha="center")
    _text(axes, 516, y + 110, "the addition ties", ha="right")
    notes = ((390, -106, "shortcut"), (IMAGE, 54, "image"), (CLASSES, 42, "classes"),
             (JOINED, 112, "concat: labels land"), (JOINED, 127, "where values land"))  # fmt: skip
    for x, below, words in notes:
        _text(axes, x, y + below, words, 8.5, ha="center")
    for number, (name, colour) in enumerate(GROUPS.items()):
        axes.plot([34 + 125 * number], [348], "s", color=colour, markersize=9)
        _text(axes, 46 + 125 * number, 348, name if name == "frozen" else f"group {name}")


def _weights(axes: Axes) -> None:
    axes.axhline(388, color=FAINT, linewidth=1)
    _text(axes, 28, 416, "2   Halve one group, and the same channels leave everywhere", 12.5, fontweight="bold")
    _text(axes, 28, 440, "The weights of the five layers: a row per output channel, a column per input channel. "
          "Channels 2 and 4 of group stem go.")  # fmt: skip
    x = 43.0
    for name, (rows, columns) in LAYERS.items():
        _matrix(axes, x, 480, name, rows, columns)
        x += 78 + len(columns) * STEP


def _matrix(axes: Axes, x: float, y: float, name: str, rows: Sequence[int], columns: Sequence[int]) -> None:
    _chips(axes, [(x + 30 + j * STEP, y) for j in range(len(columns))], columns)
    _chips(axes, [(x, y + 30 + i * STEP) for i in range(len(rows))], rows)
    cells = {(x + 30 + j * STEP, y + 30 + i * STEP): bool({row, column} & GONE)
             for i, row in enumerate(rows) for j, column in enumerate(columns)}  # fmt: skip
    for gone, look in ((False, {"color": FAINT, "linewidths": 0}), (True, {"facecolor": "none", "edgecolor": FAINT})):
        places = [place for place, leaves in cells.items() if leaves == gone]
        if places:
            axes.scatter(*zip(*places, strict=True), s=16**2, marker="s", **look)
    before, after = (f"{len(one)} x {len(two)}" for one, two in ((rows, columns), (_kept(rows), _kept(columns))))
    middle = x + 9 + len(columns) * STEP / 2
    _text(axes, middle, y + 190, name, 10, ha="center", fontweight="bold")
    _text(axes, middle, y + 207, before if before == after else f"{before} → {after}", ha="center")


def _kept(labels: Sequence[int]) -> list[int]:
    return [label for label in labels if label not in GONE]


# ------------------------------------------------------------------ the demonstration


def demo() -> str | None:
    """MACs per layer before and after, with accuracy; None without a result."""
    data = load("demo")
    if data is None:
        return None
    layers = _layers(data)
    sides = data["baseline"], data["result"]
    before, after = (side["costs"]["macs"] / 1e6 for side in sides)
    notes = [f"{before:.1f}M → {after:.1f}M MACs ({after / before:.1%}), counted by convwright and by PyTorch"]
    if all(side.get("test") for side in sides):
        tests = [f"{100 * side['test']['accuracy']:.1f} ± {100 * side['test']['stderr']:.1f} %" for side in sides]
        notes.append(f"test accuracy {' → '.join(tests)}, trained by the same recipe for as long, one seed")

    def paint(axes: Axes) -> None:
        axes.set_title("\n".join(notes), fontsize=9, fontweight="normal")
        axes.annotate(head, (0, 1), (0, 42), "axes fraction", "offset points", fontsize=12, fontweight="bold")
        names, widths, macs = zip(*layers, strict=True)
        first, second = zip(*macs, strict=True)
        bars = axes.barh(names, [count / 1e6 for count in first], 0.72, color=FAINT, label="baseline")
        axes.barh(names, [count / 1e6 for count in second], 0.34, color=COLOURS[0], label="result")
        said = [f"{one} channels" if one == two else f"{one} → {two} channels" for one, two in widths]
        axes.bar_label(bars, said, padding=6, fontsize=8, color=INK)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.tick_params("y", length=0)
        axes.legend(loc="lower right", bbox_to_anchor=(1.1, 1.1), ncols=2)

    head = f"{data['model'].partition(':')[2]} on {data['data'].split()[0]}, {', '.join(data['budget'])}"
    title, words = f"MACs per layer of {data['model']} before and after", "millions of multiply-accumulates per image"
    return picture(title, {"layers": layers, "head": head, "notes": notes}, paint, (480, 15 * len(layers)), (words, ""))


def _layers(data: dict[str, Any]) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Return name, widths and MACs, each before and after, of the convolutions and linear layers."""
    from convwright.architecture import read
    from convwright.cost.budget import Limits
    from convwright.methods.shared.uniform_widths import uniform_widths

    shape = data["data"].rpartition(" ")[2].rstrip(")")
    arch = read(data["model"], shape, **data["options"])
    edits = uniform_widths(arch, Limits(data["limits"]), data["divisor"])
    new = arch.apply(*edits, importance="first", verify=False)
    if new.profile().macs != data["result"]["costs"]["macs"]:
        raise SystemExit("demo.json is of another method or version: its MACs do not follow from its limits")
    costs = [{cost.name: cost.macs for cost in network.profile().layers} for network in (arch, new)]
    widths = [{layer.name: layer.output_shape[1] for layer in network.layers} for network in (arch, new)]
    return [
        (name, (widths[0][name], widths[1][name]), (costs[0][name], costs[1][name]))
        for name, macs in costs[0].items()
        if macs
    ]


# ------------------------------------------------------------------ all


def drawn(only: str | None = None) -> dict[str, str]:
    """Return the pictures asked for, or all, as SVG by name; what has no result is left out."""
    examples = {name: draw() for name, draw in EXAMPLES.items() if only in (None, name)}
    found = {name: text for name, text in examples.items() if text is not None}
    if only not in EXAMPLES:
        for data in filter(None, (load(f"reproduce/{name}") for name in EXPERIMENTS)):
            found |= pictures(data)
    return {name: text for name, text in found.items() if only in (None, name)}


EXAMPLES: dict[str, Callable[[], str | None]] = {"channel-groups": channel_groups, "demo": demo}


def main() -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", help="one of channel-groups, demo, and those of experiments")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found = drawn(given.only)
    if not found:
        parser.error(
            f"--only {given.only}: there is no such picture, or no result to draw; known: {', '.join(drawn())}"
        )
    for name, text in found.items():
        (given.out / f"{name}.svg").write_text(text, encoding="utf-8")
        print(f"drew {name}.svg")


if __name__ == "__main__":
    main()

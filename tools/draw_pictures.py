"""Draw the pictures of the documentation as plain SVG, readable on light and on dark pages.

    python tools/draw_pictures.py [--only NAME] [--out docs/images]

``channel-groups`` is laid out by hand and needs nothing but Python. ``demo`` shows benchmarks/results/demo.json: the
widths are worked out anew by the run's own method, and must give the MACs that the file records.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from results_page import EXPERIMENTS, pictures
from table_kit import load

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; fill: #1d2633 }
.card { fill: #ffffff; stroke: #d5dae2 } .title { font-size: 17px; font-weight: 600 } .note { fill: #5b6675 }
.box { fill: #eef1f5; stroke: #9aa5b4 } .line { stroke: #7c8796; fill: none } .head { fill: #7c8796 }
.chip { fill: #ffffff; font-weight: 600 } .kept { fill: #c3ccd8 } .gone { fill: none; stroke: #c3ccd8 }
.frozen { fill: #8a94a3 } .a { fill: #2f6fd0 } .b { fill: #d0701a } .c { fill: #23875c } .ta { fill: #2f6fd0 }
.before { fill: #c9d1dc } .after { fill: #2f6fd0 } .rule { stroke: #e3e7ed }
@media (prefers-color-scheme: dark) {
text { fill: #e6eaf0 } .card { fill: #161b22; stroke: #343c48 } .note { fill: #a3adba }
.box { fill: #232a34; stroke: #596474 } .line { stroke: #8a95a5 } .head { fill: #8a95a5 } .chip { fill: #ffffff }
.kept { fill: #4a5666 } .gone { stroke: #46505e } .frozen { fill: #6c7788 } .a { fill: #3f7fe0 } .ta { fill: #74a8f5 }
.before { fill: #4a5666 } .after { fill: #4f8ff0 } .rule { stroke: #2a323d }
}
"""


class Svg:
    """A drawing that grows by elements."""

    def __init__(self, width: int, height: int, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self.parts: list[str] = []

    def add(self, tag: str, content: str = "", **attributes: object) -> None:
        """Add an element; ``_`` in attribute names stands for ``-``."""
        named = " ".join(f'{k.rstrip("_").replace("_", "-")}="{_number(v)}"' for k, v in attributes.items())
        self.parts.append(f"<{tag} {named}>{content}</{tag}>" if content else f"<{tag} {named}/>")

    def text(self, x: float, y: float, words: str, size: float = 13, anchor: str = "start", kind: str = "") -> None:
        """Write words with their baseline at y."""
        extra = {"class": kind} if kind else {}
        self.add("text", escape(words), x=x, y=y, font_size=size, text_anchor=anchor, **extra)

    def box(self, x: float, y: float, width: float, height: float, kind: str, radius: float = 4) -> None:
        """Draw a rounded rectangle from its upper left corner."""
        self.add("rect", x=x, y=y, width=width, height=height, rx=radius, class_=kind)

    def arrow(self, path: str, x: float, y: float) -> None:
        """Draw a path that ends in an arrow head pointing right at (x, y)."""
        self.add("path", d=f"{path} L{_number(x - 6)} {_number(y)}", class_="line", stroke_width=1.5)
        self.add("path", d=f"M{_number(x)} {_number(y)} l-8 -4.5 v9 z", class_="head")

    def done(self) -> str:
        """Return the file's text."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" aria-label="{escape(self.label, quote=True)}">'
        )
        return "\n".join([head, f"<style>{STYLE}</style>", *self.parts, "</svg>", ""])


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else escape(str(value), quote=True)


# ------------------------------------------------------------------ channel groups

CELL, STEP = 22, 24  # a channel and the distance to the next one
STEM, EXPAND, REDUCE, SIDE = range(1, 5), range(5, 11), range(11, 15), range(15, 19)
GONE = {2, 4, 12, 14}  # the channels that leave: 12 and 14 are tied to 2 and 4


def kind_of(label: int) -> str:
    """Return the colour class of a label's group."""
    if label == 0:
        return "frozen"
    return "b" if label in EXPAND else "c" if label in SIDE else "a"


def channel_groups() -> str:
    """Labels through a residual network above, the weights of a halved group below."""
    words = "Integer labels follow a small residual network; tied labels form groups; one group is halved everywhere"
    svg = Svg(1040, 700, words)
    svg.box(1, 1, 1038, 698, "card", 12)
    _network(svg, 195)
    svg.add("path", d="M28 388 H1012", class_="rule", stroke_width=1.5)
    _weights(svg, 388)
    return svg.done()


def _stack(svg: Svg, x: float, middle: float, labels: Sequence[int]) -> None:
    top = middle - (len(labels) * STEP - 2) / 2
    for i, label in enumerate(labels):
        _chip(svg, x, top + i * STEP, label)


def _chip(svg: Svg, x: float, y: float, label: int, size: float = CELL) -> None:
    svg.box(x, y, size, size, kind_of(label), 4)
    svg.text(x + size / 2, y + size / 2 + 4.2, str(label), 11.5, "middle", "chip")


def _layer(svg: Svg, x: float, middle: float, name: str, operator: str, width: float = 74) -> None:
    svg.box(x, middle - 23, width, 46, "box", 8)
    svg.text(x + width / 2, middle - 3, name, 13.5, "middle")
    svg.text(x + width / 2, middle + 13, operator, 11, "middle", "note")


def _network(svg: Svg, y: float) -> None:
    svg.text(28, 36, "1   Labels follow the network", 17, kind="title")
    svg.text(
        28, 58, "Every channel of every layer gets a number. Operators move numbers, or tie them.", 13, kind="note"
    )
    # (stack x, labels) and the layers between them
    _stack(svg, 30, y, [0, 0, 0])
    svg.text(41, y + 58, "image", 11.5, "middle", "note")
    _layer(svg, 80, y, "stem", "conv")
    _stack(svg, 182, y, STEM)
    _layer(svg, 236, y, "expand", "conv")
    _stack(svg, 338, y, EXPAND)
    _layer(svg, 390, y, "reduce", "conv")
    _stack(svg, 492, y, REDUCE)
    for start, end in ((54, 80), (154, 182), (206, 236), (310, 338), (362, 390), (464, 492), (516, 549)):
        svg.arrow(f"M{start} {y}", end, y)
    # the shortcut and the addition
    svg.add("path", d=f"M218 {y} V{y - 84} Q218 {y - 96} 230 {y - 96} H551 Q563 {y - 96} 563 {y - 84} V{y - 22}",
            class_="line", stroke_width=1.5)  # fmt: skip
    svg.add("path", d=f"M563 {y - 14} l-4.5 -8 h9 z", class_="head")
    svg.add("circle", cx=563, cy=y, r=13, class_="box")
    svg.text(563, y + 6, "+", 18, "middle")
    svg.text(390, y - 103, "shortcut", 11.5, "middle", "note")
    for i, (one, two) in enumerate(zip(STEM, REDUCE, strict=True)):
        top = y + 64 + i * STEP
        _chip(svg, 528, top, two)
        svg.text(563, top + 16, "=", 14, "middle")
        _chip(svg, 576, top, one)
    svg.text(520, y + 64 + 2 * STEP + 2, "the addition ties", 12.5, "end")
    # behind the addition: a branch beside the value itself, joined by a concatenation
    svg.arrow(f"M576 {y}", 612, y)
    _stack(svg, 612, y, STEM)
    _layer(svg, 680, y + 50, "side", "conv")
    _stack(svg, 782, y + 50, SIDE)
    svg.add("path", d=f"M636 {y} H656 V{y - 50}", class_="line", stroke_width=1.5)
    svg.arrow(f"M656 {y - 50}", 840, y - 50)
    svg.add("path", d=f"M656 {y} V{y + 50}", class_="line", stroke_width=1.5)
    svg.arrow(f"M656 {y + 50}", 680, y + 50)
    svg.arrow(f"M754 {y + 50}", 782, y + 50)
    svg.arrow(f"M806 {y + 50}", 840, y + 50)
    _stack(svg, 840, y, [*STEM, *SIDE])
    svg.text(851, y + 114, "concat: labels land", 11.5, "middle", "note")
    svg.text(851, y + 129, "where values land", 11.5, "middle", "note")
    svg.arrow(f"M864 {y}", 892, y)
    _layer(svg, 892, y, "head", "linear")
    svg.arrow(f"M966 {y}", 990, y)
    _stack(svg, 990, y, [0, 0])
    svg.text(1001, y + 46, "classes", 11.5, "middle", "note")
    _legend(svg, 28, 352)


def _legend(svg: Svg, x: float, y: float) -> None:
    entries = (("a", "group stem"), ("b", "group expand"), ("c", "group side"), ("frozen", "frozen"))
    for kind, words in entries:
        svg.box(x, y - 11, 13, 13, kind, 3)
        svg.text(x + 19, y, words, 12.5)
        x += 38 + 7.2 * len(words)


def _weights(svg: Svg, top: float) -> None:
    svg.text(28, top + 34, "2   Halve one group, and the same channels leave everywhere", 17, kind="title")
    svg.text(28, top + 56, "The weights of the five layers: a row per output channel, a column per input channel. "
             "Channels 2 and 4 of group stem go.", 13, kind="note")  # fmt: skip
    layers = (
        ("stem", STEM, [0, 0, 0]),
        ("expand", EXPAND, STEM),
        ("reduce", REDUCE, EXPAND),
        ("side", SIDE, STEM),
        ("head", [0, 0], [*STEM, *SIDE]),
    )
    width = sum(30 + len(columns) * STEP for _, _, columns in layers)
    gap = (1040 - 2 * 32 - width) / (len(layers) - 1)
    x = 32.0
    for name, rows, columns in layers:
        _matrix(svg, x, top + 82, name, list(rows), list(columns))
        x += 30 + len(columns) * STEP + gap


def _matrix(svg: Svg, x: float, y: float, name: str, rows: list[int], columns: list[int]) -> None:
    for j, label in enumerate(columns):
        _weight_chip(svg, x + 30 + j * STEP, y, label)
    for i, row in enumerate(rows):
        _weight_chip(svg, x, y + 30 + i * STEP, row)
        for j, column in enumerate(columns):
            gone = row in GONE or column in GONE
            place = {"x": x + 30 + j * STEP, "y": y + 30 + i * STEP}
            if gone:
                svg.add("rect", **{k: v + 0.75 for k, v in place.items()}, width=CELL - 1.5, height=CELL - 1.5, rx=3,
                        class_="gone", stroke_dasharray="3 3")  # fmt: skip
            else:
                svg.box(place["x"], place["y"], CELL, CELL, "kept", 3)
    kept = [sum(label not in GONE for label in labels) for labels in (rows, columns)]
    middle, below = x + (30 + len(columns) * STEP) / 2, y + 30 + 6 * STEP + 22
    svg.text(middle, below, name, 13.5, "middle")
    before, after = f"{len(rows)} x {len(columns)}", f"{kept[0]} x {kept[1]}"
    svg.text(middle, below + 18, before if before == after else f"{before} → {after}", 12.5, "middle", "note")


def _weight_chip(svg: Svg, x: float, y: float, label: int) -> None:
    if label not in GONE:
        return _chip(svg, x, y, label)
    svg.add("rect", x=x, y=y, width=CELL, height=CELL, rx=4, class_=kind_of(label), opacity=0.22)
    svg.text(x + CELL / 2, y + CELL / 2 + 4.2, str(label), 11.5, "middle", "note")
    svg.add("path", d=f"M{_number(x + 1)} {_number(y + CELL / 2)} h{CELL - 2}", class_="line", stroke_width=1.6)
    return None


# ------------------------------------------------------------------ the demonstration


def demo() -> str | None:
    """MACs per layer before and after, with accuracy; None without a result."""
    path = RESULTS / "demo.json"
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    layers = _layers(data)
    before, after = data["baseline"], data["result"]
    left, right, row, top = 178, 960 - 150, 21, 118
    svg = Svg(960, top + row * len(layers) + 62, f"MACs per layer of {data['model']} before and after")
    svg.box(1, 1, svg.width - 2, svg.height - 2, "card", 12)
    svg.text(28, 38, f"{data['model'].partition(':')[2]} on {data['data'].split()[0]}, {', '.join(data['budget'])}",
             17, kind="title")  # fmt: skip
    total = f"{before['costs']['macs'] / 1e6:.1f}M → {after['costs']['macs'] / 1e6:.1f}M MACs"
    share = after["costs"]["macs"] / before["costs"]["macs"]
    svg.text(28, 62, f"{total} ({100 * share:.1f} %), counted by convwright and by PyTorch", 13, kind="note")
    if before.get("test") and after.get("test"):
        said = " → ".join(
            f"{100 * s['test']['accuracy']:.1f} ± {100 * s['test']['stderr']:.1f} %" for s in (before, after)
        )
        svg.text(28, 82, f"test accuracy {said}, trained by the same recipe for as long, one seed", 13, kind="note")
    for x, kind, words in ((700, "before", "baseline"), (810, "after", "result")):
        svg.box(x, 27, 13, 13, kind, 3)
        svg.text(x + 19, 38, words, 12.5)
    most = max(macs for _, (_, macs), _ in layers)
    for i, (name, (old_width, old), (new_width, new)) in enumerate(layers):
        y, scale = top + i * row, (right - left) / most
        svg.text(left - 12, y + 12, name, 11.5, "end")
        svg.box(left, y, max(old * scale, 1.0), 15.0, "before", 3)
        svg.box(left, y + 4, max(new * scale, 1.0), 7.0, "after", 2)
        svg.text(left + old * scale + 8, y + 12, _channels(old_width, new_width), 11, kind="note")
    foot = top + row * len(layers)
    svg.add("path", d=f"M{left} {top - 6} V{foot}", class_="line", stroke_width=1)
    step = _round_step(most / 4)
    for k in range(int(most / step) + 1):
        x = left + k * step * (right - left) / most
        svg.text(x, foot + 18, f"{k * step / 1e6:g}M" if k else "0", 11, "middle", "note")
    svg.text((left + right) / 2, foot + 40, "multiply-accumulates per image", 12, "middle", "note")
    return svg.done()


def _channels(before: int, after: int) -> str:
    return f"{before} channels" if before == after else f"{before} → {after} channels"


def _round_step(size: float) -> float:
    power = 10 ** len(str(int(size))) / 10
    return max(p * power for p in (1, 2, 5) if p * power <= size)


def _layers(data: dict[str, Any]) -> list[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Return (layer, (width, MACs) before, and after) of the convolutions and linear layers."""
    from convwright.architecture import read
    from convwright.cost.budget import Limits
    from convwright.methods.shared.uniform_widths import uniform_widths

    options = data["options"]
    shape = data["data"].rpartition(" ")[2].rstrip(")")
    arch = read(data["model"], shape, **options)
    edits = uniform_widths(arch, Limits(data["limits"]), data["divisor"])
    new = arch.apply(*edits, importance="first", verify=False)
    if new.profile().macs != data["result"]["costs"]["macs"]:
        raise SystemExit("demo.json is of another method or version: its MACs do not follow from its limits")
    sides = []
    for network in (arch, new):
        widths = {layer.name: layer.output_shape[1] for layer in network.layers}
        sides.append({c.name: (widths[c.name], c.macs) for c in network.profile().layers if c.macs})
    return [(name, side, sides[1][name]) for name, side in sides[0].items()]


# ------------------------------------------------------------------ experiments


def of_experiments() -> dict[str, str]:
    """Return what experiments conclude from benchmarks/results/reproduce, as their pages show it, by picture."""
    found: dict[str, str] = {}
    for name in EXPERIMENTS:
        data = load(f"reproduce/{name}")
        found |= pictures(data) if data else {}
    return found


def drawn(only: str | None = None) -> dict[str, str]:
    """Return the pictures asked for, or all, as SVG by name; what has no result is left out."""
    examples = {name: draw() for name, draw in EXAMPLES.items() if only in (None, name)}
    found = {name: text for name, text in examples.items() if text is not None}
    if only in EXAMPLES:
        return found
    return {name: text for name, text in (found | of_experiments()).items() if only in (None, name)}


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

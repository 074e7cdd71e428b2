"""``convwright doctor --latency``: where a network's time goes, why it is not less, and the edits that save most.

Profilers disturb what they measure, so the layers share the measured time of the whole as the profile divides it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from convwright.architecture import Architecture, Layer
from convwright.architecture.capture.graph import argument, in_mode
from convwright.cost import CostModel, LatencyModel, Spread, compare_latency, human
from convwright.cost.latency_surface import Surface
from convwright.cost.runtimes import Target, program
from convwright.cost.runtimes.registry import threads_of
from convwright.edits import Width
from convwright.errors import BudgetError, ConvwrightError, EditError, counted
from convwright.methods.shared.uniform_widths import solved
from convwright.plots import COLOURS, INK, picture
from convwright.runs.directory.files import write_text
from convwright.runs.latency import RunLatency, measured_latency
from convwright.runs.load import read_named
from convwright.tables import add_row, brief, new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNOWNED = "what no layer owns"
_EDITS, _CONFIRMED = 5, 2  # edits that are named, and of these, measured
_SEEN = 0.01  # share of the whole time: less is below what a measurement shows
_ROWS = 15  # layers in the table
_SHRINKS = 0.6  # share of a layer's time that half of its widths may leave, where it is said to shrink
_SIDE = 512  # of the matrices whose product gives a peak


@dataclass(frozen=True)
class Roof:
    """What layers are held against.

    Attributes:
        peak: MACs per second.
        peak_of: what reached it.
        bandwidth: bytes per second.
        bandwidth_of: what reached it.
    """

    peak: float
    peak_of: str
    bandwidth: float
    bandwidth_of: str

    def at(self, intensity: float) -> float:
        """Return the MACs per second that are possible with so many MACs per byte moved."""
        return min(self.peak, intensity * self.bandwidth)


@dataclass(frozen=True)
class LayerTime:
    """Where a part of the time goes.

    Attributes:
        name: of the layer; `UNOWNED` for what belongs to none.
        weight: its name; the time includes what follows the layer, such as its activation.
        kind: conv, depthwise, linear, ...
        widths: channels in and out.
        macs: of the batch.
        macs_share: of all MACs.
        seconds: of the measured time.
        share: of that time.
        bytes: weights, inputs and outputs, each once.
        fixed: share of its time that no width changes, by the estimate; None: unknown.
        halved: share of its time that is left at half of its widths, likewise.
        why: kind of reason -> in words, why it takes longer than its MACs or does not shrink.
    """

    name: str
    weight: str
    kind: str
    widths: tuple[int, ...]
    macs: int
    macs_share: float
    seconds: float
    share: float
    bytes: int
    fixed: float | None = None
    halved: float | None = None
    why: dict[str, str] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """MACs per second."""
        return self.macs / max(self.seconds, 1e-12)

    @property
    def intensity(self) -> float:
        """MACs per byte moved."""
        return self.macs / max(self.bytes, 1)


@dataclass(frozen=True)
class WidthStep:
    """A small change of one width.

    Attributes:
        group: the channel group.
        before: its size.
        after: the new one.
        saved: seconds, by the estimate.
        share: of the whole time.
        channels: what goes, as a share of the channels of all free groups; below 0: some come.
        measured: share of the whole time that it saved when it was measured; None: it was not.
    """

    group: str
    before: int
    after: int
    saved: float
    share: float
    channels: float
    measured: Spread | None = None

    def __str__(self) -> str:
        verb = "takes" if self.channels >= 0 else "adds"
        cost = f"{verb} {abs(self.channels):.1%} of the channels"
        said = f"{self.group}: {self.before} -> {self.after} saves {_time(self.saved)} ({self.share:.1%}), {cost}"
        if self.measured is None:
            return said
        low, high = (f"{each:.1%}" for each in (self.measured.lower, self.measured.upper))
        return f"{said}; measured: {self.measured.median:.1%} ({low} to {high})"


@dataclass(frozen=True)
class Slowness:
    """Why a network is not faster.

    Attributes:
        model: its name.
        input_shape: with the batch.
        target: what runs it.
        threads: that it may use.
        seconds: one run, measured.
        profiled: what the runtime's own times of operators add up to.
        layers: by time; what no layer owns stands in the end.
        roof: what they are held against.
        step: widths that are multiples of it are fast; 1: all are alike.
        error: median error of the estimates for other widths; None: there are none.
        halved: shares of MACs and of the time that are left at half of all widths, by the estimate.
        edits: that save most for the channels they take.
    """

    model: str
    input_shape: tuple[int, ...]
    target: str
    threads: int
    seconds: float
    profiled: float
    layers: tuple[LayerTime, ...]
    roof: Roof
    step: int
    error: float | None
    halved: tuple[float, float] | None
    edits: tuple[WidthStep, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        layers = [{**asdict(one), "rate": one.rate, "intensity": one.intensity} for one in self.layers]
        return {**asdict(self), "layers": layers, "advice": [str(edit) for edit in self.edits]}


def examine_latency(
    model: str,
    runtime: str,
    input_shape: str | None = None,
    num_classes: int | None = None,
    out: Path | None = None,
    say: Callable[[str], object] = print,
) -> Slowness:
    """Read a named network and say why it is not faster; draw a roofline into a file.

    Raises:
        ReadError: the network cannot be made or captured.
        ConvwrightError: as `why_not_faster`, or the file is none of SVG.
    """
    if out is not None and out.suffix != ".svg":
        raise ConvwrightError(f"--out {out}: the roofline is an SVG file; let the name end with .svg")
    found = why_not_faster(read_named(model, input_shape, num_classes), runtime, say)
    if out is not None:
        write_text(out, roofline(found))
        say(f"roofline: {out}")
    return found


def why_not_faster(arch: Architecture, runtime: str, say: Callable[[str], object] = print) -> Slowness:
    """Measure a network on a runtime and say where its time goes.

    Args:
        arch: the network; the example input's batch is what is timed.
        runtime: as in a budget, such as ``openvino,int8``, or ``fastest`` for the fastest that is installed.
        say: told what is measured.

    Raises:
        BudgetError: no runtime is called so.
        ConvwrightError: it is not installed, does not run the network, or does not tell the times of layers.
    """
    asked = None if runtime.strip().lower() == "fastest" else Target.of(runtime)
    seconds = {} if asked is None else profiled(arch, asked)
    known = measured_latency(arch, say, asked)
    whole, surface = known.model.whole, known.model.surface
    seconds = seconds or profiled(arch, known.target)
    layers = layer_times(arch, known.target, seconds, whole.median)
    roof = roof_of(layers, known.target)
    edits = _confirmed(known, steps_of(known.model)) if surface is not None else ()
    return Slowness(
        model=arch.source,
        input_shape=tuple(known.target.inputs(arch.inputs).tensors[0].shape),
        target=str(known.target),
        threads=whole.threads,
        seconds=whole.median,
        profiled=sum(seconds.values()),
        layers=explained(layers, roof, surface),
        roof=roof,
        step=1 if surface is None else surface.step,
        error=None if surface is None else surface.error,
        halved=None if surface is None else _halved(known.model),
        edits=edits,
    )


def profiled(arch: Architecture, target: Target) -> dict[str, float]:
    """Return the seconds of a network by weight, as the runtime tells them.

    Raises:
        ConvwrightError: it tells none, or does not run the network.
    """
    with in_mode(arch.model, training=False):
        found = program(arch.source, arch.model, arch.inputs, target).profile()
    if not any(found):
        raise ConvwrightError(f"{target} does not tell the times of layers; ask onnxruntime, openvino, or eager (CPU).")
    return found


# ------------------------------------------------------------------ where the time goes


def layer_times(
    arch: Architecture, target: Target, seconds: Mapping[str, float], whole: float
) -> tuple[LayerTime, ...]:
    """Divide a measured time among the layers; the longest first, what no layer owns last.

    Args:
        arch: the network.
        target: what ran it.
        seconds: by weight, from a profile.
        whole: seconds of one run.
    """
    macs = {cost.name: cost.macs for cost in arch.profile().layers}
    total, taken = max(1, sum(macs.values())), max(sum(seconds.values()), 1e-12)
    batch = target.inputs(arch.inputs).batch
    users: dict[str, list[Layer]] = {}
    for layer in arch.layers:
        for name in layer.parameters[:1] if layer.kind != "norm" else ():
            users.setdefault(name, []).append(layer)
    found = []
    for name, own in users.items():
        if name in seconds:
            of_layer, share = sum(macs.get(each.name, 0) for each in own), seconds[name] / taken
            found.append(
                LayerTime(
                    own[0].name, name, _kind(arch, own[0]), _widths(own[0]), of_layer * batch, of_layer / total,
                    share * whole, share, sum(_bytes(arch, each, target, batch) for each in own),
                )
            )  # fmt: skip
    left = 1 - sum(layer.share for layer in found)
    found.sort(key=lambda layer: -layer.seconds)
    others = 1 - sum(layer.macs_share for layer in found)
    return (*found, LayerTime(UNOWNED, "", "", (), 0, max(0.0, others), max(0.0, left) * whole, max(0.0, left), 0))


def _kind(arch: Architecture, layer: Layer) -> str:
    groups = argument(arch.flow.nodes[arch.flow.place[layer.node]], "groups", 1) if layer.kind == "conv" else 1
    return "depthwise" if 1 < groups == layer.input_shapes[0][1] else layer.kind


def _widths(layer: Layer) -> tuple[int, ...]:
    axis = 1 if layer.kind == "conv" else -1
    return layer.input_shapes[0][axis], layer.output_shape[axis]


def _bytes(arch: Architecture, layer: Layer, target: Target, batch: int) -> int:
    size = 1 if target.int8 else arch.example_input.element_size()
    values = sum(math.prod(shape) for shape in (*layer.input_shapes, layer.output_shape))
    weights = sum(arch.capture.tensor(name).numel() for name in layer.parameters)
    return size * (values * batch // arch.inputs.batch + weights)


def roof_of(layers: Sequence[LayerTime], target: Target, machine: bool = True) -> Roof:
    """Return the highest rates of arithmetic and of memory: of a layer, or of PyTorch on this machine.

    Args:
        layers: with their times.
        target: what ran them.
        machine: whether PyTorch is asked, where the target runs on the CPU.
    """
    told = [each for each in layers if each.share >= _SEEN and each.macs]  # shorter times are mostly rounding
    peaks = [(each.rate, f"the fastest layer, {each.name}") for each in told]
    flows = [(each.bytes / each.seconds, f"the layer that moves most per second, {each.name}") for each in told]
    if machine and not target.provider:
        moved = sum(each.bytes for each in layers)  # what the next run reads again has been displaced by as much
        square, row = torch.rand(_SIDE, _SIDE), torch.rand(max(1, moved // 8))
        into, size = row.clone(), human(moved, "weights")
        with threads_of(target):
            peaks.append((_SIDE**3 / _fastest(lambda: square @ square), f"PyTorch, {_SIDE}x{_SIDE} float matrices"))
            flows.append((moved / _fastest(lambda: into.copy_(row)), f"PyTorch, copying what all layers move, {size}"))
    return Roof(*max(peaks, default=(1.0, "")), *max(flows, default=(1.0, "")))


def _fastest(work: Callable[[], object], times: int = 15) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return max(min(taken), 1e-9)


# ------------------------------------------------------------------ why


def explained(layers: Sequence[LayerTime], roof: Roof, surface: Surface | None) -> tuple[LayerTime, ...]:
    """Say of each layer what its time depends on.

    Args:
        layers: with their times.
        roof: what they are held against.
        surface: the estimate for other widths; None: there is none.
    """
    if surface is None:
        return tuple(replace(one, why=_reasons(one, roof)) for one in layers)
    place = {name: row for row, name in enumerate(surface.weights)}
    half = np.maximum(1, np.round(surface.present / 2 / surface.step)).astype(np.int64) * surface.step
    up = -(-surface.present // surface.step) * surface.step
    lengths = (np.where(surface.varies, each, surface.present) for each in (surface.present, half, up))
    now, less, more = map(surface.terms, lengths)
    found = []
    for one in layers:
        if (row := place.get(one.weight)) is not None and (sum_now := float(now[row].sum())) > 0:
            fixed, halved = float(now[row, 0]) / sum_now, float(less[row].sum()) / sum_now
            one = replace(one, fixed=fixed, halved=halved)
            odd = surface.present[row][surface.varies[row] & (surface.present[row] % surface.step > 0)]
            one = replace(one, why=_reasons(one, roof) | _off_step(odd, surface.step, float(more[row].sum()) / sum_now))
        else:
            one = replace(one, why=_reasons(one, roof))
        found.append(one)
    return tuple(found)


def _reasons(one: LayerTime, roof: Roof) -> dict[str, str]:
    if one.name == UNOWNED:
        return {"unowned": "no weights"} if one.share >= _SEEN else {}
    found = {}
    if one.kind == "depthwise":
        found["depthwise"] = "depthwise"
    if one.intensity < roof.peak / roof.bandwidth and one.rate >= roof.at(one.intensity) / 2:
        found["memory"] = "memory bound"
    elif one.rate >= roof.peak / 2:
        found["arithmetic"] = "arithmetic"
    if one.fixed is not None and one.fixed >= 0.5:
        found["fixed"] = f"{one.fixed:.0%} fixed"
    return found


def _off_step(odd: Any, step: int, rounded: float) -> dict[str, str]:
    widths = " and ".join(dict.fromkeys(map(str, odd.tolist())))
    gain = f" ({rounded:.0%} of its time at the next one)" if rounded < 0.99 else ""
    return {"step": f"{widths} channels: no multiple of {step}{gain}"} if widths else {}


# ------------------------------------------------------------------ what to do


def steps_of(model: LatencyModel) -> tuple[WidthStep, ...]:
    """Return the small steps of single widths that save most time for the channels they take, the best first."""
    arch, whole = model.arch, model.whole.median
    channels, best = sum(group.size for group in arch.free_groups), []
    for group in arch.free_groups:
        tried = []
        for size in _sizes(group.size, group.step, model.surface):
            try:
                widths = solved(arch, [Width(group.name, size)])
                saved = whole - model.seconds(widths)
            except (BudgetError, EditError):  # no such size, or it does not fit with tied groups
                continue
            gone = sum(each.size - widths.get(each.name, each.size) for each in arch.free_groups) / channels
            tried.append(WidthStep(group.name, group.size, size, saved, saved / whole, gone))
        best += [max(tried, key=_worth)] if tried else []
    return tuple(sorted((step for step in best if step.saved > 0), key=_worth, reverse=True)[:_EDITS])


def _sizes(size: int, step: int, surface: Surface | None) -> list[int]:
    """Return an eighth less, rounded to what kernels like, and where they do not like it, the next size above."""
    fast, block = (1, 1) if surface is None else (surface.step, surface.block)
    units = {math.lcm(step, fast), math.lcm(step, fast, block)}
    less = [size * 7 // 8 // unit * unit for unit in units]
    more = [-(-size // unit) * unit for unit in units] if size % fast else []
    return [each for each in (*less, *more) if 2 * size <= 3 * each]


def _worth(step: WidthStep) -> tuple[bool, float]:
    return step.share >= _SEEN, step.saved / max(step.channels, 1e-4)


def _confirmed(known: RunLatency, steps: Sequence[WidthStep]) -> tuple[WidthStep, ...]:
    """Measure the best steps in turns with the network as it is."""
    tried = {str(n): step for n, step in enumerate(steps[:_CONFIRMED])}
    nets = {n: known.arch.apply(Width(step.group, step.after), verify=False) for n, step in tried.items()}
    if not nets:
        return tuple(steps)
    both = {"now": known.arch, **nets}
    found = compare_latency({n: (each.model, each.inputs) for n, each in both.items()}, backend=known.target).ratios
    done = [
        replace(step, measured=Spread(1 - r.median, 1 - r.upper, 1 - r.lower, r.repeats))
        for step, r in ((step, found[n]) for n, step in tried.items())
    ]
    return (*done, *steps[_CONFIRMED:])


def _halved(model: LatencyModel) -> tuple[float, float] | None:
    arch, costs = model.arch, CostModel.of(model.arch)
    try:
        widths = {g.name: max(1, g.size // g.step // 2) * g.step for g in arch.free_groups}
        macs = [int(costs.macs(each)) for each in (widths, {})]
        return macs[0] / max(1, macs[1]), model.seconds(widths) / model.whole.median
    except BudgetError:  # these do not fit together
        return None


# ------------------------------------------------------------------ as a table and as a picture


def told(found: Slowness) -> Iterator[Table | Text]:
    """Yield what is printed."""
    yield _layer_table(found)
    yield Text(_verdict(found), style="bold")
    for line in _explanations(found):
        yield Text(f"* {line}")
    if found.edits:
        yield Text(f"Cheapest edits on {found.target} (estimates, median error {found.error:.1%}):", style="bold")
    for edit in found.edits:
        yield Text(f"* {edit}")


def _layer_table(found: Slowness) -> Table:
    shape = "x".join(map(str, found.input_shape))
    numbers = ("MACs", "time", "share", "GMAC/s", "of peak", "MACs/B", "half")
    threads = counted(found.threads, "thread")
    title = f"{found.model}, input {shape}, on {found.target} with {threads}: {_time(found.seconds)}"
    table = new_table(title, "layer", "channels", *numbers, "why", numbers=numbers)
    *layers, rest = found.layers
    for one in layers[:_ROWS]:
        cells = [f"{one.macs_share:.1%}", _time(one.seconds), f"{one.share:.1%}", f"{one.rate / 1e9:.2f}"]
        cells += [f"{one.rate / found.roof.peak:.0%}", f"{one.intensity:.1f}"]
        cells += ["" if one.halved is None else f"{one.halved:.0%}"]
        add_row(table, one.name, " -> ".join(map(str, one.widths)), *cells, ", ".join(one.why.values()))
    for name, group in ((f"{len(layers) - _ROWS} other layers", layers[_ROWS:]), (rest.name, [rest])):
        shares = [sum(getattr(one, part) for one in group) for part in ("macs_share", "seconds", "share")]
        if group:
            add_row(table, name, "", f"{shares[0]:.1%}", _time(shares[1]), f"{shares[2]:.1%}", "", "", "", "", "")
    return table


def _verdict(found: Slowness) -> str:
    half, shares = 0, 0.0
    while shares < 0.5 and half < len(found.layers) - 1:
        shares, half = shares + found.layers[half].share, half + 1
    said = f"{half} of {counted(len(found.layers) - 1, 'layer')} take {shares:.0%} of the time on {found.target}"
    if found.halved is not None:
        macs, left = found.halved
        said += f"; half of all widths would leave {macs:.0%} of the MACs and {left:.0%} of the time (estimated)"
    return said + "."


def _explanations(found: Slowness) -> Iterator[str]:
    roof, step = found.roof, found.step
    ridge = f"{roof.peak / roof.bandwidth:.1f} MACs"
    for kind, words in (
        ("arithmetic", "at half of the peak or more: only fewer MACs help"),
        ("memory", f"bound by memory (below {ridge} per byte, near its roof): time follows the bytes, not the MACs"),
        ("depthwise", "depthwise, one filter per channel: time follows channels and positions, hardly the MACs"),
        ("fixed", "mostly fixed, half of the time or more stays at any width: fewer layers help, not narrower ones"),
        ("step", f"widths that are no multiples of {step}, for which {found.target} has slower kernels: round them"),
        ("unowned", "owned by no layer: operators without weights, and reordering of memory between layers"),
    ):
        own = [one for one in found.layers if kind in one.why]
        time, macs = (sum(getattr(one, part) for one in own) for part in ("share", "macs_share"))
        if time >= _SEEN:
            names = "" if kind == "unowned" else f" ({brief([one.name for one in own])})"
            yield f"{time:.0%} of the time for {macs:.0%} of the MACs is {words}{names}"
    if found.halved is not None:
        share = sum(one.share for one in found.layers if one.halved is not None and one.halved <= _SHRINKS)
        yield f"{share:.0%} of the time shrinks with the widths: half of them leave {_SHRINKS:.0%} of it or less"
    yield f"peak: {roof.peak / 1e9:.1f} GMAC/s, by {roof.peak_of}"
    yield f"memory: {roof.bandwidth / 1e9:.1f} GB/s, by {roof.bandwidth_of}"


def _time(seconds: float) -> str:
    return human(round(1e9 * seconds), "latency")


def roofline(found: Slowness) -> str:
    """Draw each layer's rate over its MACs per byte below the roof; the larger, the more time; return an SVG file."""
    shown = [one for one in found.layers if one.macs]
    roof, kinds = found.roof, list(dict.fromkeys(one.kind for one in shown))

    def paint(axes: Axes) -> None:
        axes.set(xscale="log", yscale="log")
        axes.grid()
        ridge = roof.peak / roof.bandwidth
        places = [ridge, *(one.intensity for one in shown)]
        line = [min(places) / 2, ridge, max(places) * 2]
        axes.plot(line, [roof.at(x) / 1e9 for x in line], color=INK, gid="roof")
        for kind, colour in zip(kinds, COLOURS, strict=False):
            own = [one for one in shown if one.kind == kind]
            x, y = [one.intensity for one in own], [one.rate / 1e9 for one in own]
            axes.scatter(x, y, s=[12 + 1500 * one.share for one in own], color=colour, alpha=0.6, label=kind, gid=kind)
        for number, one in enumerate(shown[:_EDITS], start=1):
            words = f"{number}  {one.name}: {_time(one.seconds)}, {one.share:.0%}"
            axes.annotate(str(number), (one.intensity, one.rate / 1e9), ha="center", va="center_baseline", fontsize=7)
            axes.annotate(words, (1, 1), (16, -14 * number), xycoords="axes fraction", textcoords="offset points")
        axes.legend(loc="lower left", bbox_to_anchor=(1.03, 0), markerscale=0.5)

    data = {"roof": asdict(roof), "layers": [[o.name, o.kind, o.intensity, o.rate, o.share] for o in shown]}
    title = f"{found.model} on {found.target}: {_time(found.seconds)}; roof: {roof.peak_of}; {roof.bandwidth_of}"
    return picture(title, data, paint, (400, 260), ("MACs per byte moved", "GMAC per second"))

"""``convwright doctor --latency``: where a network's time goes, why it is not less, and the edits that save most.

Profilers disturb what they measure, so the layers share the measured time of the whole as the profile divides it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from convwright.architecture import Architecture, Layer
from convwright.architecture.capture.graph import argument, in_mode
from convwright.cost import CostModel, Latency, LatencyModel, Spread, compare_latency, human
from convwright.cost.latency import wall_timer
from convwright.cost.latency_surface import LatencySurface
from convwright.cost.runtimes import Target, program
from convwright.cost.runtimes.registry import threads_of
from convwright.edits import Width
from convwright.errors import BudgetError, ConvwrightError, EditError, counted
from convwright.methods.shared.uniform_widths import solved
from convwright.plots import COLOURS, INK, picture
from convwright.runs.latency import RunLatency, measured_latency
from convwright.tables import add_row, brief, new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNOWNED = "what no layer owns"
_EDITS, _CONFIRMED = 5, 2  # edits that are named, and of these, measured
_SEEN = 0.01  # share of the whole time: less is below what a measurement shows
_ROWS = 15  # layers in the table
_SHRINKS = 0.6  # share of a layer's time that half of its widths may leave, where it is said to shrink
_PROFILING = 1.0  # seconds, so that other work on the machine hits the median of no layer
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

    @property
    def ridge(self) -> float:
        """MACs per byte below which memory is what limits."""
        return self.peak / self.bandwidth

    def at(self, intensity: float) -> float:
        """Return the MACs per second that are possible with so many MACs per byte moved."""
        return min(self.peak, intensity * self.bandwidth)

    def __str__(self) -> str:
        return (
            f"peak {self.peak / 1e9:.1f} GMAC/s, by {self.peak_of}; "
            f"memory {self.bandwidth / 1e9:.1f} GB/s, by {self.bandwidth_of}"
        )


@dataclass(frozen=True)
class LayerTime:
    """Where a part of the time goes.

    Attributes:
        name: of the layer; `UNOWNED` for what belongs to none.
        weight: its name; the time includes what follows the layer, such as its activation.
        kind: conv, depthwise, linear, ...
        widths: channels in and out.
        seconds: of the measured time.
        share: of that time.
        macs: of the batch.
        macs_share: of all MACs.
        bytes: weights, inputs and outputs, each once.
        fixed: share of its time that no width changes, by the estimate; None: unknown.
        halved: share of its time that is left at half of its widths, likewise.
        why: kind of reason -> in words, why it takes longer than its MACs or does not shrink.
    """

    name: str
    weight: str
    kind: str
    widths: tuple[int, ...]
    seconds: float
    share: float
    macs: int
    macs_share: float
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
        noise: share by which the same network, opened once more and measured beside it, differed.
    """

    group: str
    before: int
    after: int
    saved: float
    share: float
    channels: float
    measured: Spread | None = None
    noise: float = 0.0

    def __str__(self) -> str:
        cost = f"{'takes' if self.channels >= 0 else 'adds'} {100 * abs(self.channels):.2g}% of the channels"
        said = f"{self.group}: {self.before} -> {self.after} saves {_time(self.saved)} ({self.share:.1%}), {cost}"
        if self.measured is None:
            return said
        low, high = (f"{each:.1%}" for each in (self.measured.lower, self.measured.upper))
        sure = self.measured.median > self.noise
        doubt = "" if sure else f": not more than the same network differs when opened again ({self.noise:.1%})"
        return f"{said}; measured {self.measured.median:.1%} ({low} to {high}){doubt}"


@dataclass(frozen=True)
class Slowness:
    """Why a network is not faster.

    Attributes:
        model: its name.
        input_shape: with the batch.
        whole: its latency, and what runs it.
        layers: by time; what no layer owns stands in the end.
        roof: what they are held against.
        step: widths that are multiples of it are fast; 1: all are alike.
        block: to whose multiples kernels pad; 1: to none.
        error: median error of the estimates for other widths.
        halved: shares of MACs and of the time that half of all widths leave, by the estimate; None: there is none.
        edits: that save most for the channels they take.
    """

    model: str
    input_shape: tuple[int, ...]
    whole: Latency
    layers: tuple[LayerTime, ...]
    roof: Roof
    step: int = 1
    block: int = 1
    error: float = 0.0
    halved: tuple[float, float] | None = None
    edits: tuple[WidthStep, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        layers = [{**asdict(one), "rate": one.rate, "intensity": one.intensity} for one in self.layers]
        return {**asdict(self), "layers": layers, "advice": [str(edit) for edit in self.edits]}


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
    target, whole, surface = known.target, known.model.whole, known.model.surface
    layers = layer_times(arch, target, seconds or profiled(arch, target), whole.median)
    roof, shape = roof_of(layers, target), tuple(target.inputs(arch.inputs).tensors[0].shape)
    found = Slowness(arch.source, shape, whole, explained(layers, roof, surface), roof)
    if surface is None:
        return found
    step, block, halved, edits = surface.step, surface.block, _halved(known.model), _confirmed(known)
    return replace(found, step=step, block=block, error=surface.error, halved=halved, edits=edits)


def profiled(arch: Architecture, target: Target) -> dict[str, float]:
    """Return the seconds of a network by weight, as the runtime tells them.

    Raises:
        ConvwrightError: it tells none, or does not run the network.
    """
    with in_mode(arch.model, training=False):
        made = program(arch.source, arch.model, arch.inputs, target)
        once = min(made.time(1, wall_timer(arch.example_input.device)) for _ in range(2))
        found = made.profile(int(min(100, max(15, _PROFILING / max(once, 1e-6)))))
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
        if name not in seconds:
            continue
        first, work, share = own[0], sum(macs.get(each.name, 0) for each in own), seconds[name] / taken
        axis, moved = (1 if first.kind == "conv" else -1), sum(_bytes(arch, each, target, batch) for each in own)
        widths = first.input_shapes[0][axis], first.output_shape[axis]
        costs: Any = {"macs": work * batch, "macs_share": work / total, "bytes": moved}
        found.append(LayerTime(first.name, name, _kind(arch, first), widths, share * whole, share, **costs))
    left = 1 - sum(layer.share for layer in found)
    found.sort(key=lambda layer: -layer.seconds)
    others = 1 - sum(layer.macs_share for layer in found)
    return (*found, LayerTime(UNOWNED, "", "", (), max(0.0, left) * whole, max(0.0, left), 0, max(0.0, others), 0))


def _kind(arch: Architecture, layer: Layer) -> str:
    groups = argument(arch.flow.nodes[arch.flow.place[layer.node]], "groups", 1) if layer.kind == "conv" else 1
    return "depthwise" if 1 < groups == layer.input_shapes[0][1] else layer.kind


def _bytes(arch: Architecture, layer: Layer, target: Target, batch: int) -> int:
    size = 1 if target.int8 else arch.example_input.element_size()
    values = sum(math.prod(shape) for shape in (*layer.input_shapes, layer.output_shape))
    weights = sum(arch.capture.tensor(name).numel() for name in layer.parameters)
    return size * (values * batch // arch.inputs.batch + weights)


def roof_of(layers: Sequence[LayerTime], target: Target) -> Roof:
    """Return the highest rates of arithmetic and of memory: of a layer, or on the CPU of PyTorch."""
    told = [each for each in layers if each.share >= _SEEN and each.macs]  # shorter times are mostly rounding
    peaks = [(each.rate, f"the fastest layer, {each.name}") for each in told]
    flows = [(each.bytes / each.seconds, f"the layer that moves most per second, {each.name}") for each in told]
    if not target.provider:
        # What the next run reads again has been displaced by as much; below a megabyte it is the call that takes time.
        moved = max(2**20, sum(each.bytes for each in layers))
        square, row = torch.rand(_SIDE, _SIDE), torch.rand(moved // 8)
        into, size = row.clone(), human(moved, "weights")
        with threads_of(target):
            peaks.append((_SIDE**3 / _taken(lambda: square @ square), f"PyTorch, {_SIDE}x{_SIDE} float matrices"))
            flows.append((moved / _taken(lambda: into.copy_(row)), f"PyTorch, copying {size}, as all layers move"))
    return Roof(*max(peaks, default=(1.0, "")), *max(flows, default=(1.0, "")))


def _taken(work: Callable[[], object], times: int = 15) -> float:
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return max(statistics.median(spent), 1e-9)


# ------------------------------------------------------------------ why


def explained(layers: Sequence[LayerTime], roof: Roof, surface: LatencySurface | None) -> tuple[LayerTime, ...]:
    """Say of each layer what its time depends on.

    Args:
        layers: with their times.
        roof: what they are held against.
        surface: the estimate for other widths; None: there is none.
    """
    if surface is None:
        return tuple(_with_reasons(one, roof) for one in layers)
    place = {name: row for row, name in enumerate(surface.weights)}
    half = np.maximum(1, np.round(surface.present / 2 / surface.step)).astype(np.int64) * surface.step
    now, less = map(surface.terms, (surface.present, np.where(surface.varies, half, surface.present)))
    found = []
    for one in layers:
        row = place.get(one.weight)
        if row is None or not (total := float(now[row].sum())) > 0:
            found.append(_with_reasons(one, roof))
            continue
        estimated = replace(one, fixed=float(now[row, 0]) / total, halved=float(less[row].sum()) / total)
        odd = surface.present[row][surface.varies[row] & (surface.present[row] % surface.step > 0)]
        found.append(_with_reasons(estimated, roof, dict.fromkeys(odd.tolist()), surface.step))
    return tuple(found)


def _with_reasons(one: LayerTime, roof: Roof, odd: Iterable[int] = (), step: int = 1) -> LayerTime:
    """Say why; `odd` are its widths that are no multiples of `step`."""
    if one.name == UNOWNED:
        return replace(one, why={UNOWNED: "no weights"})
    memory = one.intensity < roof.ridge and one.rate >= roof.at(one.intensity) / 2
    widths = " and ".join(map(str, odd))
    signs = {
        "depthwise": (one.kind == "depthwise", "depthwise"),
        "memory bound": (memory, "memory bound"),
        "arithmetic": (not memory and one.rate >= roof.peak / 2, "arithmetic"),
        "fixed": (one.fixed is not None and one.fixed >= 0.5, f"{one.fixed or 0:.0%} fixed"),
        "no multiple": (bool(widths), f"{widths} channels: no multiple of {step}"),
    }
    why = {kind: words for kind, (holds, words) in signs.items() if holds}
    return replace(one, why=why or {"below the roof": "below the roof"})


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


def _sizes(size: int, step: int, surface: LatencySurface | None) -> list[int]:
    """Return a tenth less, rounded down to what kernels like, and where they do not like it, the next size above."""
    fast, block = (1, 1) if surface is None else (surface.step, surface.block)
    units = {math.lcm(step, fast), math.lcm(step, fast, block)}
    less = [size * 9 // 10 // unit * unit for unit in units]
    more = [-(-size // unit) * unit for unit in units] if size % fast else []
    return [each for each in (*less, *more) if 2 * size <= 3 * each]


def _worth(step: WidthStep) -> tuple[bool, float]:
    return step.share >= _SEEN, step.saved / max(step.channels, 1e-4)


def _confirmed(known: RunLatency) -> tuple[WidthStep, ...]:
    """Measure the best steps in turns with the network as it is."""
    steps = steps_of(known.model)
    tried = {str(n): step for n, step in enumerate(steps[:_CONFIRMED])}
    nets = {n: known.arch.apply(Width(step.group, step.after), verify=False) for n, step in tried.items()}
    if not nets:
        return tuple(steps)
    # A runtime may lay one and the same network out well or badly: twice opened, OpenVINO's differ by 5% and more.
    all_of = {"now": known.arch, "again": known.arch, **nets}
    found = compare_latency({n: (each.model, each.inputs) for n, each in all_of.items()}, backend=known.target).ratios
    saved = {n: Spread(1 - r.median, 1 - r.upper, 1 - r.lower, r.repeats) for n, r in found.items()}
    done = [replace(step, measured=saved[n], noise=abs(saved["again"].median)) for n, step in tried.items()]
    return (*done, *steps[_CONFIRMED:])


def _halved(model: LatencyModel) -> tuple[float, float] | None:
    arch, costs = model.arch, CostModel.of(model.arch)
    fast = 1 if model.surface is None else model.surface.step
    units = {group: math.lcm(group.step, fast) for group in arch.free_groups}
    widths = {g.name: max(1, round(g.size / 2 / unit)) * unit for g, unit in units.items() if g.size > unit}
    try:
        macs = [int(costs.macs(each)) for each in (widths, {})]
        return macs[0] / max(1, macs[1]), model.seconds(widths) / model.whole.median
    except BudgetError:  # these do not fit together
        return None


# ------------------------------------------------------------------ as a table and as a picture


def told(found: Slowness) -> Iterator[Table | Text]:
    """Yield what is printed."""
    yield _layer_table(found)
    half = 1 + int(np.argmax(np.cumsum([one.share for one in found.layers]) >= 0.5))
    said = f"Half of the time goes into {half} of {counted(len(found.layers) - 1, 'layer')}"
    if found.halved is not None:
        macs, left = found.halved
        said += f"; half of all widths would leave {macs:.0%} of the MACs and {left:.0%} of the time (estimated)"
    yield Text(f"{said}.", style="bold")
    yield from (Text(f"* {line}") for line in _explanations(found))
    if found.edits:
        words = f"Cheapest edits on {found.whole.backend} (estimates, median error {found.error:.1%}):"
        yield Text(words, style="bold")
        yield from (Text(f"* {edit}") for edit in found.edits)


def _layer_table(found: Slowness) -> Table:
    shape = "x".join(map(str, found.input_shape))
    numbers = ("MACs", "time", "share", "GMAC/s, of peak", "MACs/B", "at half")
    threads = counted(found.whole.threads, "thread")
    title = f"{found.model}, input {shape}, on {found.whole.backend} with {threads}: {_time(found.whole.median)}"
    table = new_table(title, "layer", "channels", *numbers, "why", numbers=numbers)
    table.columns[0].no_wrap = True
    *layers, rest = found.layers
    for one in layers[:_ROWS]:
        cells = [f"{one.macs_share:.1%}", _time(one.seconds), f"{one.share:.1%}"]
        cells += [f"{one.rate / 1e9:.3g}, {one.rate / found.roof.peak:.0%}", f"{one.intensity:.1f}"]
        cells += ["" if one.halved is None else f"{one.halved:.0%}"]
        add_row(table, one.name, "->".join(map(str, one.widths)), *cells, ", ".join(one.why.values()))
    for name, group in ((f"{len(layers) - _ROWS} other layers", layers[_ROWS:]), (rest.name, [rest])):
        shares = [sum(getattr(one, part) for one in group) for part in ("macs_share", "seconds", "share")]
        if group:
            add_row(table, name, "", f"{shares[0]:.1%}", _time(shares[1]), f"{shares[2]:.1%}", "", "", "", "")
    return table


def _explanations(found: Slowness) -> Iterator[str]:
    roof = found.roof
    pads = f", or kernels pad to {found.block} channels" if found.block > 1 else ""
    for kind, words in (
        ("arithmetic", "half of the peak or more is reached; only fewer MACs help"),
        ("memory bound", f"below {roof.ridge:.1f} MACs per byte, near that roof: time follows bytes and not MACs"),
        ("depthwise", "one filter per channel: time follows channels and positions, hardly the MACs"),
        ("fixed", f"half of the time or more stays at any width{pads}: fewer layers help, narrower ones hardly"),
        ("no multiple", f"{found.whole.backend} is faster where widths are multiples of {found.step}; round them"),
        ("below the roof", "less than half of what arithmetic and memory allow, and no reason found"),
        (UNOWNED, "operators without weights, reordering of memory, calls before the first layer"),
    ):
        own = [one for one in found.layers if kind in one.why]
        time, macs = (sum(getattr(one, part) for one in own) for part in ("share", "macs_share"))
        if time >= _SEEN:
            names = "" if kind == UNOWNED else f" ({brief([one.name for one in own])})"
            of = f" of {found.step}" if kind == "no multiple" else ""
            yield f"{kind}{of}: {time:.0%} of the time, {macs:.0%} of the MACs; {words}{names}"
    if found.halved is not None:
        share = sum(one.share for one in found.layers if one.halved is not None and one.halved <= _SHRINKS)
        yield f"{share:.0%} of the time is in layers of which half of the channels would leave {_SHRINKS:.0%} or less"
    yield f"roof: {roof}"
    yield "a layer's time includes its norm and activation; at half: the share of it that half of its channels leave"


def _time(seconds: float) -> str:
    return human(round(1e9 * seconds), "latency")


def roofline(found: Slowness) -> str:
    """Draw each layer's rate over its MACs per byte below the roof; the larger, the more time; return an SVG file."""
    shown = [one for one in found.layers if one.macs]
    roof, kinds = found.roof, list(dict.fromkeys(one.kind for one in shown))

    def paint(axes: Axes) -> None:
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        axes.grid()
        places = [roof.ridge, *(one.intensity for one in shown)]
        line = [min(places) / 2, roof.ridge, max(places) * 2]
        axes.plot(line, [roof.at(x) / 1e9 for x in line], color=INK, gid="roof", label=str(roof).replace("; ", "\n"))
        for kind, colour in zip(kinds, COLOURS, strict=False):
            own = [one for one in shown if one.kind == kind]
            x, y = [one.intensity for one in own], [one.rate / 1e9 for one in own]
            axes.scatter(x, y, s=[12 + 1500 * one.share for one in own], color=colour, alpha=0.6, label=kind, gid=kind)
        for number, one in enumerate(shown[:_EDITS], start=1):
            words = f"{number}  {one.name}: {_time(one.seconds)}, {one.share:.0%}"
            look: Any = {"fontsize": 7, "fontweight": "bold", "color": "white"}
            axes.annotate(str(number), (one.intensity, one.rate / 1e9), ha="center", va="center_baseline", **look)
            axes.annotate(words, (1, 1), (16, -14 * number), xycoords="axes fraction", textcoords="offset points")
        axes.legend(loc="lower left", bbox_to_anchor=(1.03, 0), markerscale=0.5)

    data = {"roof": asdict(roof), "layers": [[o.name, o.kind, o.intensity, o.rate, o.share] for o in shown]}
    title = f"{found.model} on {found.whole.backend}: {_time(found.whole.median)}"
    return picture(title, data, paint, (400, 260), ("MACs per byte moved", "GMAC per second"))

"""What a convolution could become: other operators, what they cost, and what they would see.

Nothing is built: a candidate says how fields pass through it, and its costs follow from its shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from convwright.architecture import Architecture, Layer
from convwright.architecture.capture.graph import shape_of
from convwright.edits import Edit, Kernel, Replace
from convwright.edits.kernel import why_not_kernel
from convwright.edits.replace import why_not_replaceable
from convwright.errors import ConvwrightError
from convwright.layers.rolling_pointwise import MOST_COPIES, ORDERS, channels_of, window_of, window_plan
from convwright.metrics.receptive_field.field import FieldValue
from convwright.metrics.receptive_field.interpreter import ChannelMixing, FieldWalk, Window
from convwright.metrics.receptive_field.rules import kernels_of

Passing = Callable[[FieldWalk, FieldValue], FieldValue]
Operator = Literal["dw_separable", "dw_rpw", "rpw", "grouped", "kernel"]
PLACEMENTS = ("published", "all")


@dataclass(frozen=True)
class Choice:
    """An operator for one layer.

    Attributes:
        layer: its name.
        operator: ``dense``, ``dw_separable``, ``dw_rpw``, ``rpw``, ``grouped`` or ``kernel`` (a smaller dense one).
        groups: parts of the channels that an output does not mix; 1: it reads all.
        overlap: of the windows of a rolling pointwise convolution; 0 for the others.
        kernel: rows and columns of its kernel.
        macs: its multiply-accumulates for one sample, without bias.
        params: its parameters, bias included.
    """

    layer: str
    operator: str
    groups: int
    overlap: float
    kernel: tuple[int, ...]
    macs: int
    params: int

    def __str__(self) -> str:
        size = "x".join(map(str, self.kernel))
        names = {
            "dense": f"dense {size}",
            "kernel": f"dense {size}",
            "grouped": f"{size} in {self.groups} groups",
            "dw_separable": f"depthwise {size} + pointwise",
            "dw_rpw": f"depthwise {size} + rolling pointwise, g={self.groups}, overlap {self.overlap:g}",
            "rpw": f"rolling pointwise, g={self.groups}, overlap {self.overlap:g}",
        }
        return names[self.operator]

    def edit(self, order: str = "interleaved") -> Edit | None:
        """Return the edit that puts it in place; None for the layer as it is."""
        if self.operator == "dense":
            return None
        if self.operator == "kernel":
            return Kernel(self.layer, self.kernel[0])
        options: dict[str, Any] = {}
        if self.operator in ("rpw", "dw_rpw"):
            options = {"groups": self.groups, "overlap": self.overlap, "order": order}
        elif self.operator == "grouped":
            options = {"groups": self.groups}
        return Replace(self.layer, self.operator, **options)


@dataclass(frozen=True, eq=False)
class Place:
    """A convolution whose operator can be chosen.

    Attributes:
        layer: its record.
        module: itself.
        order: of the windows of rolling pointwise convolutions.
    """

    layer: Layer
    module: nn.Conv2d
    order: str = "interleaved"

    @property
    def first(self) -> Choice:
        """The layer as it is."""
        return self.choice("dense", 1, 0.0, self.module.kernel_size)

    def choice(self, operator: str, groups: int, overlap: float, kernel: tuple[int, ...]) -> Choice:
        """Return an operator for this layer, with its costs."""
        ins, outs, taps = self.module.in_channels, self.module.out_channels, math.prod(kernel)
        depthwise = operator in ("dw_separable", "dw_rpw")
        weights = taps * ins + ins * outs // groups if depthwise else taps * ins * outs // groups
        positions = math.prod(self.layer.output_shape[2:])
        bias = outs if self.module.bias is not None else 0
        return Choice(self.layer.name, operator, groups, overlap, tuple(kernel), positions * weights, weights + bias)

    def passing(self, walk: FieldWalk, choice: Choice) -> Passing:
        """Return how fields pass through the layer if it were this operator."""
        node = walk.architecture.flow.nodes[walk.architecture.flow.place[self.layer.node]]
        old = kernels_of(node, self.module.kernel_size)
        # Another kernel is padded so that it keeps its place.
        windows = [
            Window(size, w.stride, w.dilation, w.padding - (w.size - size) * w.dilation // 2)
            for w, size in zip(old, choice.kernel, strict=True)
        ]
        ins, outs, rolls = self.module.in_channels, self.module.out_channels, choice.operator in ("rpw", "dw_rpw")
        mixing, shape = ChannelMixing(outs, choice.groups), shape_of(node)
        if rolls and choice.groups > 1:
            read = rolling_channels(ins, outs, choice.groups, choice.overlap, self.order)
            mixing = ChannelMixing(outs, 1, read)

        def passing(walk: FieldWalk, x: FieldValue) -> FieldValue:
            axes = range(x.ndim - len(windows), x.ndim)
            slid = walk.slide(node, walk.mix(x, 1, mixing), axes, windows, shape)
            assert slid is not None  # the layer itself was followed, so its positions lie along these axes
            return slid

        return passing


@lru_cache(maxsize=256)
def rolling_channels(ins: int, outs: int, groups: int, overlap: float, order: str) -> Tensor:
    """Return the input channels that each output of a rolling pointwise convolution reads, (outs, ins / groups)."""
    shift, windows = window_plan(ins, outs, groups, overlap, order)  # no layer is made: it would draw weights
    return channels_of(window_of(torch.arange(outs), outs, windows, order), ins, ins // groups, shift)


# ------------------------------------------------------------------ where, and what


@dataclass(frozen=True)
class Menu:
    """Which operators are considered.

    Attributes:
        operators: of ``dw_separable``, ``dw_rpw``, ``rpw``, ``grouped`` and ``kernel``.
        groups: numbers of groups for the operators that have them.
        overlaps: of rolling pointwise convolutions.
        order: of their windows.
        placement: ``published``: never the first convolution; in a residual block the last dense one with a kernel
            larger than 1x1, elsewhere all of those; 1x1 convolutions where a depthwise one precedes them. So the
            related published code does it. ``all``: every dense convolution but the first.

    Raises:
        ConvwrightError: a value is none of these, or out of range.
    """

    operators: tuple[str, ...] = ("dw_separable", "dw_rpw", "rpw", "grouped", "kernel")
    groups: tuple[int, ...] = (2, 4, 8)
    overlaps: tuple[float, ...] = (0.25, 0.33, 0.5, 0.75)
    order: str = ORDERS[0]
    placement: str = "published"

    def __post_init__(self) -> None:
        known = get_args(Operator)
        if not self.operators or not set(self.operators) <= set(known):
            raise ConvwrightError(f"operators are some of {', '.join(known)}, not {list(self.operators)}")
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in self.groups):
            raise ConvwrightError(f"groups are whole numbers from 1 on, not {list(self.groups)}")
        if any(not 0 <= overlap < 1 for overlap in self.overlaps):
            raise ConvwrightError(f"overlaps are at least 0 and less than 1, not {list(self.overlaps)}")
        for name, value, values in (("order", self.order, ORDERS), ("placement", self.placement, PLACEMENTS)):
            if value not in values:
                raise ConvwrightError(f"{name} is one of {', '.join(values)}, not {value!r}")


def find_places(arch: Architecture, menu: Menu) -> tuple[tuple[Place, ...], Mapping[str, str]]:
    """Return the convolutions whose operator can be chosen, and why the others stay.

    Returns:
        The places in execution order; name of a convolution -> why it stays.
    """
    modules = dict(arch.model.named_modules())
    convolutions = [layer for layer in arch.layers if layer.kind == "conv" and layer.operator == "conv2d"]
    stays: dict[str, str] = {}
    dense = []
    for index, layer in enumerate(convolutions):
        module = modules.get(layer.name)
        if not isinstance(module, nn.Conv2d):
            stays[layer.name] = "it is no module of its own that is called once"
        elif module.groups > 1:
            stays[layer.name] = "it is grouped or depthwise already"
        elif index == 0:
            stays[layer.name] = "the first convolution stays dense: it reads the image's few channels"
        else:
            dense.append(Place(layer, module, menu.order))
    if menu.placement == "all":
        return tuple(dense), stays
    unpublished = _unpublished(arch, dense)
    return tuple(p for p in dense if p.layer.name not in unpublished), {**stays, **unpublished}


def _unpublished(arch: Architecture, places: Sequence[Place]) -> dict[str, str]:
    """Return the layers that stay by the published placement -> why."""
    in_block = {name: block for block in arch.blocks if block.kind == "residual" for name in block.layers}
    last = {}
    for place in places:
        block = in_block.get(place.layer.name)
        if block is not None and max(place.module.kernel_size) > 1 and place.layer.name in block.branch:
            last[block.name] = place.layer.name
    reasons = {}
    for place in places:
        name, block = place.layer.name, in_block.get(place.layer.name)
        if max(place.module.kernel_size) == 1:
            if not _after_depthwise(arch, name):
                reasons[name] = "a 1x1 convolution that follows no depthwise one"
        elif block is not None and last.get(block.name) != name:
            reasons[name] = "one convolution per residual block is replaced, the last one with a kernel"
    return reasons


def _after_depthwise(arch: Architecture, name: str) -> bool:
    """Whether the nearest convolution before a layer, along the largest operands, is depthwise."""
    flow = arch.flow
    position = flow.place[arch.layer(name).node]
    by_node = {layer.node: layer for layer in arch.layers if layer.kind == "conv"}
    while flow.feeds[position]:
        # Of a map and the gate it is multiplied with, the map; of equal operands the first.
        position = max(flow.feeds[position], key=lambda source: math.prod(shape_of(flow.nodes[source])[2:]))
        layer = by_node.get(flow.nodes[position].name)
        if layer is not None:
            weight = arch.capture.tensor(layer.parameters[0])
            return weight.shape[1] == 1 and weight.shape[0] > 1 and layer.input_shapes[0][1] > 1
    return False


def choices(arch: Architecture, place: Place, menu: Menu) -> tuple[Choice, ...]:
    """Return what a layer could become, the cheapest in parameters first; the layer itself is left out."""
    cheaper = [c for c in _all_choices(place, menu) if c.params < place.first.params]
    # A layer accepts an operator or not, whatever its options: these were checked against the channels.
    one_each = {(c.operator, c.kernel): c for c in cheaper}
    accepted = {kind for kind, choice in one_each.items() if _accepted(arch, choice)}
    found = [c for c in cheaper if (c.operator, c.kernel) in accepted]
    return tuple(sorted(found, key=lambda c: (c.params, c.macs, c.overlap)))


def _all_choices(place: Place, menu: Menu) -> Iterator[Choice]:
    kernel = place.module.kernel_size
    ins, outs = place.module.in_channels, place.module.out_channels
    spatial = max(kernel) > 1
    if spatial and "dw_separable" in menu.operators:
        yield place.choice("dw_separable", 1, 0.0, kernel)
    rolling = "dw_rpw" if spatial else "rpw"
    for groups in menu.groups:
        if groups > 1 and ins % groups == 0 and outs % groups == 0:
            if "grouped" in menu.operators:
                yield place.choice("grouped", groups, 0.0, kernel)
            if rolling in menu.operators:
                yield from (place.choice(rolling, groups, o, kernel) for o in _overlaps(ins, outs, groups, menu))
    if "kernel" in menu.operators and len(set(kernel)) == 1:
        yield from (place.choice("kernel", 1, 0.0, (k, k)) for k in range(kernel[0] - 2, 0, -2))


def _overlaps(ins: int, outs: int, groups: int, menu: Menu) -> Iterator[float]:
    """Yield the overlaps that make different windows: those of few channels round to the same.

    Windows that hold every channel more often than the layer copies it are left out: it then computes a dense
    convolution, and would save parameters but no MACs.
    """
    seen = set()
    for overlap in sorted(menu.overlaps):
        try:
            plan = window_plan(ins, outs, groups, overlap, menu.order)
        except ValueError:  # the blocked order does not fit these channels
            continue
        copied = plan[1] * (ins // groups) / ins
        if plan not in seen and copied <= MOST_COPIES:
            seen.add(plan)
            yield overlap


def _accepted(arch: Architecture, choice: Choice) -> bool:
    edit = choice.edit()
    if isinstance(edit, Kernel):
        return why_not_kernel(arch, edit) is None
    return isinstance(edit, Replace) and why_not_replaceable(arch, edit) is None

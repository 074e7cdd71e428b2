"""Channel quality: how much of its channels each layer uses, from the rank and the condition of its trained kernel.

A kernel is unfolded along its input channels and along its output channels, and EVBMF (``rank``) separates signal
from noise in each. The metrics are those of CONetV2 (arXiv 2110.06830), read from its published code. By default
they are **corrected**, where the code's numbers say something other than what they are meant to:

- the variance is exact and tall unfoldings are turned (see ``rank``);
- where one value is kept, there is no condition to speak of. The code divides by 1e-4 and gives the worst layers the
  best value, pi/2; here the quality is arctan(rank). The denominator is never below 0.1;
- an unfolding of one row (the input side of a depthwise kernel) has no quality, where the code has 0.

``parity=True`` gives the code's numbers. ``members`` tells which layers' qualities make up that of a channel group: the
published code finds this by hand-written tables per family of networks, here it is read from the channel labels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, fx, nn

from convwright.architecture import Architecture, Layer
from convwright.architecture.capture.graph import argument, shape_of
from convwright.architecture.labels import Value
from convwright.metrics.quality.evbmf import NOT_FINITE, Evbmf, solve, solve_published, spectra

Metric = Literal["rank", "knowledge_gain", "condition", "qc", "new_qc"]
METRICS: tuple[Metric, ...] = ("rank", "knowledge_gain", "condition", "qc", "new_qc")

_LEAST = 0.1  # of 1 - 1/condition: two equal values out of many are no proof of quality
_PUBLISHED_LEAST = 1e-4


@dataclass(frozen=True)
class Mode:
    """The quality of one unfolding.

    Attributes:
        rank: R, kept values over rows, in [0, 1].
        kept: r, number of singular values that are signal.
        size: N, rows of the unfolding.
        knowledge_gain: S, sum of the kept values over N times the largest, in [0, 1].
        condition: kappa, largest over smallest kept value; 0 where none is kept.
        qc: arctan(R / (1 - 1/kappa)), in [0, pi/2]; more and more equal kept values raise it.
        new_qc: the same with S in place of R.
        variance: of the noise, per entry.
        problem: why there is nothing to tell, in words; all numbers are 0 then. Else empty.
    """

    rank: float
    kept: int
    size: int
    knowledge_gain: float
    condition: float
    qc: float
    new_qc: float
    variance: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class ChannelQuality:
    """The quality of one kernel.

    Attributes:
        input: of the unfolding along input channels; None where it has one row, as in a depthwise kernel.
        output: of the unfolding along output channels; None where it has one row.
        kernel: of the unfolding along kernel positions, which the published code logs; None without ``parity``.
    """

    input: Mode | None
    output: Mode | None
    kernel: Mode | None = None

    @property
    def finite(self) -> bool:
        """Whether all weights were finite; where not, all numbers are 0."""
        return NOT_FINITE not in {mode.problem for mode in (self.input, self.output) if mode}

    @property
    def problem(self) -> str:
        """Why a mode has nothing to tell, in words; empty if all went well."""
        return next((mode.problem for mode in (self.output, self.input) if mode and mode.problem), "")


def channel_quality(weight: Tensor, *, transposed: bool = False, parity: bool = False) -> ChannelQuality:
    """Return the channel quality of one kernel.

    Args:
        weight: shape (out, in / groups, *kernel) with any number of kernel axes (none for a linear layer), any
            floating type, on any device.
        transposed: it is that of a transposed convolution, shape (in, out / groups, *kernel).
        parity: reproduce the published code instead of correcting it.

    Returns:
        The quality; NaN, infinite or all-zero weights give zeros, and ``problem`` says so.

    Raises:
        ValueError: the weight has less than two axes, or no entries.

    Examples:
        >>> import convwright as cw
        >>> conv = cw.zoo.create("resnet20").layer1[0].conv1
        >>> cw.channel_quality(conv.weight).output.qc  # before any training
        0.0
    """
    return channel_qualities({"weight": weight}, transposed=["weight"] if transposed else (), parity=parity)["weight"]


def channel_qualities(
    weights: Mapping[str, Tensor], *, transposed: Collection[str] = (), parity: bool = False
) -> dict[str, ChannelQuality]:
    """Return the channel quality of many kernels, equal shapes at once; see ``channel_quality``.

    Args:
        weights: layer -> its kernel.
        transposed: the layers that are transposed convolutions.
        parity: reproduce the published code instead of correcting it.

    Raises:
        ValueError: a weight has less than two axes, or no entries.
    """
    for name, weight in weights.items():
        if weight.ndim < 2 or not weight.numel():
            raise ValueError(f"{name}: a kernel has two axes or more and entries, not shape {tuple(weight.shape)}.")
    # A transposed depthwise kernel has its channels along the first axis, as any other depthwise one has.
    turned = {name: w.transpose(0, 1) if name in transposed and w.shape[1] > 1 else w for name, w in weights.items()}
    return _published(turned) if parity else _corrected(turned)


def kernels(model: nn.Module) -> dict[str, Tensor]:
    """Return the kernels of a network's convolutions, by module name, as ``channel_qualities`` takes them.

    Those of transposed convolutions are turned to (out / groups, in, *kernel), so ``transposed`` is not needed.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, _TRANSPOSED) and module.weight.shape[1] > 1:
            found[name] = module.weight.detach().transpose(0, 1)
        elif isinstance(module, (*_STRAIGHT, *_TRANSPOSED)):
            found[name] = module.weight.detach()
    return found


def of_metric(
    found: Mapping[str, ChannelQuality], metric: Metric = "qc"
) -> dict[str, tuple[float | None, float | None]]:
    """Return layer -> (input, output) of one metric, as ``group_qualities`` takes them."""

    def of(mode: Mode | None) -> float | None:
        return None if mode is None else float(getattr(mode, metric))

    return {name: (of(quality.input), of(quality.output)) for name, quality in found.items()}


_STRAIGHT = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


# ------------------------------------------------------------------ layers


def _corrected(weights: Mapping[str, Tensor]) -> dict[str, ChannelQuality]:
    out = {name: weight for name, weight in weights.items() if weight.shape[0] > 1}
    outward = dict(zip(out, spectra(list(out.values())), strict=True))
    into = {name: weight for name, weight in weights.items() if weight.shape[1] > 1}
    # With one tap the two unfoldings are each other's transpose.
    alike = {name for name in into if name in out and math.prod(into[name].shape[2:]) == 1}
    rest = {name: weight for name, weight in into.items() if name not in alike}
    inward = dict(zip(rest, spectra([weight.transpose(0, 1) for weight in rest.values()]), strict=True))
    inward |= {name: outward[name].turned for name in alike}
    solved = (zip(found, map(_mode, solve(list(found.values()))), strict=True) for found in (outward, inward))
    outputs, inputs = map(dict, solved)
    return {name: ChannelQuality(inputs.get(name), outputs.get(name)) for name in weights}


def _published(weights: Mapping[str, Tensor]) -> dict[str, ChannelQuality]:
    """As in the code: all modes of all kernels, with one row or not; mode 12 from the Gram matrix."""
    listed = list(weights.values())
    into = spectra([weight.transpose(0, 1) for weight in listed])
    taps = spectra([weight.reshape(math.prod(weight.shape[:2]), -1).T for weight in listed])  # (taps, in * out)
    unfoldings = zip(into, spectra(listed), [spectrum.squared for spectrum in taps], strict=True)
    found = {}
    for name, spectra_of_one in zip(weights, unfoldings, strict=True):
        one, two, three = map(solve_published, spectra_of_one)
        roots = Evbmf(three.rank, tuple(math.sqrt(v) for v in three.values), three.variance, three.shape, three.problem)
        found[name] = ChannelQuality(*(_mode(answer, parity=True) for answer in (one, two, roots)))
    return found


def _mode(found: Evbmf, parity: bool = False) -> Mode:
    size, kept = found.shape[0], found.values
    if not kept:
        return Mode(0.0, 0, size, 0.0, 0.0, 0.0, 0.0, found.variance, found.problem)
    rank, gain, condition = len(kept) / size, sum(value / kept[0] for value in kept) / size, kept[0] / kept[-1]
    below = _denominator(condition, len(kept), parity)
    qc, new_qc = math.atan2(rank, below), math.atan2(gain, below)
    return Mode(rank, len(kept), size, gain, condition, qc, new_qc, found.variance)


def _denominator(condition: float, kept: int, parity: bool) -> float:
    """Return what the rank is divided by: 1 - 1/condition, within limits."""
    if parity:
        return 1 - 1 / condition or _PUBLISHED_LEAST
    return max(1 - 1 / condition, _LEAST) if kept > 1 else 1.0


Side = Literal["in", "out"]
PerLayer = Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Member:
    """One side of a layer whose channels belong to a group.

    Attributes:
        layer: its name.
        mode: ``"out"`` if it writes the group, ``"in"`` if it reads it. A depthwise layer, which does both at once,
            is there with ``"out"``.
        weight: share of the rows of that side that belong to the group; below 1 behind a concatenation.
    """

    layer: str
    mode: Side
    weight: float = 1.0


def members(arch: Architecture) -> dict[str, tuple[Member, ...]]:
    """Return, for each free channel group, the convolutions that write it and read it.

    A convolution that reads a concatenation is a member of the group of each segment. A layer called several times
    counts once. Linear layers are no members, but where a group has no others: their ranks are not comparable.

    Args:
        arch: the network.

    Returns:
        Group name -> its members in execution order; empty where none could be found.

    Examples:
        >>> import convwright as cw
        >>> from convwright.metrics.quality.channel_quality import members
        >>> [(m.layer, m.mode) for m in members(cw.read("zoo:resnet20"))["layer1.0.conv1"]]
        [('layer1.0.conv1', 'out'), ('layer1.0.conv2', 'in')]
    """
    convs, linears = _members_of(arch, "conv"), _members_of(arch, "linear")
    return {group.name: tuple(convs.get(group.name) or linears.get(group.name) or ()) for group in arch.free_groups}


def group_qualities(
    members_of: Architecture | Mapping[str, Sequence[Member]], per_layer: PerLayer, *, weighted: bool = False
) -> dict[str, float]:
    """Return the mean value of each group's members.

    Args:
        members_of: the network, or what ``members`` found.
        per_layer: layer -> (its value as a reader, as a writer); None or left out where there is none.
        weighted: count each member by its share of the layer's rows, and not all alike as published.

    Returns:
        Group name -> mean; 0 where no member has a value.
    """
    known = members_of if isinstance(members_of, Mapping) else members(members_of)
    found = {}
    for group, listed in known.items():
        pairs = [
            (value, member.weight if weighted else 1.0)
            for member in listed
            if (value := per_layer.get(member.layer, (None, None))[member.mode == "out"]) is not None
        ]
        total = sum(weight for _, weight in pairs)
        found[group] = sum(value * weight for value, weight in pairs) / total if total else 0.0
    return found


def network_quality(groups: Mapping[str, float]) -> float:
    """Return the mean over groups; 0 where there are none."""
    return sum(groups.values()) / len(groups) if groups else 0.0


def _members_of(arch: Architecture, kind: str) -> dict[str, list[Member]]:
    nodes = {node.name: node for node in arch.capture.graph.nodes}
    found: dict[str, list[Member]] = {}
    seen = set()
    for layer in arch.layers:
        node = nodes[layer.node]
        weight = argument(node, "weight")
        if layer.kind != kind or not isinstance(weight, fx.Node) or weight.name in seen:
            continue
        seen.add(weight.name)
        for side, axis in _sides(layer, node, weight):
            for group, share in _shares(arch, weight, axis).items():
                found.setdefault(group, []).append(Member(layer.name, side, share))
    return found


def _sides(layer: Layer, node: fx.Node, weight: fx.Node) -> list[tuple[Side, int]]:
    """Return which axis of a weight holds rows of which side; those of one row are left out."""
    transposed = "transpose" in layer.operator or bool(argument(node, "transposed", False))
    shape = shape_of(weight)
    if shape[1] == 1:  # depthwise: one axis holds the channels that it reads and writes
        return [("out", 0)] if shape[0] > 1 else []
    writes, reads = (1, 0) if transposed else (0, 1)
    sides: list[tuple[Side, int]] = [("out", writes), ("in", reads)]
    return [(side, axis) for side, axis in sides if shape[axis] > 1]


def _shares(arch: Architecture, weight: fx.Node, axis: int) -> dict[str, float]:
    """Return the groups along one axis of a weight, and the share of its entries that each has."""
    value = arch.channels.follower.values[weight.name]
    plane = value.plane_at(axis) if isinstance(value, Value) else None
    if plane is None:
        return {}
    counts = arch.channels.count(plane.labels)[:-1]
    total = plane.labels.numel()
    return {arch.groups[i].name: float(counts[i]) / total for i in counts.nonzero()[0].tolist()}

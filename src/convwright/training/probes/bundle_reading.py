"""Conflicting bundles of many layers in one pass over some images.

Most layers of a network that learns keep all samples apart, and that shows in a few of their numbers: rows that differ
in a part differ. So a part of each row, at fixed places, is hashed first; only where two parts agree in the
first batch, or a number is not finite, whole rows are hashed. A layer whose parts agree only across batches is
hashed whole in a second pass. Either way the result is that of whole rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convwright.architecture import Architecture, Block
from convwright.architecture.blocks import branch_values, outermost
from convwright.architecture.capture.graph import operator_name
from convwright.architecture.layers import kind_of
from convwright.devices import device_of
from convwright.errors import DataError, ReadError
from convwright.metrics.bundles.counter import BundleCounter, Bundles
from convwright.metrics.bundles.weight_grid import weight_amplitude
from convwright.training.evaluate import eval_mode
from convwright.training.probes.taps import Tap, Tapped, find_tap
from convwright.training.settings import untouched_random

Role = Literal["branch", "output", "layer"]
_WEIGHTED = frozenset({"conv", "linear", "matmul"})
_BEHIND = frozenset({"norm", "activation"})
_ADDS = frozenset({"add", "__add__", "__iadd__"})


@dataclass(frozen=True)
class BundlePoint:
    """A value that bundles are counted of.

    Attributes:
        name: of the block or layer.
        role: ``branch`` is a residual block's branch before the addition, ``output`` what a block hands on, after the
            activation that follows; ``layer`` a single layer's output after norm and activation.
        tap: where it appears.
        norms: batch norms in the branch; the published code multiplies the branch by one over the spread of what
            enters each.
    """

    name: str
    role: Role
    tap: Tap
    norms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Points:
    """All points of a network, in the order of execution.

    Attributes:
        points: them.
        own: block or layer -> the number of the point that judges it: the branch of a residual block, else the output.
        skipped: what could not be looked at -> why.
    """

    points: tuple[BundlePoint, ...]
    own: Mapping[str, int]
    skipped: Mapping[str, str]


def find_points(arch: Architecture, layers: Sequence[str] | None = None) -> Points:
    """Find the points of a network.

    Args:
        arch: the network.
        layers: names of layers to look at; None: the blocks, or in a network without blocks each layer with
            weights except the last.

    Returns:
        The points; none where nothing has weights.

    Raises:
        ReadError: a layer that is named cannot be looked at.
        EditError: there is no layer of that name.
    """
    if layers is not None:
        return _points_of_layers(arch, layers, named=True)
    blocks = outermost(arch.flow, arch.blocks)
    if not blocks:
        weighted = [layer.name for layer in arch.layers if layer.kind in _WEIGHTED]
        return _points_of_layers(arch, weighted[:-1], named=False)
    points: list[BundlePoint] = []
    own: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for block in blocks:
        found, reason = _points_of_block(arch, block)
        if found:
            own[block.name] = len(points)
        if reason:
            skipped[block.name] = reason
        points += found
    return Points(tuple(points), own, skipped)


def branch_tap(arch: Architecture, block: Block) -> Tap | None:
    """Return where a residual block's branch ends, before the addition; None if it has several or is out of reach."""
    ends = branch_values(arch.flow, block)
    if len(ends) != 1:
        return None
    added = (user for user in ends[0].users if user in arch.flow.position and operator_name(user) in _ADDS)
    return find_tap(arch, ends[0], next(added, None))


def _points_of_block(arch: Architecture, block: Block) -> tuple[list[BundlePoint], str]:
    leaving = arch.flow.nodes[arch.flow.place[block.exit]]
    found, reason = [], ""
    if block.kind == "residual":
        tap = branch_tap(arch, block)
        if tap is not None:
            modules: Mapping[str, nn.Module] = dict(arch.model.named_modules())
            norms = tuple(name for name in block.branch if isinstance(modules.get(name), _BatchNorm))
            found.append(BundlePoint(block.name, "branch", tap, norms))
        else:
            reason = "several branches meet in its addition, so that none can be looked at alone: judged by its output"
    tap = find_tap(arch, _behind(arch, leaving, frozenset({"activation"})))
    if tap is not None:
        found.append(BundlePoint(block.name, "output", tap))
    return found, reason


def _behind(arch: Architecture, node: fx.Node, kinds: frozenset[str]) -> fx.Node:
    """Return the last of the norms and activations that alone take a value."""
    flow = arch.flow
    while node.name not in flow.returned:
        users = flow.users[flow.place[node.name]]
        following = flow.nodes[users[0]] if len(users) == 1 else None
        if following is None or kind_of(following) not in kinds or len(flow.feeds[users[0]]) != 1:
            break
        node = following
    return node


def _points_of_layers(arch: Architecture, names: Sequence[str], named: bool) -> Points:
    points: list[BundlePoint] = []
    for name in dict.fromkeys(names):
        layer = arch.layer(name)
        node = arch.flow.nodes[arch.flow.place[layer.node]]
        tap = find_tap(arch, node if named else _behind(arch, node, _BEHIND))
        if tap is None:
            raise ReadError(f"{arch.source}: the output of layer {name!r} is out of reach; name a module called once")
        points.append(BundlePoint(layer.name, "layer", tap))
    return Points(tuple(points), {point.name: number for number, point in enumerate(points)}, {})


Batch = tuple[Tensor, Tensor]
_PART = 256  # numbers of a row that are hashed first
_PIECE = 1 << 17  # numbers that fit into a processor's cache
_EPSILON = 1e-6  # of the published branch scale
_STEEP = 1e3  # squared mean over variance, above which the quick sums lose the variance


@dataclass(frozen=True)
class BundleReading:
    """What was measured at one moment.

    Attributes:
        points: bundles of each point, in the points' order.
        inputs: bundles of the images themselves, compared exactly: what no network could tell apart.
        amplitude: w*, of the weights at that moment.
        passes: forward passes over the sample.
    """

    points: tuple[Bundles, ...]
    inputs: Bundles
    amplitude: float
    passes: int = 1

    @property
    def excess(self) -> tuple[float, ...]:
        """Return per point the share of samples in conflict beyond the inputs' own; NaN where it diverged."""
        own = self.inputs.samples_in_conflict
        return tuple(
            math.nan if found.diverged else max(0, found.samples_in_conflict - own) / found.samples
            for found in self.points
        )


def read_bundles(
    model: nn.Module,
    points: Points | Sequence[BundlePoint],
    images: Tensor,
    labels: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    scaled: bool = True,
) -> BundleReading:
    """Count the bundles of all points of a network, which stays as it is: weights, buffers, modes, random states.

    Args:
        model: the network, as it was read.
        points: where to look.
        images: (n, c, h, w), of the training set, on the network's device; passed in batches of `batch_size`.
        labels: (n,), class indices.
        learning_rate: of training.
        batch_size: of training.
        scaled: whether branches are multiplied by one over the spread of what enters their batch norms, as published.

    Returns:
        The bundles; a branch's depend on `batch_size`, since the spread is that of a batch.

    Raises:
        DataError: there are no images.
        ReadError: the network computes otherwise than when it was read.
    """
    if not len(images):
        raise DataError("conflicting bundles need at least one image")
    chosen = points.points if isinstance(points, Points) else tuple(points)
    amplitude = weight_amplitude(model)
    make = partial(BundleCounter, learning_rate=learning_rate, batch_size=batch_size, amplitude=amplitude)
    batches = list(zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True))
    inputs = BundleCounter(mode="exact", name="input")
    inputs.add(images, labels)
    counts = [_Count(point, make) for point in chosen]
    _run(model, counts, batches, scaled)
    again = [count for count in counts if count.again]
    for count in again:
        count.whole_rows()
    if again:
        _run(model, again, batches, scaled)
    return BundleReading(tuple(count.result() for count in counts), inputs.result(), amplitude, 1 + bool(again))


class _Count:
    def __init__(self, point: BundlePoint, make: Any) -> None:
        self.point, self.make = point, partial(make, name=f"{point.name} ({point.role})")
        self.part: BundleCounter | None = self.make()
        self.whole: BundleCounter | None = None
        self.again = False

    def whole_rows(self) -> None:
        self.part, self.whole, self.again = None, self.make(), False

    def add(self, value: Tensor, scale: float | None, labels: Tensor, sound: bool = False) -> None:
        """Take in a batch; `sound` says that it holds no NaN."""
        if self.whole is not None:
            self.whole.add(_scaled(value, scale), labels)
            return
        assert self.part is not None
        first = not self.part.samples
        small = value[0].numel() <= _PART
        if not small:
            self.part.add(_scaled(_some(value), scale), labels)
            found = self.part.result()
            small = found.count < found.samples or found.diverged or not (sound or _finite(value))
        if small and first:
            self.whole_rows()
            self.add(value, scale, labels)
        elif small:
            self.again = True

    def result(self) -> Bundles:
        if self.whole is not None:
            return self.whole.result()
        assert self.part is not None
        return replace(self.part.result(), verified=True)  # all parts differ: no hash could make two rows one


def _scaled(value: Tensor, scale: float | None) -> Tensor:
    return value if scale is None else value.to(torch.float32) * scale


def _some(value: Tensor) -> Tensor:
    """Return some numbers of each row, at places that depend on its shape alone; (n, 256)."""
    shape = tuple(value.shape[1:])
    places = torch.unravel_index(_places(value[0].numel()).to(value.device), shape)
    index: tuple[slice | Tensor, ...] = (slice(None), *places)
    return value[index]


@lru_cache(maxsize=64)
def _places(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(count))[:_PART].sort().values


def _finite(value: Tensor) -> bool:
    """Whether no number is NaN or infinite, and few are so large that their sum is."""
    if not value.is_floating_point():
        return True
    return bool(value.sum(dtype=torch.float32 if value.element_size() < 4 else None).isfinite())


def _run(model: nn.Module, counts: Sequence[_Count], batches: Sequence[Batch], scaled: bool) -> None:
    now: dict[str, Tensor] = {}
    spreads: dict[str, float] = {}

    def see(number: int, value: Tensor) -> None:
        count = counts[number]
        entering = [spreads[name] for name in count.point.norms if name in spreads]
        scale = math.prod(1 / math.sqrt(each + _EPSILON) for each in entering) if entering else None
        count.add(value.detach(), scale, now["labels"], count.point.tap.module in sound and _known(count, spreads))

    norms = {name for count in counts for name in count.point.norms} if scaled else set()
    numbers = {name: (*(norm := model.get_submodule(name)).parameters(), *norm.buffers()) for name in norms}
    sound = {name for name in norms if all(bool(n.isfinite().all()) for n in numbers[name] if n.is_floating_point())}
    with _measuring(model), _spreads(model, norms, spreads), Tapped(model, [c.point.tap for c in counts], see) as run:
        for images, labels in batches:
            spreads.clear()
            now["labels"] = labels
            run(images)


def _known(count: _Count, spreads: dict[str, float]) -> bool:
    """Whether a norm with finite numbers took in finite numbers: then it gives no NaN."""
    tap = count.point.tap
    return not tap.operator and math.isfinite(spreads.get(tap.module, math.nan))


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    device = device_of(model)
    exact: AbstractContextManager[object] = nullcontext()
    if device.type == "cuda":
        exact = torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False)
    with eval_mode(model), untouched_random(device), torch.no_grad(), torch.autocast(device.type, enabled=False), exact:
        yield


@contextmanager
def _spreads(model: nn.Module, norms: set[str], found: dict[str, float]) -> Iterator[None]:
    """Note the variance of what enters each norm, over batch, space and channels."""

    def note(name: str, module: nn.Module, inputs: Any) -> None:
        found[name] = variance(inputs[0])

    with ExitStack() as hooks:
        for name in sorted(norms):
            hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(partial(note, name)))
        yield


def variance(values: Tensor) -> float:
    """Return the population variance of all numbers of a tensor, by two quick sums where they keep it."""
    dims = tuple(range(1, values.ndim))
    total = torch.zeros(2, dtype=torch.float64, device=values.device)
    for part in torch.split(values, max(1, _PIECE // values[0].numel())):  # small enough to be read once
        total[0] += part.sum(dims, dtype=torch.float32).double().sum()
        total[1] += torch.linalg.vector_norm(part, dim=dims, dtype=torch.float32).double().square().sum()
    mean, square = (total / values.numel()).tolist()
    found = float(square - mean * mean)
    if not mean * mean <= _STEEP * found:  # NaN, too
        return float(values.double().var(correction=0))
    return found

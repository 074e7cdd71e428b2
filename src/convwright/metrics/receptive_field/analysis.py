"""The 3D receptive field (3DRF) of every layer and stage of a network.

**Reconstructed.** Wang, Feng, Peng and Ding, "An Efficient Quantitative Approach for Optimizing Convolutional Neural
Networks" (CIKM 2021, arXiv 2009.05236; also called Information Field) name a 3DRF and a 3DRF gain that judge a
network without training. Their formulas could not be obtained. What is computed here is built from the name and the
published abstract: the number of elements of a scope, rows times columns times channels, that a unit depends on.
The tests check it against exact dependencies.

Two scopes are used. On the *network* scope fields are measured on the network's input: a layer whose input already
sees all rows and columns adds nothing new there. On the *stage* scope they are measured on the stage's own input,
all of its channels included: this is what the organizer compares between stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from convwright.architecture import Architecture, Layer, Stage
from convwright.errors import EditError, did_you_mean
from convwright.metrics.receptive_field import rules as field_rules  # noqa: F401  (registers the rules)
from convwright.metrics.receptive_field.field import Extent, FieldValue, Position
from convwright.metrics.receptive_field.interpreter import FieldWalk

Score = Literal["sum", "mean", "log", "positions"]
_KINDS = frozenset({"conv", "linear", "matmul", "attention", "pool"})


@dataclass(frozen=True)
class LayerField:
    """What one layer's units see of a scope.

    Attributes:
        name: of the layer.
        kind: conv, linear, matmul, attention or pool.
        stage: name of its stage; empty for the head.
        size: rows and columns from the first to the last that an interior unit sees, over the widest branches and
            whatever the scope's size: the usual receptive field.
        least: the same over the narrowest branches.
        seen: rows and columns that it sees, holes left out and never more than the scope has.
        channels: scope channels that reach one of its output channels, on average.
        value: 3DRF, the scope elements that an output sees, on average over output channels.
        smallest: the same of the output channel that sees least.
        largest: the same of the one that sees most.
        share: ``value`` over all elements of the scope (rho).
        gain: ``value`` minus that of what the layer reads (G).
        share_gain: ``gain`` over all elements of the scope (gamma).
        macs: its multiply-accumulates for one sample.
        params: its parameters.
        stride: effective stride along rows and columns.
        padding: effective padding along rows and columns.
        aligned: whether the fields of all branches lie around one centre.
        exact: whether ``value`` is exact for an interior unit; an upper bound after resampling, and where branches
            with different fields join to no box.
        kernel: whether it has a kernel that could see more (larger than 1x1).
        overall: how it sees everything (global pooling, attention), or came after that; empty for a local layer.
        saturation: ``"all"`` if all branches into it see every row and column of the scope already, ``"some"`` if
            the widest do, else empty. Where ``kernel`` is true, such a layer sees nothing new.
        entered: rows and columns that the widest branch into it sees, whatever the scope's size.
    """

    name: str
    kind: str
    stage: str
    size: tuple[int, ...]
    least: tuple[int, ...]
    seen: tuple[int, ...]
    channels: float
    value: float
    smallest: int
    largest: int
    share: float
    gain: float
    share_gain: float
    macs: int
    params: int
    stride: tuple[Position, ...]
    padding: tuple[Position, ...]
    aligned: bool
    exact: bool
    kernel: bool
    overall: str
    saturation: Literal["", "some", "all"]
    entered: tuple[int, ...] = ()

    @property
    def wasted(self) -> bool:
        """Whether its kernel sees nothing new: what it reads covers the scope already."""
        return self.kernel and bool(self.saturation) and not self.overall

    @property
    def useful_from(self) -> tuple[int, ...]:
        """Rows and columns from which on the layer's kernel sees something new."""
        return tuple(before + 1 for before in self.entered)


@dataclass(frozen=True)
class StageField:
    """What a stage's output sees of the stage's input.

    Attributes:
        name: of the stage.
        shape: of the scope, (channels, rows, columns): the stage's input.
        size: rows and columns that an interior unit of the output spans, whatever the scope's size.
        seen: rows and columns that it sees of the scope.
        channels: scope channels that reach an output channel, on average.
        value: 3DRF on the stage's input.
        share: ``value`` over all elements of the scope (rho).
        layers: the stage's layers, measured on the same scope.
        positions: rows times columns of its output map; 1 where no convolution makes one.
        exact: whether ``value`` is exact for an interior unit; else it is an upper bound.
    """

    name: str
    shape: tuple[int, ...]
    size: tuple[int, ...]
    seen: tuple[int, ...]
    channels: float
    value: float
    share: float
    layers: tuple[LayerField, ...] = field(repr=False)
    positions: int = 1
    exact: bool = True


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive fields of a network.

    Attributes:
        source: name of the network.
        input_shape: (channels, rows, columns) of the image.
        clip: whether fields are cut at the scope's borders.
        layers: each layer with a kernel or weights, on the network scope, in execution order.
        stages: each stage that has weights, on its own scope.
        overall: layers that see everything -> how (global pooling, attention).
        returning: where what they saw is led back to local values (squeeze-and-excitation); it is left out there.
        statistics: norms whose statistic runs over positions; their fields are not counted.
        skipped: operators that could not be followed -> why; after them everything counts as seen.
    """

    source: str
    input_shape: tuple[int, ...]
    clip: bool
    layers: tuple[LayerField, ...] = field(repr=False)
    stages: tuple[StageField, ...]
    overall: Mapping[str, str] = field(default_factory=dict)
    returning: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    def layer(self, name: str) -> LayerField:
        """Return one layer's field on the network scope.

        Raises:
            EditError: there is none of that name; the nearest ones are listed.
        """
        found = next((each for each in self.layers if each.name == name), None)
        if found is None:
            known = [each.name for each in self.layers]
            raise EditError(f"{self.source} has no layer {name!r} with a receptive field.{did_you_mean(name, known)}")
        return found

    @property
    def wasted(self) -> tuple[LayerField, ...]:
        """The layers whose kernels see nothing new at this resolution."""
        return tuple(each for each in self.layers if each.wasted)

    def score(self, how: Score = "sum") -> float:
        """Return Q, the network's score from the shares of its stages (reconstructed).

        Args:
            how: ``sum`` or ``mean`` of the shares, or the sum of their ``log``.
        """
        return score([stage.share for stage in self.stages], how, [stage.positions for stage in self.stages])


def score(shares: Iterable[float], how: Score = "sum", positions: Sequence[int] = ()) -> float:
    """Return Q from the shares of the stages.

    Args:
        shares: of each stage.
        how: ``sum`` (reconstructed), ``mean``, the sum of logarithms (``log``), or the mean logarithm over all
            ``positions`` instead of over stages, in which a stage counts by the size of its map.
        positions: of each stage's output map; for the score of that name.

    Raises:
        ValueError: there is no such score, or no number of positions for each share.
    """
    listed = list(shares)
    if how == "sum":
        return math.fsum(listed)
    if how == "mean":
        return math.fsum(listed) / max(len(listed), 1)
    if how == "log":
        return math.fsum(math.log(share) for share in listed)
    if how == "positions":
        weighted = math.fsum(n * math.log(share) for n, share in zip(positions, listed, strict=True))
        return weighted / max(sum(positions), 1)
    raise ValueError(f"a score is 'sum', 'mean', 'log' or 'positions', not {how!r}")


def receptive_field(arch: Architecture, clip: bool = True) -> ReceptiveField:
    """Return the spatial and channel fields, 3DRF values and gains of a network's layers and stages.

    Nothing is trained or executed: fields follow from the network's graph. Global operators (global pooling,
    squeeze-and-excitation, attention) see everything; they are listed apart, and the local values that they meet
    keep their local fields.

    Args:
        arch: the network.
        clip: cut fields at the borders of the scope. Without it values keep growing after everything is seen,
            and shares exceed 1.

    Returns:
        The fields; values are reconstructed, see the module.

    Examples:
        >>> import convwright as cw
        >>> field = cw.receptive_field(cw.read("zoo:mobilenet-v1"))
        >>> field.stages[2].seen
        (7, 7)
    """
    judge = _Judge(arch, clip)
    scope = arch.capture.inputs[0]
    whole = FieldWalk(arch, scope).run(range(arch.flow.place[scope] + 1, len(arch.flow.nodes)))
    judge.skipped.update(whole.skipped)
    layers = {layer.node: layer.name for layer in arch.layers}

    def named(node: str) -> str:
        return layers.get(node) or whole.path(node)

    # A stage that is a pool alone (before the classifier) has no weights and is not judged.
    weighted = {layer.name for layer in arch.layers if layer.kind in ("conv", "linear", "matmul")}
    judged = (judge.stage(stage) for stage in arch.stages if weighted & set(stage.layers))
    stages = tuple(stage for stage in judged if stage is not None)
    return ReceptiveField(
        source=arch.source,
        input_shape=tuple(arch.example_input.shape[1:]),
        clip=clip,
        layers=tuple(judge.layers(whole, arch.layers)),
        stages=stages,
        overall={named(node): how for node, how in whole.overall.items()},
        returning=tuple(dict.fromkeys(map(named, whole.returning))),
        statistics=tuple(dict.fromkeys(map(named, whole.statistics))),
        skipped={named(node): reason for node, reason in judge.skipped.items()},
    )


class _Judge:
    """Makes the records of one network from walks over it."""

    def __init__(self, arch: Architecture, clip: bool) -> None:
        self.arch = arch
        self.sight = FieldMeasure(clip)
        self.skipped: dict[str, str] = {}
        self.costs = {cost.name: cost for cost in arch.profile().layers}
        self.stage_of = {name: stage.name for stage in arch.stages for name in stage.layers}

    def stage(self, stage: Stage) -> StageField | None:
        part = StagePart.of(self.arch, stage)
        walk = part.walk()
        if not part.reached(walk):
            return None
        self.skipped.update(walk.skipped)
        output = part.output(walk)
        measured = self.sight.measure(walk, output)
        widest = _widest(output)
        inside = set(stage.layers)
        return StageField(
            name=stage.name,
            shape=(walk.channels, *walk.lengths),
            size=tuple(e.size for e in widest),
            seen=self.seen(walk, widest),
            channels=measured.channels,
            value=measured.mean,
            share=measured.mean / scope_size(walk),
            layers=tuple(self.layers(walk, [layer for layer in self.arch.layers if layer.name in inside])),
            positions=part.map_size,
            exact=all(f.exact for f in output.fields),
        )

    def seen(self, walk: FieldWalk, extents: tuple[Extent, ...]) -> tuple[int, ...]:
        return tuple(int(self.sight.positions(e, n)) for e, n in zip(extents, walk.lengths, strict=True))

    def layers(self, walk: FieldWalk, layers: Iterable[Layer]) -> Iterable[LayerField]:
        for layer in layers:
            value = walk.value_at(layer.node)
            if layer.kind in _KINDS and value is not None and layer.node != walk.scope:
                yield self.layer(walk, layer, value)

    def layer(self, walk: FieldWalk, layer: Layer, value: FieldValue) -> LayerField:
        node = self.arch.flow.nodes[self.arch.flow.place[layer.node]]
        entered = walk.entered.get(layer.node) or walk.input(node)
        measured = self.sight.measure(walk, value)
        gain = measured.mean - self.sight.measure(walk, entered).mean
        widest, reads = _widest(value), _widest(entered)
        whole = scope_size(walk)
        cost = self.costs.get(layer.name)
        overall = walk.overall.get(layer.node, "") or ("after a global operator" if value.whole else "")
        covered = all(e.inside(length) >= length for e, length in zip(reads, walk.lengths, strict=True))
        by_all = all(e >= length for e, length in zip(_narrowest(entered), walk.lengths, strict=True))
        return LayerField(
            name=layer.name,
            kind=layer.kind,
            stage=self.stage_of.get(layer.name, ""),
            size=tuple(e.size for e in widest),
            least=_narrowest(value),
            seen=self.seen(walk, widest),
            channels=measured.channels,
            value=measured.mean,
            smallest=int(measured.smallest),
            largest=int(measured.largest),
            share=measured.mean / whole,
            gain=gain,
            share_gain=gain / whole,
            macs=cost.macs if cost is not None else 0,
            params=cost.params if cost is not None else 0,
            stride=tuple(e.step for e in widest),
            padding=tuple(e.padding for e in widest),
            aligned=all(e.aligned for e in widest),
            exact=all(f.exact for f in value.fields),
            kernel=any(e.size > r.size for e, r in zip(widest, reads, strict=True)) and not value.whole,
            overall=overall,
            saturation="" if not covered else "all" if by_all else "some",
            entered=tuple(r.count for r in reads),
        )


def _narrowest(value: FieldValue) -> tuple[int, ...]:
    """Return, per axis, what the narrowest branch into any of a value's elements spans."""
    seeing = [f for f in value.fields if f.channels] or value.fields
    extents = zip(*{id(f.extents): f.extents for f in seeing}.values(), strict=True)
    return tuple(min(e.least for e in row) for row in extents)


def _widest(value: FieldValue) -> tuple[Extent, ...]:
    """Return, per axis, the extent that sees most among a value's fields."""
    extents = zip(*{id(f.extents): f.extents for f in value.fields}.values(), strict=True)
    return tuple(max(row, key=lambda e: e.count) for row in extents)


# ------------------------------------------------------------------ how a field becomes a number


@dataclass(frozen=True)
class Measured:
    """The 3DRF of a tensor's elements.

    Attributes:
        mean: over the elements.
        smallest: of the element that sees least.
        largest: of the one that sees most.
        channels: scope channels that reach an element, on average.
    """

    mean: float
    smallest: float
    largest: float
    channels: float


@dataclass(frozen=True)
class FieldMeasure:
    """A way to count what a unit sees.

    Attributes:
        clip: cut fields at the borders of the scope.
        effective: count positions by the width over which weights really lie, ``Extent.effective``. It grows with
            the square root of the depth, so a stage is saturated later than by its theoretical field. Not part of
            the published method.
    """

    clip: bool = True
    effective: bool = False

    def positions(self, extent: Extent, length: int) -> float:
        """Return how many of ``length`` positions of the scope are seen."""
        if self.effective:
            return min(extent.effective, length) if self.clip else extent.effective
        return extent.inside(length) if self.clip else extent.count

    def measure(self, walk: FieldWalk, value: FieldValue) -> Measured:
        """Return the 3DRF of a value's elements on the walk's scope."""
        spatial = {id(f.extents): f.extents for f in value.fields}  # fields share them: count each once
        counts = {
            key: math.prod(self.positions(e, n) for e, n in zip(extents, walk.lengths, strict=True))
            for key, extents in spatial.items()
        }
        values = [counts[id(f.extents)] * f.channels.bit_count() for f in value.fields]
        often = amounts(value)
        total = sum(often)
        mean = sum(v * n for v, n in zip(values, often, strict=True)) / total
        channels = sum(f.channels.bit_count() * n for f, n in zip(value.fields, often, strict=True)) / total
        return Measured(mean, min(values), max(values), channels)

    def share(self, part: StagePart, walk: FieldWalk) -> float:
        """Return rho of a stage from a walk over it: the share of its scope that its output sees."""
        return self.measure(walk, part.output(walk)).mean / scope_size(walk)


@dataclass(frozen=True, eq=False)
class StagePart:
    """A stage as a part of the flow.

    Attributes:
        arch: the network.
        scope: name of the node whose value is the stage's input.
        positions: of the flow, from behind the scope to the end of the stage.
        ends: names of the nodes that may be its output, the last one first.
        map_size: rows times columns of the last convolution's output; 1 where there is none.
    """

    arch: Architecture
    scope: str
    positions: range
    ends: tuple[str, ...]
    map_size: int = 1

    @classmethod
    def of(cls, arch: Architecture, stage: Stage) -> StagePart:
        """Find a stage in the flow.

        It ends with what its last layer's value is put together to: a concatenation or a channel shuffle is no layer.
        """
        flow = arch.flow
        inside = {flow.place[arch.layer(name).node] for name in stage.layers}
        outside = {source for n in inside for source in flow.feeds[n] if source not in inside}
        layers = {flow.place.get(layer.node) for layer in arch.layers}  # None: computed from weights alone
        last = max(inside)
        while len(flow.users[last]) == 1 and flow.users[last][0] not in layers:
            last = flow.users[last][0]
        entry = flow.meet(outside)
        entry = min(outside) if entry < 0 else entry  # of two inputs, the first one's way
        ends = dict.fromkeys([last, *sorted(inside, reverse=True)])
        names = tuple(flow.nodes[n].name for n in ends)
        shapes = [arch.layer(name).output_shape for name in stage.layers if arch.layer(name).kind == "conv"]
        size = math.prod(shapes[-1][2:]) if shapes else 1
        return cls(arch, flow.nodes[entry].name, range(entry + 1, last + 1), names, size)

    def begin(self) -> FieldWalk:
        """Return a walk on the stage's own scope that has not begun."""
        return FieldWalk(self.arch, self.scope)

    def walk(self) -> FieldWalk:
        """Return a walk over the whole stage."""
        return self.begin().run(self.positions)

    def reached(self, walk: FieldWalk) -> bool:
        """Return whether what the stage hands on sees what it begins with, not another input of the network."""
        return any(walk.value_at(end) is not None for end in self.ends)

    def output(self, walk: FieldWalk) -> FieldValue:
        """Return the value that the stage hands on: its last one that is not a global operator's."""
        known = [v for v in map(walk.value_at, self.ends) if v is not None]
        return next((v for v in known if not v.whole), known[0])


def amounts(value: FieldValue) -> list[int]:
    """Return how often each of a tensor's fields occurs, as whole numbers: a share of 1 must come out as 1."""
    if value.which is None:
        return [1]
    return torch.bincount(value.which.line(), minlength=len(value.fields)).tolist()


def scope_size(walk: FieldWalk) -> int:
    """Return the number of elements of a walk's scope, for one sample."""
    return walk.channels * math.prod(walk.lengths)

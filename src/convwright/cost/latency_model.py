"""Latency per layer, and as a function of the widths: sums of operators that were measured by themselves, or a surface.

A sum of operators is not the whole: calls cost time between operators, and what one operator leaves in the cache
the next one finds. So the ratio of sum and whole is measured and reported, and an estimate is scaled by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any

import numpy as np
from torch import fx

from convwright.architecture import Architecture
from convwright.architecture.channels import resize
from convwright.architecture.labels import ResizeError
from convwright.cost.cost_model import CostModel
from convwright.cost.latency import Latency, Spread, measure_latency
from convwright.cost.latency_designs import LayerWidths, surface_for
from convwright.cost.latency_operators import OperatorCall, call_of, is_free, is_operator, operator_calls, working
from convwright.cost.latency_surface import Ints, LatencySurface, Numbers
from convwright.cost.latency_table import LatencyTable
from convwright.errors import BudgetError, ConvwrightError, first_line

_FREE = Spread(0.0, 0.0, 0.0, 0)


@dataclass(frozen=True)
class LayerLatency:
    """How long one layer takes when its operator runs alone.

    Attributes:
        name: the layer's name.
        kind: the layer's kind (conv, linear, norm, ...).
        median: seconds.
        lower: lower end of the 95% interval of the median.
        upper: its upper end.
        repeats: number of samples; 0 for what does no work.
    """

    name: str
    kind: str
    median: float
    lower: float
    upper: float
    repeats: int


@dataclass(frozen=True)
class LayerLatencies:
    """Latency of a network and of its layers.

    Attributes:
        layers: per layer, in execution order.
        other: seconds of operators that are no layers: copies, joins, paddings of memory.
        sum: seconds of all operators.
        whole: the measured network.
        unmeasured: operators that cannot be run by themselves; nothing of theirs is in the sum.
    """

    layers: tuple[LayerLatency, ...]
    other: float
    sum: float
    whole: Latency
    unmeasured: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """The sum of the operators over the measured whole."""
        return self.sum / self.whole.median

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = asdict(self)
        unmeasured = list(values.pop("unmeasured"))
        return {**values, "layers": list(values["layers"]), "ratio": self.ratio, "unmeasured": unmeasured}


def layer_latencies(
    arch: Architecture, table: LatencyTable | None = None, whole: Latency | None = None
) -> LayerLatencies:
    """Measure a network and each of its operators; what the table knows is not measured again.

    Args:
        arch: the network; the example input's batch is what is timed.
        table: times of operators; the one of this machine when not given.
        whole: its latency, where it is known already.

    Raises:
        ConvwrightError: if the network does not run, or weights and input lie on different devices.
    """
    known = table if table is not None else LatencyTable(arch.example_input.device)
    measured = whole if whole is not None else measure_latency(arch.model, arch.inputs)
    calls = {node: call_of(node) for node in working(arch)}
    known.learn(calls.values())
    times = {node.name: _time(node, call, known) for node, call in calls.items()}
    known.save()
    layers = tuple(LayerLatency(la.name, la.kind, *astuple(times.get(la.node, _FREE))) for la in arch.layers)
    total = sum(t.median for t in times.values())
    other = total - sum(layer.median for layer in layers)
    unmeasured = dict.fromkeys(str(n.target) for n in arch.capture.graph.nodes if not is_free(n) and not is_operator(n))
    return LayerLatencies(layers, max(other, 0.0), total, measured, tuple(unmeasured))


def _time(node: fx.Node, call: OperatorCall, table: LatencyTable) -> Spread:
    try:
        return table.time(call)
    except RuntimeError as error:
        reason = first_line(error, "it fails")
        raise ConvwrightError(f"{call.target} at {node.name} cannot be run by itself: {reason}") from error


# ------------------------------------------------------------------ as a function of the widths


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Estimates the latency of one network for any widths of its free channel groups; builds no networks.

    On a runtime that tells the times of layers, a `LatencySurface` was fitted to measured networks. Else the shapes of
    all operators under new widths come from a second walk of the channel labels, and the times from a table that
    measures on demand in eager PyTorch. Estimate = fixed + calibration x sum, of operators or by the surface.

    Attributes:
        arch: the network.
        table: times of operators.
        whole: its measured latency.
        calibration: what the sum is multiplied by: measured whole over sum of the present network, until `calibrated`.
        fixed: seconds that no width changes, such as those that calls of operators take; 0 until `calibrated`.
        surface: of the network on a runtime; None: operators are summed.

    Examples:
        >>> import convwright as cw
        >>> from convwright.cost import LatencyModel
        >>> model = LatencyModel.of(cw.read("zoo:resnet20"))
        >>> 0 < model.seconds({"layer1.0.conv1": 8})
        True
    """

    arch: Architecture = field(repr=False)
    table: LatencyTable = field(repr=False)
    whole: Latency
    calibration: float
    _costs: CostModel = field(repr=False)
    _sums: dict[bytes, float] = field(repr=False, default_factory=dict)
    fixed: float = 0.0
    surface: LatencySurface | None = None
    _layers: LayerWidths | None = field(repr=False, default=None)

    @classmethod
    def of(
        cls,
        arch: Architecture,
        table: LatencyTable | None = None,
        whole: Latency | None = None,
        calibration: float | None = None,
        surface: LatencySurface | None = None,
    ) -> LatencyModel:
        """Measure a network as far as that is not given, and make its model.

        Args:
            arch: the network.
            table: times of operators; the one of this machine when not given.
            whole: its latency.
            calibration: instead of whole over sum.
            surface: of this network, where `whole` was measured on a runtime that has one.

        Raises:
            ConvwrightError: as `layer_latencies`.
        """
        known = table if table is not None else LatencyTable(arch.example_input.device)
        if surface is not None and whole is not None:
            factor = calibration if calibration is not None else 1.0
            return cls(arch, known, whole, factor, CostModel.of(arch), surface=surface, _layers=LayerWidths.of(arch))
        found = layer_latencies(arch, known, whole)
        if not found.sum > 0:
            raise ConvwrightError(f"{arch.source} has no operator whose time can be measured.")
        factor = calibration if calibration is not None else found.whole.median / found.sum
        return cls(arch, known, found.whole, factor, CostModel.of(arch))

    def seconds(self, widths: Mapping[str, int]) -> float:
        """Return the estimate for widths: group name -> size; groups left out keep theirs.

        Raises:
            BudgetError: if a name or a width is wrong, or the widths do not fit together.
        """
        return self.fixed + self.calibration * self.sum(widths)

    def nanoseconds(self, widths: Mapping[str, int]) -> int:
        """Return the estimate as budgets hold it; as `seconds`."""
        return max(1, round(1e9 * self.seconds(widths)))

    __call__ = nanoseconds  # an estimate as `Limits` takes it

    def many(self, table: Ints) -> Numbers | None:
        """Return the nanoseconds of many widths at once, where a surface tells them; else None.

        Args:
            table: widths of all free groups, in the cost model's order, shape (n, groups); not checked.
        """
        if self.surface is None or self._layers is None:
            return None
        ratios = self.surface.ratio(self._layers.lengths_of(table))
        return 1e9 * (self.fixed + self.calibration * self.whole.median * ratios)

    def least(self, widths: Mapping[str, int]) -> int:
        """Return the estimate of the smallest widths, or of such as kernels are faster with, if that is less.

        Args:
            widths: the smallest ones that are possible.
        """
        found = [self.nanoseconds(widths)]
        if self.surface is not None:
            groups = [self.arch.channels.group(name) for name in self._costs.groups]
            for multiple in {self.surface.step, self.surface.block, 16} - {1}:
                sizes = [min(g.size, -(-widths.get(g.name, g.size) // multiple) * multiple) for g in groups]
                many = self.many(np.array([sizes], dtype=np.int64))
                found += [] if many is None else [max(1, round(float(many[0])))]
        return min(found)

    def nanoseconds_of(self, network: Architecture) -> int:
        """Return the estimate of another network, such as one with fewer blocks; its new operators are measured.

        It is the measured latency times the ratio of the sums: a block that goes takes the time between its operators
        along, which narrower layers do not; so the calibration, which may be corrected for these, is not asked.

        Raises:
            ConvwrightError: as `layer_latencies`.
        """
        return max(1, round(1e9 * self.whole.median * self._sum_of(network) / self.sum({})))

    def of_network(self, network: Architecture) -> LatencyModel:
        """Return the model of another network, such as one with fewer blocks, with this one's calibration.

        Raises:
            ConvwrightError: as `layer_latencies`.
        """
        share = len(operator_calls(network)) / len(operator_calls(self.arch))
        surface = None if self.surface is None else surface_for(self.surface, self.arch, network)
        own = LatencyModel.of(network, self.table, self.whole, self.calibration, surface)
        return own.calibrated(self.calibration, share * self.fixed)

    def calibrated(self, calibration: float, fixed: float = 0.0) -> LatencyModel:
        """Return the same model with another calibration, and seconds that no width changes."""
        return replace(self, calibration=calibration, fixed=fixed)

    def sum(self, widths: Mapping[str, int]) -> float:
        """Return the seconds of all operators, each run by itself, or of all by the surface; as `seconds`."""
        units = self._units(widths)
        key = units.tobytes()
        if key not in self._sums:
            self._sums[key] = self._by_surface(widths) if self.surface is not None else self._summed(units)
            self.table.save()
        return self._sums[key]

    def _by_surface(self, widths: Mapping[str, int]) -> float:
        assert self.surface is not None
        assert self._layers is not None
        return self.whole.median * float(self.surface.ratio(self._layers.lengths(widths)[None])[0])

    def _sum_of(self, network: Architecture) -> float:
        if self.surface is None:
            return layer_latencies(network, self.table, self.whole).sum
        own = surface_for(self.surface, self.arch, network)
        return self.whole.median * float(own.ratio(own.present[None])[0])

    def calls(self, widths: Mapping[str, int]) -> dict[str, OperatorCall]:
        """Return what is run under widths, by node; as `seconds`."""
        return self._calls(self._units(widths))

    # -------------------------------------------------------------- walking

    def _units(self, widths: Mapping[str, int]) -> Any:
        """Return the units of all groups, frozen ones included; the cost model checks the widths."""
        self._costs.macs(widths)
        units = self.arch.channels.units.copy()
        for name, size in widths.items():
            group = self.arch.channels.group(name)
            units[self.arch.channels.index[name]] = int(size) // group.step
        return units

    def _calls(self, units: Any) -> dict[str, OperatorCall]:
        nodes = working(self.arch)
        if (units == self.arch.channels.units).all():
            return {node.name: call_of(node) for node in nodes}
        try:
            walk = resize(self.arch.channels, units).follower
        except ResizeError as error:
            raise BudgetError(f"these widths do not fit together: {error}.") from error
        return {node.name: call_of(node, walk.values, walk.groups) for node in nodes}

    def _summed(self, units: Any) -> float:
        present, calls = {node.name: node for node in working(self.arch)}, self._calls(units)
        self.table.learn(calls.values())
        return sum(self._time(call, present[name]) for name, call in calls.items())

    def _time(self, call: OperatorCall, node: fx.Node) -> float:
        """Return an operator's time; where a size is written down in its constants, the present time in proportion."""
        try:
            return self.table.time(call).median
        except RuntimeError:
            now = call_of(node)
            return self.table.time(now).median * call.outputs / max(now.outputs, 1)

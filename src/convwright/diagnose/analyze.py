"""What a network is made of and costs, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from convwright.architecture import Architecture
from convwright.cost import LayerLatencies, count_by_torch, feasible_range, profile
from convwright.diagnose.advice import Advice, advise
from convwright.diagnose.resolution_sweep import AtResolution, sweep
from convwright.metrics import LayerField, ReceptiveField, receptive_field

_OF_STAGES = ("name", "shape", "size", "seen", "channels", "value", "share")
_OF_GROUPS = ("name", "size", "step", "frozen", "reason", "tied", "layers")


@dataclass(frozen=True)
class FieldReport:
    """What a network's layers see, and what follows from it.

    Attributes:
        field: Its receptive fields, reconstructed.
        advice: Edits for the layers that see nothing new.
        sweep: The same fields at other resolutions, if any were asked for.
    """

    field: ReceptiveField
    advice: tuple[Advice, ...]
    sweep: tuple[AtResolution, ...] = ()

    @classmethod
    def of(cls, arch: Architecture, sides: Sequence[int] = ()) -> FieldReport:
        """Examine a network at its own resolution and, without advice, at others."""
        field = receptive_field(arch)
        return cls(field, advise(arch, field), sweep(arch, sides))

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        field = self.field
        return {
            "reconstructed": True,
            "layers": [_layer(each) for each in field.layers],
            "stages": [{name: _plain(getattr(stage, name)) for name in _OF_STAGES} for stage in field.stages],
            "q": field.score(),
            "overall": dict(field.overall),
            "returning": list(field.returning),
            "statistics": list(field.statistics),
            "skipped": dict(field.skipped),
            "advice": [each.as_dict() for each in self.advice],
            "range": [_at(each) for each in self.sweep],
        }


def _layer(layer: LayerField) -> dict[str, Any]:
    values = {name: _plain(value) for name, value in asdict(layer).items()}
    return {**values, "wasted": layer.wasted, "useful_from": list(layer.useful_from)}


def _plain(value: object) -> object:
    """Return a value of a layer's field for JSON: a stride between two positions becomes a float."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return float(value) if isinstance(value, Fraction) else value


def _at(at: AtResolution) -> dict[str, Any]:
    return {
        "side": at.side,
        "macs": at.macs,
        "q": None if at.field is None else at.field.score(),
        "wasted": [each.name for each in at.wasted],
        "wasted_macs_share": at.wasted_share,
        "refused": at.refused,
    }


def as_dict(
    arch: Architecture, latencies: LayerLatencies | None = None, fields: FieldReport | None = None
) -> dict[str, Any]:
    """Return the whole analysis as JSON values.

    Args:
        arch: The network; its costs are per sample.
        latencies: What was measured of it, if anything; in seconds.
        fields: What its layers see; examined here if it is not given.
    """
    seconds = {} if latencies is None else {"latency": latencies.as_dict()}
    costs = profile(arch)
    layers = {layer.name: layer for layer in arch.layers}
    return {
        "model": arch.source,
        "input_shape": list(arch.example_input.shape[1:]),
        "macs": costs.macs,
        "macs_by_torch": count_by_torch(arch.model, arch.example_input),
        "params": costs.params,
        "activation_bytes": costs.activation_bytes,
        "eager_activation_bytes": costs.eager_activation_bytes,
        "weight_bytes": costs.weight_bytes,
        "complete": costs.complete,
        "uncounted": list(costs.uncounted),
        **seconds,
        "feasible": {metric: list(ends) for metric, ends in feasible_range(arch).items()},
        "by_kind": {kind: asdict(cost) for kind, cost in costs.by_kind.items()},
        "layers": [
            {**asdict(cost), "shape": list(layers[cost.name].output_shape), "groups": list(layers[cost.name].groups)}
            for cost in costs.layers
        ],
        "groups": [{name: _plain(getattr(group, name)) for name in _OF_GROUPS} for group in arch.groups],
        "stages": [asdict(stage) for stage in arch.stages],
        "receptive_field": (fields or FieldReport.of(arch)).as_dict(),
    }

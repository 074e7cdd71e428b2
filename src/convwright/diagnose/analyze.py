"""What a network is made of and costs, and what its layers see: as plain values and as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from rich.table import Table
from rich.text import Text

from convwright.architecture import Architecture
from convwright.cost import LayerLatencies, count_by_torch, feasible_range, profile
from convwright.diagnose.advice import Advice, advise
from convwright.edits.summary import shape_words
from convwright.metrics import LayerField, ReceptiveField, receptive_field
from convwright.tables import add_row, brief, folded, new_table

_OF_STAGES = ("name", "shape", "size", "seen", "channels", "value", "share")
_OF_GROUPS = ("name", "size", "step", "frozen", "reason", "tied", "layers")


@dataclass(frozen=True)
class FieldReport:
    """What a network's layers see, and what follows from it.

    Attributes:
        field: Its receptive fields, reconstructed.
        advice: Edits for the layers that see nothing new.
    """

    field: ReceptiveField
    advice: tuple[Advice, ...]

    @classmethod
    def of(cls, arch: Architecture) -> FieldReport:
        """Examine a network at the resolution that it was read at."""
        field = receptive_field(arch)
        return cls(field, advise(arch, field))

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
        }


def _layer(layer: LayerField) -> dict[str, Any]:
    values = {name: _plain(value) for name, value in asdict(layer).items()}
    return {**values, "wasted": layer.wasted, "useful_from": list(layer.useful_from)}


def _plain(value: object) -> object:
    """Return a value of a layer's field for JSON: a stride between two positions becomes a float."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return float(value) if isinstance(value, Fraction) else value


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
        "macs_by_torch": count_by_torch(arch.model, arch.inputs),
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


_LONG = 20  # rows from which a table is folded: fields all differ in size, so neighbours are joined more freely


def field_tables(arch: Architecture, report: FieldReport) -> Iterator[Table | Text]:
    """Yield the tables of the receptive fields, reconstructed; see ``receptive_field``."""
    yield _layer_table(report.field)
    yield _stage_table(report.field)
    yield Text(f"Q, the sum of rho (reconstructed): {report.field.score():.4f}")
    for what, names in _left_out(report.field):
        yield Text(f"{what}: {names}")
    if report.advice:
        yield _advice_table(arch, report.advice)


def _layer_table(field: ReceptiveField) -> Table:
    kernels = [each for each in field.layers if each.kernel and not each.overall]  # global pools see all by design
    rows = [each for each in field.layers if each in kernels or each.name in field.overall]
    title = (
        f"Receptive fields at {shape_words(field.input_shape)} "
        f"({len(field.wasted)} of {len(kernels)} kernels larger than 1x1 see nothing new)"
    )
    numbers = ("size", "of the image", "stride")
    table = new_table(title, "layer", "kind", *numbers, "new positions", "useful from", numbers=numbers)
    for alike in folded(rows, lambda each: (each.kind, each.stage, each.stride, _state(field, each)), _LONG):
        first, last = alike[0], alike[-1]
        add_row(
            table,
            _names([each.name for each in alike]),
            first.kind,
            _span(_size(first), _size(last)),
            _span(_seen(field, first), _seen(field, last)),
            "" if first.overall else shape_words(first.stride),
            _state(field, first),
            _span(_from(first), _from(last)),
        )
    return table


def _state(field: ReceptiveField, layer: LayerField) -> str:
    if layer.name in field.overall:
        return field.overall[layer.name]
    if not layer.wasted:
        return "new"
    return "nothing new" if layer.saturation == "all" else "nothing new by its widest branch"


def _size(layer: LayerField) -> str:
    return "all" if layer.overall else shape_words(layer.size)


def _seen(field: ReceptiveField, layer: LayerField) -> str:
    lengths = field.input_shape[1:]
    return " x ".join(f"{seen / length:.0%}" for seen, length in zip(layer.seen, lengths, strict=False))


def _from(layer: LayerField) -> str:
    """Return the resolution from which on a kernel sees something new: along one axis is enough."""
    if layer.overall:
        return ""
    sizes = sorted(set(layer.useful_from))
    return str(sizes[0]) if len(sizes) == 1 else f"one of {shape_words(layer.useful_from)}"


def _stage_table(field: ReceptiveField) -> Table:
    numbers = ("size", "sees", "channels", "3DRF", "rho")
    table = new_table("3DRF of stages on their own inputs (reconstructed)", "stage", "input", *numbers, numbers=numbers)
    for stage in field.stages:
        shares = (f"{stage.channels:g}", f"{stage.value:,.0f}", f"{stage.share:.4f}")
        add_row(table, stage.name, shape_words(stage.shape), shape_words(stage.size), shape_words(stage.seen), *shares)
    return table


def _left_out(field: ReceptiveField) -> Iterator[tuple[str, str]]:
    """Yield, where there is any, what sees everything or was not followed, in one line each."""
    if field.overall:
        yield "Global operators", _reasons(field.overall)
    if field.returning:
        yield "Of them, gates that are led back to local values and are left out there", brief(field.returning)
    if field.statistics:
        yield "Statistics over positions, not counted", brief(field.statistics)
    if field.skipped:
        yield "Not followed, counted as seeing everything from there on", _reasons(field.skipped)


def _reasons(reasons: Mapping[str, str]) -> str:
    return brief([f"{name} ({reason})" for name, reason in reasons.items()])


def _advice_table(arch: Architecture, advice: Sequence[Advice]) -> Table:
    costs = arch.profile()
    numbers = ("MACs saved", "params saved")
    title = "Kernels that see no new positions at this resolution, and the edit that takes them out"
    table = new_table(title, "edit, in Python and in a plan", *numbers, "note", numbers=numbers)
    table.columns[0].no_wrap = True
    for alike in folded(
        advice, lambda each: (type(each.edit), each.macs, each.params, each.reason, len(each.layers)), _LONG
    ):
        first, last = alike[0], alike[-1]
        if first.edit is None:
            add_row(table, _names([name for each in alike for name in each.layers]), "", "", f"none: {first.reason}")
            continue
        several = f"... {last.python} ({len(alike)} alike, each)"
        edit = f"{first.python}\n{first.plan if len(alike) == 1 else several}"
        notes = dict.fromkeys(note for each in alike for note in each.notes)
        add_row(table, edit, f"{first.macs:,}", f"{first.params:,}", "; ".join(notes) if len(alike) == 1 else "")
    macs, params = sum(each.macs for each in advice), sum(each.params for each in advice)
    shares = f"{macs / max(costs.macs, 1):.0%} of the MACs, {params / max(costs.params, 1):.0%} of the parameters"
    count = sum(each.edit is not None for each in advice)
    add_row(table, f"all edits together: {count}", f"{macs:,}", f"{params:,}", shares)
    return table


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} ... {names[-1]} ({len(names)})"


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"

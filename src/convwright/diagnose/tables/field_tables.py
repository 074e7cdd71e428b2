"""What `analyze` prints of receptive fields: layers, stages, what was left out, advice, other resolutions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from convwright.architecture import Architecture
from convwright.diagnose.advice import Advice
from convwright.diagnose.analyze import FieldReport
from convwright.diagnose.resolution_sweep import AtResolution
from convwright.edits.summary import shape_words
from convwright.metrics import LayerField, ReceptiveField
from convwright.tables import add_row, brief, folded, new_table

_LONG = 20  # rows from which a table is folded: fields all differ in size, so neighbours are joined more freely


def field_tables(arch: Architecture, report: FieldReport) -> Iterator[Table | Text]:
    """Yield the tables of the receptive fields, reconstructed; see ``receptive_field``."""
    yield _layers(report.field)
    yield _stages(report.field)
    yield Text(f"Q, the sum of rho (reconstructed): {report.field.score():.4f}")
    for what, names in _left_out(report.field):
        yield Text(f"{what}: {names}")
    if report.advice:
        yield _advice(arch, report.advice)
    if report.sweep:
        yield _resolutions(report.sweep)
        for at in report.sweep:
            if at.refused:
                yield Text(f"{at.side}x{at.side} is not taken: {at.refused}")
        yield _useful(report)


# ------------------------------------------------------------------ layers and stages


def _layers(field: ReceptiveField) -> Table:
    kernels = _kernels(field)
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


def _kernels(field: ReceptiveField) -> list[LayerField]:
    """Return the layers with a kernel larger than 1x1; global pools, which see all by design, left out."""
    return [each for each in field.layers if each.kernel and not each.overall]


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


def _stages(field: ReceptiveField) -> Table:
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


# ------------------------------------------------------------------ advice


def _advice(arch: Architecture, advice: Sequence[Advice]) -> Table:
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


# ------------------------------------------------------------------ other resolutions


def _resolutions(sweep: Sequence[AtResolution]) -> Table:
    numbers = ("kernels that see nothing new", "of", "their share of the MACs", "Q")
    table = new_table("At other resolutions", "resolution", *numbers, numbers=numbers)
    for at in sweep:
        if at.field is not None:
            counts = (str(len(at.wasted)), str(len(_kernels(at.field))))
            add_row(table, f"{at.side}x{at.side}", *counts, f"{at.wasted_share:.1%}", f"{at.field.score():.4f}")
    return table


def _useful(report: FieldReport) -> Table:
    table = new_table("From which resolution kernels see something new", "layer", "useful from", "nothing new at")
    wasted = {at.side: {each.name for each in at.wasted} for at in report.sweep if at.field is not None}

    def idle(layer: LayerField) -> tuple[int, ...]:
        return tuple(side for side, names in wasted.items() if layer.name in names)

    for alike in folded(_kernels(report.field), lambda each: (each.stage, idle(each)), _LONG):
        first, last = alike[0], alike[-1]
        sides = ", ".join(map(str, idle(first))) or "none of these"
        add_row(table, _names([each.name for each in alike]), _span(_from(first), _from(last)), sides)
    return table


# ------------------------------------------------------------------ rows and words


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} ... {names[-1]} ({len(names)})"


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"

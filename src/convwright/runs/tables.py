"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from convwright.cost import count_by_torch, feasible_range, human, profile
from convwright.runs.result import rows

if TYPE_CHECKING:
    from convwright.architecture import Architecture, ChannelGroup
    from convwright.cost import LayerCost, LayerLatencies

_WEIGHTED = ("conv", "linear", "matmul", "attention")
_LONG = 60  # rows from which a table of layers is folded


def _table(title: str, *columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    """Add a row whose cells are plain text: brackets in names are no markup."""
    table.add_row(*[Text(cell) for cell in cells])


# ------------------------------------------------------------------ analyze


def analysis(arch: Architecture, latencies: LayerLatencies | None = None) -> Iterator[Table]:
    """Yield the tables of `analyze`: layers, groups, stages, totals, and what was measured, if anything."""
    yield _layers(arch, latencies)
    yield _groups(arch)
    yield _stages(arch)
    yield _totals(arch)
    if latencies is not None:
        yield _latency(latencies)


def _layers(arch: Architecture, latencies: LayerLatencies | None) -> Table:
    costs = profile(arch)
    times = {} if latencies is None else {layer.name: layer.median for layer in latencies.layers}
    shapes = {layer.name: layer.output_shape for layer in arch.layers}
    lines = [c for c in costs.layers if c.kind in _WEIGHTED or c.macs or c.params]
    long = len(lines) > _LONG
    lines = [c for c in lines if c.kind in _WEIGHTED or c.macs] if long else lines
    title = f"Layers of {arch.source} ({len(costs.layers)} in all; those with weights or MACs are shown)"
    numbers = ("MACs", "share", "params", *(("latency", "of the sum") if times else ()))
    table = _table(title, "layer", "kind", "output", *numbers, numbers=numbers)
    for alike in _folded(lines, shapes, fold=long):
        first, last = alike[0], alike[-1]
        name = first.name if len(alike) == 1 else f"{first.name} ... {last.name} ({len(alike)} alike, each)"
        share = sum(c.macs for c in alike) / max(costs.macs, 1)
        cells = [name, first.kind, _shape(shapes[first.name]), f"{first.macs:,}", f"{share:.1%}", f"{first.params:,}"]
        if latencies is not None:
            alone = [times.pop(c.name) for c in alike]
            cells += [_seconds(median(alone)), f"{sum(alone) / max(latencies.sum, 1e-12):.1%}"]
        _add(table, *cells)
    if latencies is not None:  # norms, activations and the like: cheap in MACs, not in time
        rest = (_seconds(sum(times.values())), f"{sum(times.values()) / max(latencies.sum, 1e-12):.1%}")
        _add(table, f"the other {len(times)} layers together", "", "", "", "", "", *rest)
    return table


def _latency(found: LayerLatencies) -> Table:
    """Return the sum of the layers beside the measured whole: they differ, and how much is said."""
    whole = found.whole
    table = _table(
        f"Latency of a batch as it was read, on {whole.device} with {whole.threads} threads, {whole.dtype}",
        "what",
        "time",
        "95% interval of the median",
        numbers=("time",),
    )
    interval = f"{_seconds(whole.lower)} to {_seconds(whole.upper)}, {whole.repeats} samples"
    _add(table, "the whole network", _seconds(whole.median), interval)
    _add(table, "sum of its operators, each alone", _seconds(found.sum), f"{found.ratio:.2f} of the whole")
    _add(table, "of these, operators that are no layers", _seconds(found.other), "")
    if found.unmeasured:
        _add(table, "not measured alone", str(len(found.unmeasured)), _brief(found.unmeasured))
    return table


def _seconds(seconds: float) -> str:
    return human(round(1e9 * seconds), "latency")


def _folded(lines: Sequence[LayerCost], shapes: Mapping[str, tuple[int, ...]], fold: bool) -> Iterator[list[LayerCost]]:
    """Join neighbours that cost the same, where a table would be too long to read."""
    if not fold:
        yield from ([line] for line in lines)
        return
    for _, alike in groupby(lines, key=lambda c: (c.kind, c.macs, c.params, shapes[c.name])):
        yield list(alike)


def _groups(arch: Architecture) -> Table:
    free = len(arch.free_groups)
    title = f"Channel groups ({free} free, {len(arch.groups) - free} frozen)"
    table = _table(title, "group", "size", "layers", "state", numbers=("size",))
    frozen = [g for g in arch.groups if g.frozen]
    for group in arch.free_groups:
        _add(table, group.name, str(group.size), _brief(group.layers), _state(group))
    for reason, alike in groupby(sorted(frozen, key=lambda g: g.reason), key=lambda g: g.reason):
        members = list(alike)
        names = _brief([g.name for g in members])
        layers = dict.fromkeys(name for g in members for name in g.layers)
        _add(table, names, str(sum(g.size for g in members)), _brief(list(layers)), f"frozen: {reason}")
    return table


def _state(group: ChannelGroup) -> str:
    words = ["free"]
    if group.step > 1:
        words.append(f"in steps of {group.step}")
    if group.tied:
        words.append(f"in proportion with {_brief(group.tied)}")
    return ", ".join(words)


def _stages(arch: Architecture) -> Table:
    costs = {c.name: c for c in profile(arch).layers}
    whole = max(sum(c.macs for c in costs.values()), 1)
    numbers = ("layers", "blocks", "MACs", "share", "params")
    table = _table("Stages", "stage", "size", "layers", "blocks", "MACs", "share", "params", numbers=numbers)
    for stage in arch.stages:
        inside = [costs[name] for name in stage.layers if name in costs]
        macs, params = sum(c.macs for c in inside), sum(c.params for c in inside)
        counts = (str(len(stage.layers)), str(len(stage.blocks)))
        _add(table, stage.name, _shape(stage.size), *counts, f"{macs:,}", f"{macs / whole:.1%}", f"{params:,}")
    return table


def _totals(arch: Architecture) -> Table:
    costs, ranges = profile(arch), feasible_range(arch)
    table = _table("Totals per image", "what", "now", "reachable by narrowing", numbers=("now",))
    amounts = {
        "macs": ("MACs", costs.macs),
        "params": ("parameters", costs.params),
        "activations": ("activation memory at the peak, bytes", costs.activation_bytes),
        "weights": ("weights, bytes", costs.weight_bytes),
    }
    for metric, (name, amount) in amounts.items():
        _add(table, name, f"{amount:,}", f"down to {human(ranges[metric][0], metric)}")
    _add(table, "MACs by torch's counter", f"{count_by_torch(arch.model, arch.example_input):,}", "")
    _add(table, "not counted", str(len(costs.uncounted)), _brief(costs.uncounted))
    return table


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[1:] if len(shape) > 2 else shape))


def _brief(names: Sequence[str], count: int = 3) -> str:
    shown = ", ".join(names[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown


# ------------------------------------------------------------------ results


def result_table(data: Mapping[str, Any]) -> Table:
    """Return the table of an `optimize`: the result beside the baseline."""
    title = f"{data['model']} on {data['data']}, budget {', '.join(data['budget'])}"
    table = _table(title, "", "baseline", "result", "change", numbers=("baseline", "result", "change"))
    for row in rows(data):
        _add(table, row.name, row.baseline, row.result, row.change)
    return table


def trials_table(data: Mapping[str, Any]) -> Table:
    """Return the trials of an `optimize` whose method says what it decided: phase, costs, accuracy, what was kept."""
    columns = ("trial", "phase", "what", "params", "MACs", "validation", "kept")
    table = _table("Trials", *columns, numbers=("trial", "params", "MACs", "validation"))
    phases: dict[int, tuple[str, str, str]] = {}
    for decision in data["decisions"]:
        for number, words in decision["trials"].items():
            kept = "yes" if decision["kept"] == int(number) else ""
            phases[int(number)] = (decision["phase"], words, kept)
    before = ""
    for trial in data["trials"]:
        phase, words, kept = phases.get(trial["trial"], ("", f"{trial['role']}, trained on", ""))
        shown, before = (phase if phase != before else ""), phase or before
        score = "failed" if trial["score"] is None else f"{trial['score']:.2%} ± {trial['stderr']:.2%}"
        costs = [f"{trial['costs'][name]:,}" if name in trial["costs"] else "" for name in ("params", "macs")]
        _add(table, str(trial["trial"]), shown, words, *costs, score, kept)
    return table


def training(content: Mapping[str, Any]) -> Table:
    """Return the table of a `train`."""
    table = _table(f"{content['model']} on {content['data']}", "", "value", numbers=("value",))
    for part in ("validation", "test"):
        if content[part] is not None:
            _add(table, f"{part} accuracy", f"{content[part]['accuracy']:.2%} ± {content[part]['stderr']:.2%}")
    if content["test_flip"] is not None:
        _add(table, "test accuracy, each image and its mirror image", f"{content['test_flip']['accuracy']:.2%}")
    _add(table, "MACs", f"{content['macs']:,}")
    _add(table, "parameters", f"{content['params']:,}")
    _add(table, "epochs", str(len(content["history"])))
    _add(table, "seconds", f"{content['seconds']:.1f}")
    return table


def replayed(content: Mapping[str, Any]) -> Table:
    """Return the table of an `apply`."""
    numbers = ("original", "changed")
    table = _table(f"{content['model']}, {content['edits']} edits", "", *numbers, numbers=numbers)
    for metric, name in (("macs", "MACs"), ("params", "parameters")):
        _add(table, name, f"{content['before'][metric]:,}", f"{content['after'][metric]:,}")
    _add(table, "MACs by torch's counter", "", f"{content['after']['macs_by_torch']:,}")
    if content["saved"]:
        _add(table, "weights written to", "", content["saved"])
    return table

"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from convwright.architecture import Architecture
from convwright.cost import LayerLatencies, costs_of, count_by_torch, feasible_range, human, profile
from convwright.errors import counted
from convwright.ranking import metric_of
from convwright.runs.directory.result import rows, written
from convwright.runs.verdict import warnings_in
from convwright.tables import add_row, brief, folded, new_table

_WEIGHTED = ("conv", "linear", "matmul", "attention")
_LONG = 60  # rows from which a table of layers is folded


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
    table = new_table(title, "layer", "kind", "output", *numbers, numbers=numbers)
    for alike in folded(lines, lambda c: (c.kind, c.macs, c.params, shapes[c.name]), 0 if long else len(lines)):
        first, last = alike[0], alike[-1]
        name = first.name if len(alike) == 1 else f"{first.name} ... {last.name} ({len(alike)} alike, each)"
        share = sum(c.macs for c in alike) / max(costs.macs, 1)
        cells = [name, first.kind, _shape(shapes[first.name]), f"{first.macs:,}", f"{share:.1%}", f"{first.params:,}"]
        if latencies is not None:
            alone = [times.pop(c.name) for c in alike]
            cells += [_seconds(median(alone)), f"{sum(alone) / max(latencies.sum, 1e-12):.1%}"]
        add_row(table, *cells)
    if latencies is not None:  # norms, activations and the like: cheap in MACs, not in time
        rest = (_seconds(sum(times.values())), f"{sum(times.values()) / max(latencies.sum, 1e-12):.1%}")
        add_row(table, f"the other {len(times)} layers together", "", "", "", "", "", *rest)
    return table


def _latency(found: LayerLatencies) -> Table:
    """Return the sum of the layers beside the measured whole: they differ, and how much is said."""
    whole = found.whole
    title = f"Latency of a batch as it was read, on {whole.device} with {whole.threads} threads, {whole.dtype}"
    table = new_table(title, "what", "time", "95% interval of the median", numbers=("time",))
    interval = f"{_seconds(whole.lower)} to {_seconds(whole.upper)}, {whole.repeats} samples"
    add_row(table, "the whole network", _seconds(whole.median), interval)
    add_row(table, "sum of its operators, each alone", _seconds(found.sum), f"{found.ratio:.2f} of the whole")
    add_row(table, "of these, operators that are no layers", _seconds(found.other), "")
    if found.unmeasured:
        add_row(table, "not measured alone", str(len(found.unmeasured)), brief(found.unmeasured))
    return table


def _seconds(seconds: float) -> str:
    return human(round(1e9 * seconds), "latency")


def _groups(arch: Architecture) -> Table:
    free = len(arch.free_groups)
    title = f"Channel groups ({free} free, {len(arch.groups) - free} frozen)"
    table = new_table(title, "group", "size", "layers", "state", numbers=("size",))
    frozen = [g for g in arch.groups if g.frozen]
    for group in arch.free_groups:
        step = f", in steps of {group.step}" if group.step > 1 else ""
        tied = f", in proportion with {brief(group.tied)}" if group.tied else ""
        add_row(table, group.name, str(group.size), brief(group.layers), f"free{step}{tied}")
    for reason, alike in groupby(sorted(frozen, key=lambda g: g.reason), key=lambda g: g.reason):
        members = list(alike)
        names = brief([g.name for g in members])
        layers = dict.fromkeys(name for g in members for name in g.layers)
        add_row(table, names, str(sum(g.size for g in members)), brief(list(layers)), f"frozen: {reason}")
    return table


def _stages(arch: Architecture) -> Table:
    costs = {c.name: c for c in profile(arch).layers}
    whole = max(sum(c.macs for c in costs.values()), 1)
    numbers = ("layers", "blocks", "MACs", "share", "params")
    table = new_table("Stages", "stage", "size", *numbers, numbers=numbers)
    for stage in arch.stages:
        inside = [costs[name] for name in stage.layers if name in costs]
        macs, params = sum(c.macs for c in inside), sum(c.params for c in inside)
        counts = (str(len(stage.layers)), str(len(stage.blocks)))
        add_row(table, stage.name, _shape(stage.size), *counts, f"{macs:,}", f"{macs / whole:.1%}", f"{params:,}")
    return table


def _totals(arch: Architecture) -> Table:
    costs, ranges = profile(arch), feasible_range(arch)
    table = new_table("Totals per image", "what", "now", "reachable by narrowing", numbers=("now",))
    names = ("MACs", "parameters", "activation memory at the peak, bytes", "weights, bytes")
    for (metric, amount), name in zip(costs_of(costs).items(), names, strict=True):
        add_row(table, name, f"{amount:,}", f"down to {human(ranges[metric][0], metric)}")
    add_row(table, "activation memory if each value were freed at once, bytes", f"{costs.activation_bytes:,}", "")
    add_row(table, "MACs by torch's counter", f"{count_by_torch(arch.model, arch.inputs):,}", "")
    add_row(table, "not counted", str(len(costs.uncounted)), brief(costs.uncounted))
    return table


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[1:] if len(shape) > 2 else shape))


def warned(data: Mapping[str, Any]) -> Iterator[Text]:
    """Yield the warnings of an `optimize` or a `train`, which stand above its table."""
    for each in warnings_in(data):
        yield Text(f"WARNING: {each}", style="bold red")


def result_table(data: Mapping[str, Any]) -> Table:
    """Return the table of an `optimize`: the result beside the baseline."""
    title = f"{data['model']} on {data['data']}, budget {', '.join(data['budget']) or 'none'}"
    table = new_table(title, "", "baseline", "result", "change", numbers=("baseline", "result", "change"))
    for row in rows(data):
        add_row(table, *row)
    return table


def trials_table(data: Mapping[str, Any]) -> Table:
    """Return the trials of an `optimize` whose method says what it decided: phase, costs, accuracy, what was kept."""
    columns = ("trial", "phase", "what", "params", "MACs", "validation", "kept")
    table = new_table("Trials", *columns, numbers=("trial", "params", "MACs", "validation"))
    phases: dict[int, tuple[str, str, str]] = {}
    for decision in data["decisions"]:
        for number, words in decision["trials"].items():
            kept = "yes" if decision["kept"] == int(number) else ""
            phases[int(number)] = (decision["phase"], words, kept)
    before, metric = "", metric_of(data)
    for trial in data["trials"]:
        phase, words, kept = phases.get(
            trial["trial"], ("", f"{trial['role']}, {'trained' if trial['epochs'] else 'judged'}", "")
        )
        shown, before = (phase if phase != before else ""), phase or before
        score = "failed" if trial["score"] is None else metric.shown(trial["score"], trial["stderr"])
        costs = [f"{trial['costs'][name]:,}" if name in trial["costs"] else "" for name in ("params", "macs")]
        add_row(table, str(trial["trial"]), shown, words, *costs, score, kept)
    return table


def front_table(data: Mapping[str, Any]) -> Table:
    """Return the networks that a Pareto search trained to the end, the cheapest first."""
    costs, metric = list(data["objective"]), metric_of(data)
    columns = ("trial", "what", *costs, "validation", "test", "in")
    title = f"Trained to the end: {metric.name} and {', '.join(costs)}"
    table = new_table(title, *columns, numbers=("trial", *costs, "validation", "test"))
    for entry in data["front"]:
        if not entry["finished"]:
            continue
        amounts = [human(entry["costs"][metric], metric) for metric in costs]
        test = entry["test"]
        judged = written(metric, test) if test else ""
        what = f"{entry['what']}, the result" if entry["result"] else entry["what"]
        score = metric.shown(entry["score"], entry["stderr"])
        add_row(table, str(entry["trial"]), what, *amounts, score, judged, entry.get("folder", ""))
    return table


def training(content: Mapping[str, Any]) -> Table:
    """Return the table of a `train`."""
    table = new_table(f"{content['model']} on {content['data']}", "", "value", numbers=("value",))
    metric = metric_of(content)
    for part in ("validation", "test"):
        if content[part] is not None:
            add_row(table, f"{part} {metric.name}", written(metric, content[part]))
    if content["test_flip"] is not None:
        shown = metric.shown(content["test_flip"]["accuracy"])
        add_row(table, f"test {metric.name}, each image and its mirror image", shown)
    add_row(table, "MACs", f"{content['macs']:,}")
    add_row(table, "parameters", f"{content['params']:,}")
    add_row(table, "epochs", str(len(content["history"])))
    add_row(table, "seconds", f"{content['seconds']:.1f}")
    return table


def replayed(content: Mapping[str, Any]) -> Table:
    """Return the table of an `apply`."""
    numbers = ("original", "changed")
    table = new_table(f"{content['model']}, {counted(content['edits'], 'edit')}", "", *numbers, numbers=numbers)
    for metric, name in (("macs", "MACs"), ("params", "parameters")):
        add_row(table, name, f"{content['before'][metric]:,}", f"{content['after'][metric]:,}")
    add_row(table, "MACs by torch's counter", "", f"{content['after']['macs_by_torch']:,}")
    if content["saved"]:
        add_row(table, "weights written to", "", content["saved"])
    return table

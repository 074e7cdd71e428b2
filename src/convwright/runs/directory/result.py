"""What a run hands back: numbers, files and the proof that the budget is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from convwright.architecture import Architecture
from convwright.cost.budget import MEASURED, human
from convwright.edits import Plan
from convwright.methods import Evidence
from convwright.methods.shared.dominance import dominates
from convwright.ranking import Metric, metric_of
from convwright.runs.directory.files import load_weights, read_json, there
from convwright.runs.directory.study import WEIGHTS
from convwright.runs.evaluate import reshaped
from convwright.runs.verdict import ResultWarning, as_given, judged_as_it_came, judged_part, warnings_in

if TYPE_CHECKING:
    from convwright.export import Exported
    from convwright.report import Report

FORMAT = "convwright result"


@dataclass(frozen=True, eq=False)
class Result:
    """A finished run.

    Attributes:
        folder: The run directory: ``plan.json``, ``model.safetensors``, ``result.json`` and the trials.
        best: The trial of the network that is handed back.
        baseline: The trial of the untouched network trained by the same recipe for as long.
        trials: All trials, in the order of asking.
        data: The content of ``result.json``.
        original: The untouched network, from which `model` is built.
    """

    folder: Path
    best: Evidence
    baseline: Evidence
    trials: tuple[Evidence, ...]
    data: Mapping[str, Any]
    original: Architecture

    @property
    def model(self) -> nn.Module:
        """The network that is handed back, of the original's class, with its weights, in eval mode.

        Raises:
            RunError: The files of the run are gone or damaged.
        """
        return self.arch.model

    @cached_property
    def arch(self) -> Architecture:
        """The network that is handed back, as `convwright.read` gives it."""
        network = reshaped(self.original, self.plan)
        load_weights(network.model, self.folder / WEIGHTS)
        network.model.eval()
        return network

    @property
    def plan(self) -> Plan:
        """The edits that lead from the untouched network to the result."""
        return self.best.candidate.plan

    @property
    def metrics(self) -> dict[str, float]:
        """Costs of the result, latency in seconds where measured; ``validation`` and ``test``, values of the metric."""
        return metrics_of(self.data)

    @property
    def warnings(self) -> tuple[ResultWarning, ...]:
        """What is wrong with the result, if anything: much worse, near chance, over-fitting, classes lost."""
        return warnings_in(self.data)

    @property
    def pareto(self) -> tuple[Evidence, ...]:
        """Trials that no other beats in score and in every cost of the objective at once, cheapest first.

        Without an objective the costs are those that the budget limits.
        """
        return non_dominated(self.trials, self.data.get("objective") or list(self.data["limits"]))

    def report(self) -> Report:
        """Return the report: ``print`` it for the table, or ``.save()`` it as a page, ``.html()``, ``.markdown()``."""
        from convwright.report import report_of

        return report_of(self.folder)

    def export(self, to: str, out: str | Path | None = None, **int8: Any) -> Exported:
        """Write the network as ``python``, ``onnx``, ``pt2`` or ``safetensors``, and check it; see `export_run`.

        Args:
            to: The target.
            out: The folder; None: ``export/TARGET`` in the run directory.
            int8: ``int8=True`` and, where the run does not record them, ``data`` and ``data_dir``.
        """
        from convwright.export import Exportable, export_network

        return export_network(Exportable(self.arch, self.plan, self.folder, self.data), to, out, **int8)


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return costs and values of the metric of a ``result.json`` or ``training.json``, as `Result.metrics` does."""
    side, value = record.get("result", record), metric_of(record).score
    costs = side.get("costs") or {name: side[name] for name in ("macs", "params") if name in side}
    judged = {part: value(side[part]["accuracy"]) for part in ("validation", "test") if side.get(part)}
    times = {"latency": side["latency"]["median"]} if "latency" in side else {}
    return {**costs, **times, **judged}


def beats(one: Evidence, other: Evidence, metrics: Sequence[str]) -> bool:
    """Return whether a trial is no worse in score and in every cost, and better in one of them."""
    return dominates(*((each.score, *(-each.costs[m] for m in metrics)) for each in (one, other)))


def non_dominated(trials: Sequence[Evidence], metrics: Sequence[str]) -> tuple[Evidence, ...]:
    """Return the trials that no other beats in score and in every cost at once, cheapest first.

    Those that were judged on a part of the data are left out: their scores do not compare.
    """
    usable = [t for t in trials if t.usable and t.candidate.images == "all"]
    front = [t for t in usable if not any(beats(other, t, metrics) for other in usable)]
    return tuple(sorted(front, key=lambda t: [t.costs[m] for m in metrics]))


class ResultRow(NamedTuple):
    """One line of the table: what, and how baseline and result compare."""

    name: str
    baseline: str
    result: str
    change: str = ""


_COSTS = {
    "MACs, counted by convwright": ("macs", "convwright"),
    "MACs, counted by torch": ("macs", "torch"),
    "parameters, counted by convwright": ("params", "convwright"),
    "parameters, counted by torch": ("params", "torch"),
}


def rows(data: Mapping[str, Any]) -> list[ResultRow]:
    """Return the table of a ``result.json``."""
    before, after, judged = data["baseline"], data["result"], metric_of(data)
    lines = [_counted(name, before["counts"][m][who], after["counts"][m][who]) for name, (m, who) in _COSTS.items()]
    for metric, unit in (("activations", "activation memory, bytes"), ("weights", "weights, bytes")):
        if metric in before["costs"]:
            lines.append(_counted(unit, before["costs"][metric], after["costs"][metric]))
    if "latency" in before and "latency" in after:
        one, two = before["latency"], after["latency"]
        change = f"{two['median'] / one['median'] - 1:+.1%}"
        lines.append(ResultRow(timed(one), interval(one), interval(two), change))
    given = as_given(data)
    if given is not None:
        lines.append(_scores(judged, "validation", _judged(given), after["validation"], ", the network as given"))
    lines += [_scores(judged, part, before[part], after[part]) for part in ("validation", "test") if before[part]]
    if "int8" in before and "int8" in after:
        lines.append(_scores(judged, judged_part(data), before["int8"], after["int8"], ", in int8"))
    classes = data.get("classes") or {}
    if classes.get("balanced"):
        one, two = classes["balanced"]["baseline"], classes["balanced"]["result"]
        name = f"balanced {classes['part']} accuracy"
        lines.append(ResultRow(name, judged.shown(one), judged.shown(two), judged.change(one, two)))
    lines.append(ResultRow("budget", "", _verdict(data["budget_met"])))
    return lines


def _counted(name: str, before: int, after: int) -> ResultRow:
    return ResultRow(name, f"{before:,}", f"{after:,}", f"{after / before - 1:+.1%}" if before else "")


def timed(found: Mapping[str, Any]) -> str:
    """Name a measured time, with the runtime that it was measured on."""
    runtime = found.get("backend", "eager")
    return "latency, measured in turns" + (f" on {runtime}" if runtime != "eager" else "")


def interval(found: Mapping[str, Any]) -> str:
    """Write a measured time with the interval of its median."""
    median, lower, upper = (human(round(1e9 * found[name]), "latency") for name in ("median", "lower", "upper"))
    return f"{median} ({lower} to {upper})"


def _scores(
    metric: Metric, part: str, before: Mapping[str, float], after: Mapping[str, float], whose: str = ""
) -> ResultRow:
    change = metric.change(before["accuracy"], after["accuracy"])
    return ResultRow(f"{part} {metric.name}{whose}", written(metric, before), written(metric, after), change)


def written(metric: Metric, judged: Mapping[str, float]) -> str:
    """Write a recorded judgement with its standard error."""
    return metric.shown(judged["accuracy"], judged["stderr"])


def _verdict(met: Mapping[str, Mapping[str, Any]]) -> str:
    parts = [
        f"{metric} <= {human(values['limit'], metric) if metric in MEASURED else format(values['limit'], ',')} "
        f"{'met' if values['met'] else 'BROKEN'}"
        for metric, values in met.items()
    ]
    return ", ".join(parts) or "none"


def load_result(folder: Path) -> dict[str, Any] | None:
    """Return the content of ``result.json``; None if there is none.

    Raises:
        RunError: It is damaged.
    """
    path = folder / "result.json"
    return read_json(path, FORMAT, "remove it, and --resume writes it again") if there(path) else None


def compared_with(result: Mapping[str, Any]) -> str:
    """Return in a sentence what the baseline of a ``result.json`` is."""
    if not result.get("baseline_trained", True):
        came = result.get("weights") or judged_as_it_came(result)
        origin = "with the weights that it came with" if came else "after its first training"
        return f"The baseline is the untouched network {origin}: it was not trained further (--no-baseline)."
    said, given = "The baseline is the untouched network, trained by the same recipe for as long.", as_given(result)
    if given is None:
        return said
    metric = metric_of(result)
    said += f" As it was given, its validation {metric.name} was {written(metric, _judged(given))}."
    epochs = {trial["trial"]: trial["epochs"] for trial in result["trials"]}
    return said if epochs[result["result"]["trial"]] else f"{said} The result itself was not trained further."


def _judged(trial: Mapping[str, Any]) -> dict[str, float]:
    return {"accuracy": trial["score"], "stderr": trial["stderr"]}

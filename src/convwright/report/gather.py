"""From what a run directory holds to what a report says, and the forms that it takes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convwright.architecture import read
from convwright.cost import profile
from convwright.cost.budget import costs_of, human
from convwright.edits import Plan
from convwright.edits.plan_file import plain_options
from convwright.errors import ConvwrightError
from convwright.methods import Evidence
from convwright.passwords import public_command
from convwright.ranking import ACCURACY, Metric, metric_of
from convwright.report.changes import compared_networks
from convwright.report.content import ClassAccuracy, Compared, Content, Curve, Decision, Fact, Limit, Networks
from convwright.report.html import as_html
from convwright.report.markdown import as_markdown
from convwright.report.recorded import Recorded, read_run
from convwright.report.trials import conflicts, costs_limited, described, fastest, leading, quality, widths
from convwright.runs.directory.files import understood, write_text
from convwright.runs.directory.network_record import FILE as NETWORKS
from convwright.runs.directory.network_record import networks as networks_of
from convwright.runs.directory.result import compared_with, interval, timed, written
from convwright.runs.evaluate import reshaped
from convwright.runs.verdict import judged_part, warnings_in
from convwright.tables import Json

_NAMES = {
    "macs": "multiply-accumulates (MACs)",
    "params": "parameters",
    "activations": "activation memory at the peak",
    "weights": "weights in memory",
}


@dataclass(frozen=True)
class Report(Content):
    """The report of a run: its content, as a page, as Markdown or as plain values."""

    def html(self) -> str:
        """Return the page: one file that needs no network."""
        return as_html(self)

    def markdown(self) -> str:
        """Return the same as Markdown."""
        return as_markdown(self)

    def save(self, path: str | Path | None = None) -> Path:
        """Write the page.

        Args:
            path: The file; None: ``report.html`` in the run directory.

        Returns:
            The file.

        Raises:
            RunError: It cannot be written.
        """
        to = Path(path) if path is not None else self.folder / "report.html"
        write_text(to, self.html())
        return to


def report_of(folder: str | Path, *, model: str | None = None, storage: str | None = None) -> Report:
    """Make the report of a run directory; nothing in it is changed, and no code that it names is run.

    Args:
        folder: Of an ``optimize``, finished or not, or of a ``train``.
        model: The untouched network, as for `read`, where it is to be built anew to draw it; None: only a network of a
            library is, by the name that the run recorded.
        storage: URL of the database with the trials; None: as the run recorded it, without a password.

    Returns:
        The report; ``finished`` says whether the run is.

    Raises:
        RunError: It is no run directory, or a file in it is damaged; names the file.
    """
    recorded = read_run(folder, storage)
    with understood(recorded.folder):
        return _optimized(recorded, model) if recorded.kind == "optimize" else _trained(recorded, model)


def _optimized(recorded: Recorded, model: str | None) -> Report:
    settings, result = recorded.run["settings"], recorded.result
    limited = costs_limited(settings)
    chosen = result["result"]["trial"] if result is not None else None
    trials = described(recorded, limited, chosen)
    best = None if result is not None else leading(recorded.trials, settings.get("limits", {}))
    found, why = _networks(recorded, best, model)
    shown_conflicts, shown_quality = conflicts(recorded.trials), quality(recorded.trials)
    shown_widths, curves = widths(recorded.trials, found), _curves(recorded, result, metric_of(settings))
    decisions = _decisions(recorded.decided)
    plan = recorded.plan if result is not None else (best.candidate.plan if best is not None else None)
    edited = str(plan) if plan is not None and plan.edits else ""
    untrained = "No training left its epochs: the run is older than their record, or did not train."
    undecided = f"The method {settings['method']} says nothing about its decisions."
    if result is None:
        undecided = "The method has not decided anything yet."
    missing = {
        "networks": why,
        "widths": "" if shown_widths else "No trial changed a width.",
        "conflicts": "" if shown_conflicts else "No trial looked at conflicting bundles.",
        "quality": "" if shown_quality else "No trial looked at channel quality (QC).",
        "curves": "" if curves else untrained,
        "decisions": "" if decisions else undecided,
        "compared": "" if result is not None else "The run is not finished: nothing was proved or judged yet.",
        "plan": "" if edited else "Nothing is edited.",
        "latency": "" if "latency" in settings.get("limits", {}) else "Latency is measured where the budget limits it.",
    }
    return Report(
        title=settings["model"],
        folder=recorded.folder,
        finished=result is not None,
        status=_status(recorded, result, best),
        asked=tuple(_asked(settings)),
        limits=tuple(_limits(settings, result)),
        compared=() if result is None else tuple(_compared(result)),
        deviation=_deviation(result),
        warnings=warnings_in(result or {}),
        classes=tuple(
            ClassAccuracy(row["class"], row["images"], row["baseline"], row["result"])
            for row in _judged_classes(result).get("accuracies", ())
        ),
        classes_of=_judged_classes(result).get("part", ""),
        networks=found,
        metrics=limited,
        judged_by=metric_of(settings),
        trials=trials,
        widths=shown_widths,
        conflicts=shown_conflicts,
        quality=shown_quality,
        curves=curves,
        decisions=decisions,
        plan=edited,
        uncounted=() if result is None else tuple(result["result"].get("uncounted", ())),
        recipe=_recipe((result or {}).get("trained_with", settings["recipe"])),
        provenance=tuple(_provenance(recorded)),
        missing={name: sentence for name, sentence in missing.items() if sentence},
    )


def _status(recorded: Recorded, result: Json | None, best: Evidence | None) -> str:
    if result is None:
        done = sum(t.evidence is not None for t in recorded.trials)
        seen = f"{done} trial{'s' * (done != 1)} finished"
        so_far = f"; the best within the budget so far is trial {best.trial} with {best.shown}" if best else ""
        return f"Unfinished: {seen}{so_far}. Continue with --resume; validation numbers only."
    judged = [values["met"] for values in result["budget_met"].values()]
    budget = f"Budget {'met' if all(judged) else 'broken'}" if judged else "No budget"
    macs = result["result"]["costs"]["macs"] / max(1, result["baseline"]["costs"]["macs"])
    part = next((p for p in ("test", "validation") if result["result"].get(p) and result["baseline"].get(p)), None)
    if part is None:
        return f"{budget}: {macs:.1%} of the MACs."
    metric, sides = metric_of(result), (result[name][part]["accuracy"] for name in ("baseline", "result"))
    return f"{budget}: {macs:.1%} of the MACs, {metric.change(*sides)} of {part} {metric.name}."


def _asked(settings: Json) -> Iterator[Fact]:
    yield Fact("network", settings["model"])
    yield Fact("data", settings["data"])
    yield Fact("budget", ", ".join(settings["budget"]) or "none")
    if settings.get("objective"):
        yield Fact("objective", ", ".join([metric_of(settings).name, *settings["objective"]]))
    yield Fact("method", settings["method"])
    for name, value in settings.get("method_options", {}).items():
        if name != "objective" or not settings.get("objective"):  # said above
            yield Fact(f"option {name}", str(value))
    yield Fact("epochs", f"{settings['epochs']} at first, {settings['tune_epochs']} for each later training")
    yield Fact("seed", str(settings["seed"]))
    if settings.get("divisor", 1) != 1:
        yield Fact("divisor of widths", str(settings["divisor"]))
    for name, value in settings.get("constraints", {}).items():
        yield Fact(f"constraint {name}", _plain(value))
    if settings.get("weights"):
        yield Fact("weights from", str(settings["weights"]))


def _limits(settings: Json, result: Json | None) -> Iterator[Limit]:
    for metric, limit in settings.get("limits", {}).items():
        said = _amount(metric, limit)
        if result is None:
            yield Limit(metric, said, "", None)
        else:
            values = result["budget_met"][metric]
            found = values.get("measured", values.get("convwright"))
            yield Limit(metric, said, _amount(metric, found), bool(values["met"]))


def _amount(metric: str, value: int) -> str:
    if metric == "latency":
        return human(value, "latency")
    return f"{value:,}" + (" bytes" if metric in ("activations", "weights") else "")


def _compared(result: Json) -> Iterator[Compared]:
    before, after, judged = result["baseline"], result["result"], metric_of(result)
    for part in ("test", "validation"):
        if before.get(part) and after.get(part):
            yield _scores(judged, part, before[part], after[part])
    if "int8" in before and "int8" in after:
        yield _scores(judged, judged_part(result), before["int8"], after["int8"], ", in int8")
    classes = _judged_classes(result)
    if classes.get("balanced"):
        one, two = classes["balanced"]["baseline"], classes["balanced"]["result"]
        row = (judged.shown(one), judged.shown(two), judged.change(one, two))
        yield Compared(f"balanced {classes['part']} {judged.name}", *row)
    for metric, name in _NAMES.items():
        if metric in before["costs"]:
            one, two = before["costs"][metric], after["costs"][metric]
            yield _cost(name, _amount(metric, one), _amount(metric, two), one, two)
    if "latency" in before and "latency" in after:
        one, two = before["latency"], after["latency"]
        yield _cost(timed(one), interval(one), interval(two), one["median"], two["median"])


def _scores(metric: Metric, part: str, before: Json, after: Json, how: str = "") -> Compared:
    one, two = before["accuracy"], after["accuracy"]
    noise = (before["stderr"] ** 2 + after["stderr"] ** 2) ** 0.5
    # Less is what two draws of the same images may differ by; without an error nothing is sure.
    sure = abs(two - one) > 2 * noise and (noise > 0 or metric == ACCURACY)
    words = (written(metric, before), written(metric, after), metric.change(one, two))
    return Compared(f"{part} {metric.name}{how}", *words, None, two > one if sure else None)


def _judged_classes(result: Json | None) -> Json:
    """Return what is recorded of the classes; nothing in an old result."""
    return (result or {}).get("classes") or {}


def _cost(name: str, before: str, after: str, one: float, two: float) -> Compared:
    share = two / one if one else None
    change = f"{share - 1:+.1%}" if share is not None else ""
    return Compared(name, before, after, change, share, None if two == one else two < one)


def _error(metric: Metric) -> str:
    return "binomial standard error" if metric == ACCURACY else "standard error"


def _deviation(result: Json | None) -> str:
    if result is None:
        return ""
    test = result["baseline"].get("test") or {}
    over = f" over {test['samples']:,} test images" if "samples" in test else ""
    return (
        f"± is the {_error(metric_of(result))}{over}, from one seed ({result['seed']}); differences below two standard "
        f"errors are not coloured. {compared_with(result)}"
    )


def _networks(recorded: Recorded, best: Evidence | None, model: str | None) -> tuple[Networks | None, str]:
    if recorded.networks is not None:
        return compared_networks(recorded.networks, recorded.folder / NETWORKS), ""
    plan = best.candidate.plan if best is not None else recorded.plan
    plan = plan if plan is not None else next((t.candidate.plan for t in recorded.trials), None)
    if plan is None:
        return None, "There is no trial yet, so there is no network to show."
    if (named := _trusted(plan.model, model)) is None:
        return None, _not_imported(plan.model, "networks are")
    try:
        content = _rebuilt(plan, named)
    except (ConvwrightError, OSError, ImportError, TypeError) as error:
        return None, f"The networks are not recorded yet, and cannot be built anew here ({error})."
    if content is None:
        return None, "The networks are not recorded yet, and building them anew gives others than those of the run."
    return compared_networks(content, recorded.folder), ""


def _trusted(recorded: str, model: str | None) -> str | None:
    """Return the name to build a network by: the user's, or a recorded one of a library; never a recorded file."""
    return model or (recorded if re.fullmatch(r"(zoo|timm|torchvision):[\w.+-]+", recorded) else None)


def _not_imported(recorded: str, what: str) -> str:
    return (
        f"The {what} not recorded, and a report runs no code that a run directory names ({recorded}): give the "
        "original network with --model to draw it."
    )


def _rebuilt(plan: Plan, named: str) -> dict[str, Any] | None:
    """Build the networks of a plan by name; None where what that name means now is another network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = read(named, plan.example, **plan.options)
        costs = profile(before)
        if (costs.macs, costs.params) != (plan.macs, plan.params):
            return None
        return networks_of(before, reshaped(before, plan))


def _curves(recorded: Recorded, result: Json | None, metric: Metric) -> tuple[Curve, ...]:
    """Return the last trainings of the untouched network and of the result; unfinished: those of all trials."""
    if result is None:
        return tuple(_curve(f"trial {n}", epochs, metric) for n, epochs in list(recorded.histories.items())[-4:])
    sides = {"untouched network": result["baseline"]["trial"], "result": result["result"]["trial"]}
    found = [(name, number, recorded.histories.get(number)) for name, number in sides.items()]
    return tuple(_curve(f"{name} (trial {number})", epochs, metric) for name, number, epochs in found if epochs)


def _curve(name: str, epochs: Sequence[Json], metric: Metric) -> Curve:
    columns = {key: tuple(e[key] for e in epochs) for key in ("train_loss", "val_loss", "train_acc", "val_acc")}
    values = tuple(None if score is None else metric.score(score) for score in columns["val_acc"])
    return Curve(name, **{**columns, "val_acc": values})


def _decisions(decided: Json | None) -> tuple[Decision, ...]:
    if decided is None:
        return ()
    recorded = [Decision(str(d["phase"]), str(d["reason"])) for d in decided.get("decisions", ())]
    return tuple(recorded or [Decision("", str(line)) for line in decided.get("log", ())])


def _recipe(recipe: Mapping[str, Any]) -> tuple[Fact, ...]:
    return tuple(Fact(name.replace("_", " "), _plain(value)) for name, value in recipe.items() if value not in _NOTHING)


_NOTHING: tuple[Any, ...] = (None, {}, [], "", False, 0)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}".strip() for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _provenance(recorded: Recorded) -> Iterator[Fact]:
    content = recorded.result or recorded.run
    if content.get("command"):
        yield Fact("command", public_command(content["command"]))
    if isinstance(content.get("seconds"), Mapping):
        yield Fact("seconds", fastest(content["seconds"]))
    elif content.get("seconds"):
        yield Fact("seconds", f"{content['seconds']:,.1f}")
    settled = recorded.run.get("settled") or content.get("settings") or {}
    shown = {name: settled[name] for name in ("precision", "memory_format") if name in settled}
    if shown:
        yield Fact("precision and layout", ", ".join(map(str, shown.values())))
    if content.get("machine"):
        yield Fact("machine", ", ".join(f"{name} {value}" for name, value in content["machine"].items() if value))
    if content.get("versions"):
        yield Fact("versions", ", ".join(f"{name} {value}" for name, value in content["versions"].items()))


def _trained(recorded: Recorded, model: str | None) -> Report:
    epochs = recorded.histories.get(-1, ())
    curves = (_curve("training", epochs, metric_of(recorded.result or {})),) if epochs else ()
    content = recorded.result
    if content is None:
        said = f"Unfinished: {len(epochs)} epoch{'s' * (len(epochs) != 1)} trained. Continue with --resume."
        missing = {"networks": "What is trained is recorded when the training ends."}
        return Report("training", recorded.folder, False, said, (), curves=curves, missing=missing)
    found, why = _trained_network(recorded, content, model)
    recipe = content["recipe"]
    facts = [Fact("network", content["model"]), Fact("data", content["data"])]
    facts += [Fact("epochs", str(len(epochs))), Fact("seed", str(recipe.get("seed", 0)))]
    part, metric = next((p for p in ("test", "validation") if content.get(p)), None), metric_of(content)
    shown = f"{part} {metric.name} {written(metric, content[part])}" if part else "trained"
    return Report(
        title=content["model"],
        folder=recorded.folder,
        finished=True,
        status=f"Trained: {shown}.",
        asked=tuple(facts),
        compared=tuple(_values(content)),
        deviation=f"± is the {_error(metric)} over the images, from one seed.",
        networks=found,
        judged_by=metric,
        warnings=warnings_in(content),
        curves=curves,
        plan=str(recorded.plan) if recorded.plan is not None and recorded.plan.edits else "",
        recipe=_recipe(recipe),
        provenance=tuple(_provenance(recorded)),
        missing={"networks": why} if why else {},
    )


def _values(content: Json) -> Iterator[Compared]:
    for part in ("test", "validation"):
        if content.get(part):
            judged = metric_of(content)
            yield Compared(f"{part} {judged.name}", "", written(judged, content[part]), "")
    for metric in ("macs", "params"):
        yield Compared(_NAMES[metric], "", f"{content[metric]:,}", "")


def _trained_network(recorded: Recorded, content: Json, model: str | None) -> tuple[Networks | None, str]:
    """Read the network by its name, if that still is the network that was trained."""
    if model is None and ":" not in content["model"]:
        return None, f"The network {content['model']} has no name to build it by."
    if (named := _trusted(content["model"], model)) is None:
        return None, _not_imported(content["model"], "layers are")
    try:
        if recorded.plan is not None:
            rebuilt = _rebuilt(recorded.plan, named)
        else:
            arch = read(named, **plain_options(content.get("options", {})))
            costs = costs_of(profile(arch))
            same = all(costs[metric] == content[metric] for metric in ("macs", "params"))
            rebuilt = networks_of(arch, None) if same else None
    except (ConvwrightError, OSError, ImportError, TypeError) as error:
        return None, f"The network cannot be built anew here ({error})."
    if rebuilt is None:
        return None, "Building the network anew by its name gives another one than was trained (or another input)."
    return compared_networks(rebuilt, recorded.folder), ""

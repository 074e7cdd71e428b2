"""Charts of a report as plotly's own JSON; a colour such as ``$after`` is filled in by the page, light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convwright.report.content import Curve, Heat, Report, Trial

Json = dict[str, Any]

COSTS = {
    "macs": "MACs per image",
    "params": "parameters",
    "latency": "estimated latency, ms",
    "activations": "activation memory, bytes",
    "weights": "weights, bytes",
}
_SCALE = {"latency": 1e-6}
_CURVES = ("$before", "$after", "$third", "$fourth")


@dataclass(frozen=True)
class Variant:
    """One of the pictures that a chart can show: its name in the list of choices, traces and layout."""

    label: str
    data: list[Json]
    layout: Json


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: Its id in the page.
        title: Above it.
        height: In pixels.
        variants: At least one; several give a list of choices.
        words: For a reader who cannot see it.
    """

    name: str
    title: str
    height: int
    variants: tuple[Variant, ...]
    words: str


def charts(report: Report) -> dict[str, Chart]:
    """Return the charts that a report has data for, by name."""
    found: list[Chart] = []
    scored = [t for t in report.trials if t.score is not None]
    if len(scored) > 1:
        found += [_history(report), _costs(report, scored)]
    if report.widths is not None:
        found.append(_widths(report.widths))
    if report.conflicts:
        found.append(_conflicts(report.conflicts))
    if report.quality:
        found.append(_quality(report.quality))
    if report.curves:
        found += [_losses(report.curves), _accuracies(report.curves)]
    return {chart.name: chart for chart in found}


# ------------------------------------------------------------------ the search


def _history(report: Report) -> Chart:
    """Return the score over the trials, and the best so far."""
    scored = [t for t in report.trials if t.score is not None]
    tried = [t for t in scored if t.role == "candidate"]
    best: list[float] = []
    for trial in tried:
        best.append(max([*best[-1:], 100 * (trial.score or 0.0)]))
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "best so far",
            "x": [t.number for t in tried],
            "y": best,
            "line": {"shape": "hv", "color": "$after", "width": 2},
            "hoverinfo": "skip",
        },
        *_points(scored, lambda t: t.number),
    ]
    layout = _layout("trial", "validation accuracy, %")
    layout["xaxis"] |= {"rangemode": "tozero"}
    words = f"Validation accuracy of {len(scored)} trials in order."
    return Chart("history", "Score over the trials", 340, (Variant("", data, layout),), words)


def _costs(report: Report, scored: Sequence[Trial]) -> Chart:
    """Return the score beside each cost, with the trials that no other beats joined."""
    variants = []
    for metric in report.metrics:
        known = [t for t in scored if metric in t.costs]
        if not known:
            continue
        scale = _SCALE.get(metric, 1.0)
        front = _front(known, metric)
        line = {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": [t.costs[metric] * scale for t in front],
            "y": [100 * (t.score or 0.0) for t in front],
            "line": {"shape": "hv", "color": "$after", "width": 2},
            "hoverinfo": "skip",
        }
        points = _points(known, lambda t, m=metric, s=scale: t.costs[m] * s)
        layout = _layout(COSTS[metric], "validation accuracy, %")
        variants.append(Variant(COSTS[metric], [line, *points], layout))
    words = f"Validation accuracy of {len(scored)} trials beside their costs, with the Pareto front."
    return Chart("costs", "Score against cost", 340, tuple(variants), words)


def _front(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Return the trials that no other beats in score and in this cost, cheapest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.costs[metric], -(t.score or 0.0))):
        if not front or (trial.score or 0.0) > (front[-1].score or 0.0):
            front.append(trial)
    return front


def _points(trials: Sequence[Trial], x: Any) -> Iterator[Json]:
    """Yield the trials as points with their errors, by what they are."""
    tried = [t for t in trials if t.role == "candidate" and not t.chosen]
    kinds = {
        "candidates": ([t for t in tried if not t.ended], "circle", "$point", 7),
        "trained to the end": ([t for t in tried if t.ended], "circle", "$after", 11),
        "untouched network": ([t for t in trials if t.role != "candidate"], "diamond", "$before", 10),
        "result": ([t for t in trials if t.chosen and t.role == "candidate"], "star", "$result", 15),
    }
    for name, (those, symbol, colour, size) in kinds.items():
        if not those:
            continue
        yield {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [x(t) for t in those],
            "y": [100 * (t.score or 0.0) for t in those],
            "error_y": {
                "type": "data",
                "array": [100 * t.stderr for t in those],
                "thickness": 1,
                "width": 0,
                "color": "$error",
            },
            "marker": {"symbol": symbol, "color": colour, "size": size, "line": {"color": "$surface", "width": 1}},
            "text": [_hover(t) for t in those],
            "hovertemplate": "%{text}<extra></extra>",
        }


def _hover(trial: Trial) -> str:
    costs = "<br>".join(
        f"{COSTS[m]}: {trial.costs[m] * _SCALE.get(m, 1):,.{3 if m == 'latency' else 0}f}"
        for m in COSTS
        if m in trial.costs
    )
    words = trial.words if len(trial.words) <= 70 else f"{trial.words[:67]}..."
    score = f"{100 * (trial.score or 0.0):.2f} % ± {100 * trial.stderr:.2f}"
    return f"<b>trial {trial.number}</b>, {escaped(words)}<br>{score}<br>{costs}"


def escaped(text: str) -> str:
    """Return text in which plotly finds no tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# ------------------------------------------------------------------ tables of shades


def _widths(heat: Heat) -> Chart:
    """Return the widths over the trials: the shade is the share of the untouched size, the hover the size."""
    shares = [
        [1.0 if value is None else value / max(1, first) for value in row]
        for row, first in zip(heat.values, heat.reference, strict=True)
    ]
    sizes = [
        [first if value is None else value for value in row]
        for row, first in zip(heat.values, heat.reference, strict=True)
    ]
    reach = max([abs(share - 1) for row in shares for share in row] or [0.0]) or 0.1
    trace = _heatmap(heat, shares, "trial %{x}<br>%{y}: %{customdata} channels, %{z:.0%} of before<extra></extra>")
    trace |= {"customdata": sizes, "zmin": max(0.0, 1 - reach), "zmax": 1 + reach}
    middle = (1 - trace["zmin"]) / (trace["zmax"] - trace["zmin"])
    trace["colorscale"] = [[0, "$narrow"], [middle, "$neutral"], [1, "$wide"]]
    trace["colorbar"] |= {"tickformat": ".0%", "title": {"text": "of before", "side": "right"}}
    layout = _layout("trial", "")
    words = f"Widths of {len(heat.rows)} channel groups over {len(heat.columns)} trials."
    return Chart("widths", "Share of the untouched width", _height(heat), (Variant("", [trace], _rows(layout)),), words)


def _conflicts(heats: Sequence[Heat]) -> Chart:
    hover = "%{y}, %{x}<br>%{z:.1%} of the images in conflict<extra></extra>"
    return _shades("conflicts", "Share of the images in conflict", heats, hover, ".0%", 1.0)


def _quality(heats: Sequence[Heat]) -> Chart:
    return _shades("quality", "Channel quality QC", heats, "%{y}, %{x}<br>QC %{z:.3f}<extra></extra>", ".2f", None)


def _shades(name: str, title: str, heats: Sequence[Heat], hover: str, form: str, most: float | None) -> Chart:
    variants = []
    for heat in heats:
        trace = _heatmap(heat, [list(row) for row in heat.values], hover)
        known = [value for row in heat.values for value in row if value is not None]
        trace |= {"zmin": 0, "zmax": most if most is not None else max([*known, 1e-9])}
        trace["colorscale"] = [[0, "$neutral"], [1, "$deep"]]
        trace["colorbar"] |= {"tickformat": form}
        variants.append(Variant(heat.title, [trace], _rows(_layout("", ""))))
    height = max(_height(heat) for heat in heats)
    words = f"{title} by layer and time, of {len(heats)} trials."
    return Chart(name, title, height, tuple(variants), words)


def _heatmap(heat: Heat, values: list[list[Any]], hover: str) -> Json:
    return {
        "type": "heatmap",
        "x": list(heat.columns),
        "y": list(heat.rows),
        "z": values,
        "hovertemplate": hover,
        "hoverongaps": False,
        "xgap": 1 if len(heat.columns) <= 60 else 0,
        "ygap": 1 if len(heat.rows) <= 60 else 0,
        "colorbar": {"thickness": 10, "outlinewidth": 0, "len": 1, "tickfont": {"size": 11}},
    }


def _rows(layout: Json) -> Json:
    """Return the layout of a table: the first row on top, names as they are."""
    layout["yaxis"] |= {"autorange": "reversed", "type": "category", "showgrid": False, "tickfont": {"size": 11}}
    layout["xaxis"] |= {"type": "category", "showgrid": False, "nticks": 10, "tickangle": 0}
    layout["margin"] |= {"l": 10}
    return layout


def _height(heat: Heat) -> int:
    row = max(7, min(20, 900 // max(1, len(heat.rows))))
    return 90 + row * max(3, len(heat.rows))


# ------------------------------------------------------------------ trainings


def _losses(curves: Sequence[Curve]) -> Chart:
    parts = {"training": ("train_loss", "dot"), "validation": ("val_loss", "solid")}
    return _epochs("losses", "Loss", curves, parts, 1.0, "cross-entropy, nats")


def _accuracies(curves: Sequence[Curve]) -> Chart:
    parts = {"training": ("train_acc", "dot"), "validation": ("val_acc", "solid")}
    return _epochs("accuracies", "Accuracy", curves, parts, 100.0, "accuracy, %")


def _epochs(
    name: str, title: str, curves: Sequence[Curve], parts: dict[str, tuple[str, str]], scale: float, unit: str
) -> Chart:
    data = []
    for curve, colour in zip(curves, _CURVES, strict=False):
        for part, (key, dash) in parts.items():
            values: tuple[float | None, ...] = getattr(curve, key)
            if any(value is not None for value in values):
                data.append(
                    {
                        "type": "scatter",
                        "mode": "lines+markers" if len(values) < 30 else "lines",
                        "name": f"{curve.name}, {part}",
                        "x": list(range(1, len(values) + 1)),
                        "y": [None if v is None else _digits(scale * v) for v in values],
                        "line": {"color": colour, "dash": dash, "width": 2},
                        "marker": {"size": 5, "color": colour},
                        "hovertemplate": f"{escaped(curve.name)}, {part}<br>epoch %{{x}}: %{{y}}<extra></extra>",
                    }
                )
    layout = _layout("epoch", unit)
    most = max(len(curve.train_loss) for curve in curves)
    layout["xaxis"] |= {"tickformat": "d", "range": [0.5, most + 0.5]} | ({"dtick": 1} if most <= 12 else {})
    words = f"{title} of {len(curves)} trainings over their epochs."
    return Chart(name, title, 360, (Variant("", data, layout),), words)


def _digits(value: float) -> float:
    """Round to five significant digits: the page needs no more."""
    return value if value == 0 else round(value, 4 - math.floor(math.log10(abs(value))))


def _layout(x_words: str, y_words: str) -> Json:
    axis = {"gridcolor": "$grid", "zeroline": False, "linecolor": "$grid", "automargin": True, "ticks": ""}
    return {
        "margin": {"l": 50, "r": 12, "t": 8, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "$font", "size": 12, "color": "$text"},
        "xaxis": {**axis, "title": {"text": x_words, "standoff": 8}},
        "yaxis": {**axis, "title": {"text": y_words, "standoff": 6}},
        "hoverlabel": {"bgcolor": "$surface", "bordercolor": "$grid", "font": {"color": "$text", "size": 12}},
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        "showlegend": True,
    }

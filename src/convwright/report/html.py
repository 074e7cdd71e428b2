"""The report as one page: everything is in the file, nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from html import escape
from importlib.resources import files
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from convwright import __version__
from convwright.cost.budget import human
from convwright.ranking import ACCURACY, Metric
from convwright.report.content import Content, Curve, Heat, LayerChange, Trial

_FOLDED = 14  # trials from which their table is folded
_BY = "\N{MULTIPLICATION SIGN}"
_HUES = 8  # colours of coupled channels


def as_html(report: Content) -> str:
    """Return the page of a report: HTML with style, pictures, data and plotly in it."""
    import jinja2
    from plotly.offline import get_plotlyjs

    drawn, sides = charts(report), report.networks.sides if report.networks is not None else ()
    figures = {
        name: {"height": chart.height, "variants": [v.figure.to_plotly_json() for v in chart.variants]}
        for name, chart in drawn.items()
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    couplings = report.networks.couplings if report.networks is not None else ()
    hues = {coupling.letter: number % _HUES for number, coupling in enumerate(couplings)}
    environment.filters |= {"count": human, "hue": hues.__getitem__}
    environment.filters["times"] = lambda size: _BY.join(size.split("x") if isinstance(size, str) else map(str, size))
    environment.filters["last"] = lambda change, block: change.name.removeprefix(f"{block.name}.")
    page = environment.from_string(_part("page.html.j2"))
    return page.render(
        report=report,
        charts=drawn,
        figures=_for_script(figures),
        networks=report.networks,
        most=max((side.channels for side in sides), default=1),  # what the bars are drawn to
        heaviest=max((side.macs for side in sides), default=1) or 1,
        folded=len(report.trials) > _FOLDED,
        style=_part("style.css"),
        script=_part("script.js"),
        plotly=get_plotlyjs() if drawn else "",
        version=__version__,
        tip=_tip,
    )


@cache
def _part(name: str) -> str:
    return (files("convwright.report") / "page" / name).read_text(encoding="utf-8")


def _for_script(content: Any) -> str:
    """Return JSON that may stand inside a script element: no tag can begin in it."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _tip(change: LayerChange) -> str:
    before, after = change.before, change.after
    if before is None:
        return f"{change.name}: new, {after.channels if after else 0} channels"
    if after is None:
        return f"{change.name}: removed, had {before.channels} channels"
    if before.channels == after.channels:
        return f"{change.name}: {before.channels} channels" + (", changed" if change.state == "changed" else "")
    return f"{change.name}: {before.channels} to {after.channels} channels"


COSTS = {
    "macs": "MACs per image",
    "params": "parameters",
    "latency": "estimated latency, ms",
    "activations": "activation memory, bytes",
    "weights": "weights, bytes",
}
_SCALE = {"latency": 1e-6}
_CURVES = ("var(--before)", "var(--after)", "var(--third)", "var(--fourth)")
# A colour such as ``var(--after)`` is filled in by the page, light or dark.
_ERROR_BARS = {"thickness": 1, "width": 0, "color": "var(--error)"}
_AXIS = {
    "gridcolor": "var(--grid)", "linecolor": "var(--grid)", "zeroline": False, "automargin": True, "ticks": "",
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One of the pictures that a chart can show: its name in the list of choices, and the figure."""

    label: str
    figure: go.Figure


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: Above it.
        height: In pixels.
        variants: At least one; several give a list of choices.
        words: For a reader who cannot see it.
    """

    title: str
    height: int
    variants: tuple[Variant, ...]
    words: str


def charts(report: Content) -> dict[str, Chart]:
    """Return the charts that a report has data for, by name."""
    found: dict[str, Chart] = {}
    scored = [t for t in report.trials if t.score is not None]
    if len(scored) > 1:
        found |= {"history": _history(report.judged_by, scored), "costs": _costs(report, scored)}
    if report.widths is not None:
        found["widths"] = _widths(report.widths)
    if report.conflicts:
        hover = "%{y}, %{x}<br>%{z:.1%} of the images in conflict<extra></extra>"
        found["conflicts"] = _shades("Share of the images in conflict", report.conflicts, hover, ".0%", 1.0)
    if report.quality:
        hover = "%{y}, %{x}<br>QC %{z:.3f}<extra></extra>"
        found["quality"] = _shades("Channel quality QC", report.quality, hover, ".2f", None)
    if report.curves:
        metric, nats = report.judged_by, report.judged_by == ACCURACY
        title = metric.name[:1].upper() + metric.name[1:]
        found["losses"] = _epochs("Loss", report.curves, "loss", float, "cross-entropy, nats" if nats else "loss")
        found["accuracies"] = _epochs(title, report.curves, "acc", metric.amount, metric.axis)
    return found


def _figure(traces: Sequence[go.Scatter | go.Heatmap], x_words: str, y_words: str) -> go.Figure:
    return go.Figure(traces).update_layout(
        template=None,
        margin={"l": 50, "r": 12, "t": 8, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "var(--font)", "size": 12, "color": "var(--text)"},
        xaxis={**_AXIS, "title": {"text": x_words, "standoff": 8}},
        yaxis={**_AXIS, "title": {"text": y_words, "standoff": 6}},
        hoverlabel={"bgcolor": "var(--surface)", "bordercolor": "var(--grid)"},
        hoverlabel_font={"color": "var(--text)", "size": 12},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font_size": 12},
        showlegend=True,
    )


def _history(metric: Metric, scored: Sequence[Trial]) -> Chart:
    tried = [t for t in scored if t.role == "candidate"]
    best = [metric.plotted(score) for score in accumulate((t.score or 0.0 for t in tried), max)]
    traces = [_steps("best so far", [t.number for t in tried], best), *_points(metric, scored, lambda t: t.number)]
    figure = _figure(traces, "trial", f"validation {metric.axis}").update_xaxes(rangemode="tozero")
    words = f"Validation {metric.name} of {len(scored)} trials in order."
    return Chart("Score over the trials", 340, (Variant("", figure),), words)


def _costs(report: Content, scored: Sequence[Trial]) -> Chart:
    variants, judged_by = [], report.judged_by
    for metric in report.metrics:
        known = [t for t in scored if metric in t.costs]
        if known:
            cost = partial(_cost, metric)
            front = _front(known, metric)
            line = _steps("Pareto front", [*map(cost, front)], [judged_by.plotted(t.score or 0.0) for t in front])
            points = _figure([line, *_points(judged_by, known, cost)], COSTS[metric], f"validation {judged_by.axis}")
            variants.append(Variant(COSTS[metric], points))
    words = f"Validation {judged_by.name} of {len(scored)} trials beside their costs, with the Pareto front."
    return Chart("Score against cost", 340, tuple(variants), words)


def _cost(metric: str, trial: Trial) -> float:
    return trial.costs[metric] * _SCALE.get(metric, 1.0)


def _front(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Return the trials that no other beats in score and in this cost, cheapest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.costs[metric], -(t.score or 0.0))):
        if not front or (trial.score or 0.0) > (front[-1].score or 0.0):
            front.append(trial)
    return front


def _steps(name: str, x: list[float], y: list[float]) -> go.Scatter:
    line = {"shape": "hv", "color": "var(--after)", "width": 2}
    return go.Scatter(x=x, y=y, name=name, mode="lines", line=line, hoverinfo="skip")


def _points(metric: Metric, trials: Sequence[Trial], x: Callable[[Trial], float]) -> list[go.Scatter]:
    tried = [t for t in trials if t.role == "candidate" and not t.chosen]
    kinds = {
        "candidates": ([t for t in tried if not t.ended], "circle", "var(--point)", 7),
        "trained to the end": ([t for t in tried if t.ended], "circle", "var(--after)", 11),
        "untouched network": ([t for t in trials if t.role != "candidate"], "diamond", "var(--before)", 10),
        "result": ([t for t in trials if t.chosen and t.role == "candidate"], "star", "var(--result)", 15),
    }
    return [
        go.Scatter(
            x=[x(t) for t in those],
            y=[metric.plotted(t.score or 0.0) for t in those],
            name=name,
            mode="markers",
            error_y={"array": [metric.amount(t.stderr) for t in those], **_ERROR_BARS},
            marker={"symbol": symbol, "color": colour, "size": size, "line": {"color": "var(--surface)", "width": 1}},
            text=[_hover(metric, t) for t in those],
            hovertemplate="%{text}<extra></extra>",
        )
        for name, (those, symbol, colour, size) in kinds.items()
        if those
    ]


def _hover(metric: Metric, trial: Trial) -> str:
    costs = "<br>".join(
        f"{words}: {_cost(m, trial):,.{3 if m == 'latency' else 0}f}" for m, words in COSTS.items() if m in trial.costs
    )
    words = trial.words if len(trial.words) <= 70 else f"{trial.words[:67]}..."
    score = metric.shown(trial.score or 0.0, trial.stderr)
    if metric.unit == "%":
        score = f"{metric.plotted(trial.score or 0.0):.2f} % ± {100 * trial.stderr:.2f}"
    return f"<b>trial {trial.number}</b>, {escape(words, quote=False)}<br>{score}<br>{costs}"


def _widths(heat: Heat) -> Chart:
    """Return the widths over the trials: the shade is the share of the untouched size, the hover the size."""
    rows = [*zip(heat.values, heat.reference, strict=True)]
    sizes = [[first if value is None else value for value in row] for row, first in rows]
    shares = [[1.0 if value is None else value / max(1, first) for value in row] for row, first in rows]
    reach = max((abs(share - 1) for row in shares for share in row), default=0.0) or 0.1
    low, high = max(0.0, 1 - reach), 1 + reach
    figure = _heatmap(
        heat,
        z=shares,
        customdata=sizes,
        zmin=low,
        zmax=high,
        hovertemplate="trial %{x}<br>%{y}: %{customdata} channels, %{z:.0%} of before<extra></extra>",
        colorscale=[[0, "var(--narrow)"], [(1 - low) / (high - low), "var(--neutral)"], [1, "var(--wide)"]],
        colorbar_title={"text": "of before", "side": "right"},
        colorbar_tickformat=".0%",
    )
    words = f"Widths of {len(heat.rows)} channel groups over {len(heat.columns)} trials."
    variant = Variant("", figure.update_xaxes(title_text="trial"))
    return Chart("Share of the untouched width", _height(heat), (variant,), words)


def _shades(title: str, heats: Sequence[Heat], hover: str, form: str, most: float | None) -> Chart:
    variants = []
    for heat in heats:
        top = most or max((value for row in heat.values for value in row if value is not None), default=1e-9)
        look = {"colorscale": [[0, "var(--neutral)"], [1, "var(--deep)"]], "colorbar_tickformat": form}
        figure = _heatmap(heat, z=[*map(list, heat.values)], zmin=0, zmax=max(top, 1e-9), hovertemplate=hover, **look)
        variants.append(Variant(heat.title, figure))
    words = f"{title} by layer and time, of {len(heats)} trials."
    return Chart(title, max(map(_height, heats)), tuple(variants), words)


def _heatmap(heat: Heat, **look: Any) -> go.Figure:
    """Return a table of shades: the first row on top, names as they are."""
    bar = {"thickness": 10, "outlinewidth": 0, "len": 1, "tickfont_size": 11}
    gaps = {"xgap": int(len(heat.columns) <= 60), "ygap": int(len(heat.rows) <= 60)}
    trace = go.Heatmap(x=heat.columns, y=heat.rows, colorbar=bar, hoverongaps=False, **gaps, **look)
    figure = _figure([trace], "", "").update_layout(margin_l=10)
    figure.update_xaxes(type="category", showgrid=False, nticks=10, tickangle=0)
    return figure.update_yaxes(type="category", showgrid=False, autorange="reversed", tickfont_size=11)


def _height(heat: Heat) -> int:
    row = max(7, min(20, 900 // max(1, len(heat.rows))))
    return 90 + row * max(3, len(heat.rows))


def _epochs(title: str, curves: Sequence[Curve], what: str, drawn: Callable[[float], float], unit: str) -> Chart:
    traces = []
    for curve, colour in zip(curves, _CURVES, strict=False):
        for part, key, dash in (("training", "train", "dot"), ("validation", "val", "solid")):
            values: tuple[float | None, ...] = getattr(curve, f"{key}_{what}")
            if any(value is not None for value in values):
                name = f"{curve.name}, {part}"
                traces.append(
                    go.Scatter(
                        x=list(range(1, len(values) + 1)),
                        y=[None if v is None else float(f"{drawn(v):.5g}") for v in values],  # the page needs no more
                        name=name,
                        mode="lines+markers" if len(values) < 30 else "lines",
                        line={"color": colour, "dash": dash, "width": 2},
                        marker={"size": 5, "color": colour},
                        hovertemplate=f"{escape(name, quote=False)}<br>epoch %{{x}}: %{{y}}<extra></extra>",
                    )
                )
    most = max(len(curve.train_loss) for curve in curves)
    figure = _figure(traces, "epoch", unit).update_xaxes(tickformat="d", range=[0.5, most + 0.5])
    if most <= 12:
        figure.update_xaxes(dtick=1)
    return Chart(title, 360, (Variant("", figure),), f"{title} of {len(curves)} trainings over their epochs.")

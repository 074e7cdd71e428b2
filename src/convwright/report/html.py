"""The report as one page: everything is in the file, nothing is fetched."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from convwright import __version__
from convwright.report.content import Content, LayerChange, Networks
from convwright.report.figures import charts

_FOLDED = 14  # trials from which their table is folded
_BY = "\N{MULTIPLICATION SIGN}"
_HUES = 8  # colours of coupled channels


def as_html(report: Content) -> str:
    """Return the page of a report: HTML with style, pictures, data and plotly in it."""
    import jinja2

    drawn = charts(report)
    figures = {
        name: {"height": chart.height, "variants": [v.figure.to_plotly_json() for v in chart.variants]}
        for name, chart in drawn.items()
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"count": _count, "hue": _hue}
    environment.filters["times"] = lambda size: _BY.join(size.split("x") if isinstance(size, str) else map(str, size))
    environment.filters["last"] = lambda change, block: change.name.removeprefix(f"{block.name}.")
    page = environment.from_string(_part("page.html.j2"))
    return page.render(
        report=report,
        charts=drawn,
        figures=_for_script(figures),
        networks=report.networks,
        most=_largest(report.networks, "channels"),
        heaviest=_largest(report.networks, "macs") or 1,
        folded=len(report.trials) > _FOLDED,
        style=_part("style.css"),
        script=_part("script.js"),
        plotly=_plotly() if drawn else "",
        version=__version__,
        tip=_tip,
        edited=_edited,
    )


@cache
def _part(name: str) -> str:
    return (files("convwright.report") / "page" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _for_script(content: Any) -> str:
    """Return JSON that may stand inside a script element: no tag can begin in it."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


# ------------------------------------------------------------------ words and numbers


def _count(value: int | float | None) -> str:
    """Write a count to three digits with its unit: ``40.8M``."""
    if value is None:
        return ""
    for power, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= power:
            return f"{value / power:.3g}{unit}" if abs(value) < 1000 * power else f"{value / power:.0f}{unit}"
    return f"{value:,}"


def _hue(letter: str) -> int:
    """Return the colour of a letter of coupled channels, 0..7."""
    number = 0
    for character in letter:
        number = number * 26 + ord(character) - 64
    return (number - 1) % _HUES


def _tip(change: LayerChange) -> str:
    """Say what happened to a layer, for the pointer."""
    before, after = change.before, change.after
    if before is None:
        return f"{change.name}: new, {after.channels if after else 0} channels"
    if after is None:
        return f"{change.name}: removed, had {before.channels} channels"
    if before.channels == after.channels:
        return f"{change.name}: {before.channels} channels" + (", changed" if change.state == "changed" else "")
    return f"{change.name}: {before.channels} to {after.channels} channels"


def _largest(networks: Networks | None, name: str) -> int:
    """Return the largest number of that name of a layer: what the bars are drawn to."""
    return max((getattr(side, name) for side in (networks.sides if networks is not None else ())), default=1)


def _edited(networks: Networks) -> bool:
    """Return whether anything differs between the two networks."""
    return any(c.state != "same" for c in networks.layers) or networks.before_input != networks.after_input

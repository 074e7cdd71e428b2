"""A folder to hand on: weights, plan and a card that says what the network is."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from convwright.cost import profile
from convwright.export.opened import Exportable
from convwright.export.registry import Exported, difference, target
from convwright.export.source.text import literal
from convwright.passwords import public_command
from convwright.ranking import ACCURACY
from convwright.runs.directory.files import load_weights, save_weights, write_text
from convwright.runs.directory.result import compared_with, rows, written
from convwright.runs.verdict import warnings_in
from convwright.runs.weights_note import KEYS
from convwright.tables import markdown_table

if TYPE_CHECKING:
    from convwright.export.quantize import Quantized

_CARD = Path(__file__).with_name("card.md.j2")
_KINDS = {"result": "result of a search", "training": "trained", "unfinished": "from an unfinished run"}


@target("safetensors")
def export_safetensors(run: Exportable, folder: Path) -> Exported:
    """Write ``model.safetensors``, ``plan.json`` and a card, ``README.md``."""
    note = {key: run.record[key] for key in KEYS if key in run.record} | {"input_shape": list(run.input_shape)}
    save_weights(run.arch.model, folder / "model.safetensors", note)
    again = copy.deepcopy(run.arch.model).eval()
    for tensor in again.parameters():
        tensor.data.fill_(math.nan)  # what the file lacks would show
    load_weights(again, folder / "model.safetensors")
    gap = difference(run.arch.model, again, run.arch.given or run.arch.example_input)
    write_text(folder / "plan.json", run.plan.to_json())
    write_text(folder / "README.md", card(run))
    return Exported("safetensors", tuple(folder / n for n in ("model.safetensors", "plan.json", "README.md")), gap)


def card(run: Exportable, use: str = "", int8: Quantized | None = None) -> str:
    """Return the card of a network, in Markdown: what it is and takes, how it was made, how to load it.

    Args:
        run: The network.
        use: The target whose files it says how to use; empty: how to load the network with convwright.
        int8: What the int8 file changed; None: there is none.
    """
    (numbers, names), crop = run.usage, run.resize.crop_pct
    recipe, versions = run.record.get("trained_with") or run.record.get("recipe"), run.record.get("versions")
    recipe = recipe if isinstance(recipe, Mapping) else {}
    given = {name: value for name, value in recipe.items() if value not in (None, {}, [])}
    template = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True).from_string(
        _CARD.read_text(encoding="utf-8")
    )
    return template.render(
        run=run,
        record=run.record,
        kind=_KINDS[run.kind],
        shape=list(run.input_shape),
        warned=[*warnings_in(run.record), *(int8.warnings if int8 is not None else ())],
        numbers=numbers,
        ready=numbers is not None and not any(numbers.mean) and set(numbers.std) == {1.0},
        names=literal(names),
        one=run.metric == ACCURACY,
        bleed=f", bleed={(1 - crop) / 2:.6g}" if crop not in (None, 1) else "",
        use=use if numbers is not None else "",
        named=":" in run.plan.model,
        costs=_costs(run),
        int8=int8,
        changes=markdown_table(("", "float32", "int8"), int8.rows, (1, 2)) if int8 is not None else "",
        recipe=recipe,
        recipe_words=", ".join(f"{name} {_short(value)}" for name, value in given.items()),
        command=public_command(run.record.get("command") or ""),
        uncounted=profile(run.arch).uncounted,
        versions=[f"{name} {version}" for name, version in versions.items()] if isinstance(versions, Mapping) else [],
    )


def _costs(run: Exportable) -> str:
    if run.kind == "result":
        table = markdown_table(("", "baseline", "result", "change"), rows(run.record), (1, 2, 3))
        return f"{table}\n\n{compared_with(run.record)}"
    costs, plan = profile(run.arch), run.plan
    cells = [("MACs", f"{plan.macs:,}", f"{costs.macs:,}"), ("parameters", f"{plan.params:,}", f"{costs.params:,}")]
    for part in ("validation", "test"):
        judged = run.record.get(part) if run.kind == "training" else None
        if judged:
            cells.append((f"{part} {run.metric.name}", "", written(run.metric, judged)))
    return markdown_table(("", "original", "this network"), cells, (1, 2))


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    return f"`{value}`"

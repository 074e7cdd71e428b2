"""A folder to hand on: weights, plan and a card that says what the network is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convwright.cost import profile
from convwright.export.opened import Exportable
from convwright.export.registry import Exported, difference, target
from convwright.runs.directory.files import save_weights, write_text
from convwright.runs.directory.result import compared_with, rows
from convwright.tables import markdown_table

_TITLES = {"result": "result of a search", "training": "trained", "unfinished": "from an unfinished run"}


@target("safetensors")
def export_safetensors(run: Exportable, folder: Path) -> Exported:
    """Write ``model.safetensors``, ``plan.json`` and a card, ``README.md``."""
    import copy

    from convwright.runs.directory.files import load_weights

    save_weights(run.arch.model, folder / "model.safetensors")
    again = copy.deepcopy(run.arch.model).eval()
    for tensor in again.parameters():
        tensor.data.fill_(math.nan)  # what the file lacks would show
    load_weights(again, folder / "model.safetensors")
    gap = difference(run.arch.model, again, run.arch.example_input)
    write_text(folder / "plan.json", run.plan.to_json())
    write_text(folder / "README.md", card(run))
    return Exported("safetensors", tuple(folder / n for n in ("model.safetensors", "plan.json", "README.md")), gap)


def card(run: Exportable) -> str:
    """Return the card of a network, in Markdown: what it is, how it was made, what was not counted, how to load it."""
    parts = [f"# {run.title}", _summary(run), _costs(run), _made(run), _uncounted(run), _versions(run), _loading(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(run: Exportable) -> str:
    shape = "x".join(map(str, run.arch.example_input.shape[1:]))
    lines = [
        f"- Network: `{run.plan.model}`, {_TITLES[run.kind]}",
        f"- Input: images of {shape}",
        f"- Data: {run.record.get('data', 'not recorded')}",
    ]
    if run.record.get("budget"):
        lines.append(f"- Budget: {', '.join(f'`{term}`' for term in run.record['budget'])}")
    if run.kind == "unfinished":
        score = f"{run.trial_score:.2%}" if run.trial_score is not None else "unknown"
        lines.append(
            f"- **The run is not finished.** This is trial {run.trial}, validation accuracy {score}; "
            "the budget is not proved, and the test part was not read"
        )
    return "\n".join(lines)


def _costs(run: Exportable) -> str:
    if run.kind == "result":
        lines = [(row.name, row.baseline, row.result, row.change) for row in rows(run.record)]
        table = markdown_table(("", "baseline", "result", "change"), lines, (1, 2, 3))
        return f"## Numbers\n\n{table}\n\n{compared_with(run.record)}"
    costs, plan = profile(run.arch), run.plan
    cells = [("MACs", f"{plan.macs:,}", f"{costs.macs:,}"), ("parameters", f"{plan.params:,}", f"{costs.params:,}")]
    for part in ("validation", "test"):
        judged = run.record.get(part) if run.kind == "training" else None
        if judged:
            cells.append((f"{part} accuracy", "", f"{judged['accuracy']:.2%} ± {judged['stderr']:.2%}"))
    return f"## Numbers\n\n{markdown_table(('', 'original', 'this network'), cells, (1, 2))}"


def _made(run: Exportable) -> str:
    record = run.record
    recipe = record.get("trained_with") or record.get("recipe")
    lines = ["## How it was made", ""]
    for name in ("method", "seed"):
        value = record.get(name, recipe.get(name) if isinstance(recipe, Mapping) else None)
        if value is not None:
            lines.append(f"- {name.capitalize()}: {value}")
    if record.get("command"):
        lines.append(f"- Command: `{record['command']}`")
    if run.plan.edits:
        lines += ["", "The edits:", "", "```", str(run.plan), "```"]
    if isinstance(recipe, Mapping):
        given = ", ".join(f"{name} {_short(value)}" for name, value in recipe.items() if value not in (None, {}, []))
        lines += ["", f"The recipe: {given}."]
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    return f"`{value}`"


def _uncounted(run: Exportable) -> str:
    uncounted = profile(run.arch).uncounted
    listed = "\n".join(f"- {item}" for item in uncounted) if uncounted else "Nothing: every operator was counted."
    return f"## What was not counted\n\n{listed}"


def _versions(run: Exportable) -> str:
    versions = run.record.get("versions")
    if not isinstance(versions, Mapping):
        return ""
    return "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."


def _loading(run: Exportable) -> str:
    name = f'"{run.plan.model}"' if ":" in run.plan.model else f"{run.plan.model}()"
    note = "" if ":" in run.plan.model else f"{run.plan.model} is the original network's class.\n\n"
    return (
        "## How to load it\n\n" + note + "```python\nimport convwright as cw\n"
        "from safetensors.torch import load_model\n\n"
        f'arch = cw.apply(cw.Plan.load("plan.json"), {name}, verify=False)\n'
        'load_model(arch.model, "model.safetensors")\n'
        "model = arch.model.eval()\n```\n\n"
        "`convwright export DIR --to python` writes the same network as plain PyTorch, which loads without convwright."
    )

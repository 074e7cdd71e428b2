"""A folder to hand on: weights, plan and a card that says what the network is."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convwright.cost import profile
from convwright.export.opened import Exportable
from convwright.export.registry import Exported, difference, target
from convwright.export.source.text import literal
from convwright.passwords import public_command
from convwright.runs.directory.files import load_weights, save_weights, write_text
from convwright.runs.directory.result import compared_with, rows
from convwright.runs.verdict import warnings_in
from convwright.runs.weights_note import KEYS
from convwright.tables import markdown_table
from convwright.training.data.folders import Resize

_PIXELS = "The network was trained on pixels from 0 to 1, minus the mean, divided by the standard deviation:"
_TITLES = {"result": "result of a search", "training": "trained", "unfinished": "from an unfinished run"}


@target("safetensors")
def export_safetensors(run: Exportable, folder: Path) -> Exported:
    """Write ``model.safetensors``, ``plan.json`` and a card, ``README.md``."""
    note = {key: run.record[key] for key in KEYS if key in run.record}
    save_weights(run.arch.model, folder / "model.safetensors", note)
    again = copy.deepcopy(run.arch.model).eval()
    for tensor in again.parameters():
        tensor.data.fill_(math.nan)  # what the file lacks would show
    load_weights(again, folder / "model.safetensors")
    gap = difference(run.arch.model, again, run.arch.example_input)
    write_text(folder / "plan.json", run.plan.to_json())
    write_text(folder / "README.md", card(run))
    return Exported("safetensors", tuple(folder / n for n in ("model.safetensors", "plan.json", "README.md")), gap)


def card(run: Exportable, use: str = "") -> str:
    """Return the card of a network, in Markdown: what it is and takes, how it was made, how to load it.

    Args:
        run: The network.
        use: How what was exported is used; empty: with convwright.
    """
    use = f"## How to use it\n\n{use}" if use and run.usage[0] is not None else _loading(run)
    warned = [f"> **Warning:** {each}" for each in warnings_in(run.record)]
    uncounted = "\n".join(f"- {item}" for item in profile(run.arch).uncounted) or "Nothing: every operator was counted."
    parts = [f"# {run.title}", *warned, _summary(run), _input(run), use, _costs(run), _made(run)]
    parts += [f"## What was not counted\n\n{uncounted}", _versions(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _input(run: Exportable) -> str:
    """Say what is to be done to an image, and what the outputs mean."""
    numbers, names = run.usage
    if numbers is None:
        return "## Input and output\n\nHow images were normalised was not recorded; it is the recipe's way, below."
    shape = run.arch.example_input.shape[1:]
    ready = not any(numbers.mean) and set(numbers.std) == {1.0}
    lines = [
        "## Input and output",
        "",
        f"Images are {'grey' if shape[0] == 1 else 'RGB'}, {shape[1]} pixels high and {shape[2]} wide. "
        + ("They were floats of the data set's own, and nothing is done to them:" if ready else _PIXELS),
        "",
        "```python",
        f"MEAN = torch.tensor({list(numbers.mean)}).view(1, -1, 1, 1)",
        f"STD = torch.tensor({list(numbers.std)}).view(1, -1, 1, 1)",
        "batch = (images - MEAN) / STD  # images (n, c, h, w) from 0 to 1: bytes / 255",
        "```",
        "",
        "The outputs are scores, one per class, in this order:",
        "",
        f"```python\nCLASS_NAMES = {literal(names)}\n```",
    ]
    if str(run.record.get("data", "")).startswith("folder:"):
        lines += ["", "A photograph is read as it was for the training; another filter costs accuracy:", ""]
        lines += ["```python", _photograph(shape, run.resize), "```"]
    return "\n".join(lines)


def _photograph(shape: Sequence[int], resize: Resize) -> str:
    """Return how `training.data.folders` reads a file, as Python with Pillow."""
    channels, height, width = shape
    bleed = f", bleed={(1 - resize.crop_pct) / 2:.6g}" if resize.crop_pct not in (None, 1) else ""
    method = f"Image.Resampling.{(resize.interpolation or 'bicubic').upper()}"
    axes = ".permute(2, 0, 1)[None]" if channels > 1 else "[None, None]"
    return "\n".join(
        [
            "import numpy",
            "from PIL import Image, ImageOps",
            "",
            f'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{"L" if channels == 1 else "RGB"}")',
            f"image = ImageOps.fit(image, ({width}, {height}), {method}{bleed})",
            f"images = torch.from_numpy(numpy.array(image)){axes} / 255",
        ]
    )


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
        lines.append(f"- Command: `{public_command(record['command'])}`")
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

"""``convwright apply`` and ``convwright plan show``: a plan on a fresh copy of its network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from convwright.architecture import parse_inputs, read
from convwright.architecture.weights import read_checkpoint, take
from convwright.cost import count_by_torch, profile
from convwright.edits import InexactEditWarning, Plan, Step, apply, preview
from convwright.edits.preview import total
from convwright.edits.summary import shape_words
from convwright.errors import EditError
from convwright.runs.directory.files import save_weights
from convwright.runs.directory.result import load_result
from convwright.runs.load import model_options


def replay(
    plan: Path, model: str, *, weights: Path | None = None, save: Path | None = None, num_classes: int | None = None
) -> dict[str, Any]:
    """Replay a plan.

    Args:
        plan: The file.
        model: The network that it was made for, as for `read`.
        weights: Weights of the changed network, as saved with the plan.
        save: Where to write the changed network's weights.
        num_classes: Outputs of the network; None: as recorded in the plan or beside it.

    Returns:
        Plain JSON values: costs before and after, per edit whether it was exact and kept the function.

    Raises:
        EditError: The plan is no plan, or was made for another network.
        ReadError: The network cannot be made.
        RunError: The weights do not fit the changed network.
    """
    loaded = Plan.load(plan)
    options = _options(plan, loaded, model, num_classes)
    with warnings.catch_warnings():  # what is not exact stands in the answer
        warnings.simplefilter("ignore", InexactEditWarning)
        arch = apply(loaded, model, None, verify=True, **options)
    if weights is not None:
        take(arch.model, read_checkpoint(weights))
    if save is not None:
        save_weights(arch.model, save)
    costs = profile(arch)
    return {
        "model": arch.source,
        "options": options,
        "edits": len(loaded.edits),
        "before": {"macs": loaded.macs, "params": loaded.params},
        "after": {"macs": costs.macs, "macs_by_torch": count_by_torch(arch.model, arch.inputs), "params": costs.params},
        "changes": [
            {
                **change.edit.to_dict(),
                "exact": change.exact,
                "keeps_function": change.keeps_function,
                "max_difference": change.max_difference,
                "notes": list(change.notes),
            }
            for change in arch.changes
        ],
        "saved": str(save) if save is not None else None,
    }


def show(
    plan: Path, model: str | None = None, *, input_shape: str | None = None, num_classes: int | None = None
) -> tuple[Plan, tuple[Step, ...]]:
    """Say what a plan would do, without doing it.

    Args:
        plan: The file.
        model: The network that it was made for; None: the one that the plan names.
        input_shape: ``"3x224x224"``; None: the shape in the plan.
        num_classes: As for `replay`.

    Returns:
        The plan and its steps.

    Raises:
        EditError: The plan is no plan, names no network that can be built, or an edit is refused.
        ReadError: The network cannot be made.
    """
    loaded = Plan.load(plan)
    if model is None and ":" not in loaded.model:
        raise EditError(f"{plan} is for {loaded.model or 'a network'}, which has no name to build it by: give --model.")
    named = model if model is not None else loaded.model
    shape = parse_inputs(input_shape) if input_shape is not None else loaded.input_shape
    arch = read(named, shape, **_options(plan, loaded, named, num_classes))
    return loaded, preview(arch, loaded)


def _options(path: Path, plan: Plan, model: str, num_classes: int | None) -> dict[str, Any]:
    """Return what to create the network with: what was said, else what the plan or the result beside it says."""
    recorded = plan.options if model == plan.model else {}
    classes = num_classes if num_classes is not None else recorded.get("num_classes")
    if classes is None and "num_classes" not in recorded:
        result = load_result(path.parent) or {}  # beside the plan; it may be of another network
        found = result.get("options", {}).get("num_classes") if result.get("model") == model else None
        classes = found if isinstance(found, int) else None
    channels = plan.input_shape[-3] if len(plan.input_shape) > 2 else 3
    return {**recorded, **model_options(model, channels, classes)}


def planned(plan: Plan, steps: Sequence[Step]) -> Tree:
    """Return a plan as a tree: edits, below each what it changes."""
    count = f"{len(steps)} edit{'' if len(steps) == 1 else 's'}"
    tree = Tree(Text(f"plan for {plan.model}, input {shape_words(plan.input_shape[1:])}, {count}", style="bold"))
    for step in steps:
        branch = tree.add(Text(step.headline))
        inner = branch
        for line in step.lines():
            if line.startswith("  "):
                inner.add(Text(line.strip()))
            else:
                inner = branch.add(Text(line))
    tree.add(Text(total(steps), style="bold"))
    return tree

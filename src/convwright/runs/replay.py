"""``convwright apply``: a plan on a fresh copy of its network."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from convwright.cost import count_by_torch, profile
from convwright.edits import InexactEditWarning, Plan, apply
from convwright.runs.files import load_weights, save_weights
from convwright.runs.opening import model_options


def replay(
    plan: Path,
    model: str,
    *,
    weights: Path | None = None,
    save: Path | None = None,
    num_classes: int | None = None,
) -> dict[str, Any]:
    """Replay a plan.

    Args:
        plan: The file.
        model: The network that it was made for, as for `read`.
        weights: Weights of the changed network, as saved with the plan.
        save: Where to write the changed network's weights.
        num_classes: Outputs of the network; None: as recorded beside the plan.

    Returns:
        Plain JSON values: costs before and after, per edit whether it was exact.

    Raises:
        EditError: The plan is no plan, or was made for another network.
        ReadError: The network cannot be made.
        RunError: The weights do not fit the changed network.
    """
    loaded = Plan.load(plan)
    classes = num_classes if num_classes is not None else _recorded_classes(plan, model)
    options: dict[str, Any] = model_options(model, loaded.input_shape[-3], classes)
    with warnings.catch_warnings():  # what is not exact stands in the answer
        warnings.simplefilter("ignore", InexactEditWarning)
        arch = apply(loaded, model, None, verify=True, **options)
    if weights is not None:
        load_weights(arch.model, weights)
    if save is not None:
        save_weights(arch.model, save)
    costs = profile(arch)
    return {
        "model": arch.source,
        "options": options,
        "edits": len(loaded.edits),
        "before": {"macs": loaded.macs, "params": loaded.params},
        "after": {
            "macs": costs.macs,
            "macs_by_torch": count_by_torch(arch.model, arch.example_input),
            "params": costs.params,
        },
        "changes": [
            {**c.edit.to_dict(), "exact": c.exact, "max_difference": c.max_difference, "notes": list(c.notes)}
            for c in arch.changes
        ],
        "saved": str(save) if save is not None else None,
    }


def _recorded_classes(plan: Path, model: str) -> int | None:
    """Return the classes that the result beside the plan was made with, if it is of the same network."""
    try:
        recorded = json.loads((plan.parent / "result.json").read_text(encoding="utf-8"))
        same = recorded["model"] == model
        return int(recorded["options"]["num_classes"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

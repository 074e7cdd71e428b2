"""Plans: edits as a file that a person can read, and that replays on a fresh copy of the model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn

from convwright.architecture.architecture import Architecture
from convwright.architecture.reading import InputLike, read
from convwright.edits.edit import EDITS, Change, Edit, Importance, Options, Outcome, edit_from_dict
from convwright.edits.measure import EXACT
from convwright.edits.optimizers import optimizer_follows
from convwright.errors import ConvwrightError, EditError, ReadError

FORMAT = "convwright plan"
VERSION = 1

__all__ = ["Change", "Edit", "Importance", "Plan", "apply", "apply_edits"]


class InexactEditWarning(UserWarning):
    """An edit could not keep the function exactly; the measured difference is in ``changes``."""


@dataclass(frozen=True)
class Plan:
    """A list of edits, and the network they are for.

    Attributes:
        edits: the edits, in order.
        model: where the network came from, e.g. ``"torchvision:resnet18"``.
        input_shape: shape of the example input that it was read with.
        params: parameters of the original network: a plan is refused for a network with another count.
        macs: MACs of the original network per sample.
    """

    edits: tuple[Edit, ...]
    model: str
    input_shape: tuple[int, ...]
    params: int
    macs: int

    @classmethod
    def empty(cls, architecture: Architecture) -> Plan:
        """Return the plan that changes nothing."""
        costs = architecture.profile()
        shape = tuple(architecture.example_input.shape)
        return cls((), architecture.source, shape, costs.params, costs.macs)

    def with_edits(self, *edits: Edit) -> Plan:
        """Return a plan with these edits at the end."""
        return replace(self, edits=(*self.edits, *edits))

    def to_json(self) -> str:
        """Return the plan as JSON, one edit per line."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "input_shape": list(self.input_shape),
            "params": self.params,
            "macs": self.macs,
        }
        lines = [json.dumps(edit.to_dict()) for edit in self.edits]
        body = json.dumps(head, indent=2)[:-2]
        listed = ",\n    ".join(lines)
        return f'{body},\n  "edits": [' + (f"\n    {listed}\n  " if lines else "") + "]\n}\n"

    @classmethod
    def from_json(cls, text: str, origin: str = "the plan") -> Plan:
        """Read a plan from JSON.

        Raises:
            EditError: if it is not a plan, is of a newer version, or has unknown edits.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise EditError(f"{origin} is not JSON: {error}.") from error
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise EditError(f"{origin} is not a convwright plan: it has no 'format': '{FORMAT}'.")
        if values.get("version") != VERSION:
            raise EditError(f"{origin} has version {values.get('version')}; this convwright reads version {VERSION}.")
        try:
            return cls(
                edits=tuple(edit_from_dict(e) for e in values["edits"]),
                model=str(values["model"]),
                input_shape=tuple(int(s) for s in values["input_shape"]),
                params=int(values["params"]),
                macs=int(values["macs"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EditError(f"{origin} is damaged: {type(error).__name__} {error}.") from error

    def save(self, path: str | Path) -> None:
        """Write the plan; a half-written file is never left under its name."""
        target = Path(path)
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_text(self.to_json(), encoding="utf-8")
        temporary.replace(target)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a file.

        Raises:
            EditError: if the file is missing or is no plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EditError(f"the plan {path} cannot be read: {error}.") from error
        return cls.from_json(text, str(path))


def apply(
    plan: Plan, model: nn.Module | str, example_input: InputLike = None, *, verify: bool = True, **kwargs: Any
) -> Architecture:
    """Replay a plan on a fresh copy of the model it was made for.

    Args:
        plan: the plan.
        model: the network, in its original form; it is not changed.
        example_input: as for ``read``; the plan's own input shape by default.
        verify: measure the difference to the original.
        **kwargs: passed to the constructor of a named model.

    Returns:
        The changed architecture; its ``model`` takes the state dict that was saved with the plan.

    Raises:
        EditError: if the plan was made for another network.
    """
    architecture = read(model, plan.input_shape if example_input is None else example_input, **kwargs)
    params = architecture.profile().params
    if params != plan.params:
        raise EditError(
            f"this plan was made for {plan.model} with {plan.params:,} parameters; "
            f"{architecture.source} has {params:,}. Build the original network with the same options."
        )
    return apply_edits(architecture, plan.edits, verify=verify) if plan.edits else architecture


def apply_edits(
    architecture: Architecture,
    edits: Sequence[Edit],
    *,
    divisor: int = 1,
    importance: Any = "l2",
    verify: bool = True,
    optimizer: Any = None,
) -> Architecture:
    """Apply edits to a copy of an architecture's model; see ``Architecture.apply``."""
    if not edits:
        return architecture
    options = Options(divisor=_checked(divisor), importance=importance, verify=verify)
    current = architecture
    moves = []
    for kind, run in groupby(edits, key=lambda e: getattr(e, "kind", "")):
        if kind not in EDITS:
            raise EditError(f"{kind or edits} is not an edit; see convwright.edits.")
        outcome = EDITS[kind][1](current, list(run), options)
        current = _succeed(current, outcome, verify)
        moves.append(outcome)
    if optimizer is not None:
        for outcome in moves:
            optimizer_follows(optimizer, outcome.model, outcome.moved)
    return current


def _checked(divisor: int) -> int:
    if not isinstance(divisor, int) or divisor < 1:
        raise EditError(f"the divisor must be a whole number from 1 on, not {divisor!r}.")
    return divisor


def _succeed(before: Architecture, outcome: Outcome, verify: bool) -> Architecture:
    """Record what happened; if asked to verify, read the changed model and check it against what was predicted."""
    exact = None if outcome.max_difference is None else outcome.max_difference <= EXACT
    after = Architecture(
        outcome.model,
        before.example_input if outcome.example_input is None else outcome.example_input,
        before.source,
        applied=before.plan.with_edits(*outcome.edits),
    )
    if verify:
        _check_prediction(after, outcome)
    costs = before.profile()
    changes = []
    now = (costs.macs, costs.params)
    steps = outcome.steps or (_counted(after),) * len(outcome.edits)
    for edit, step, coupled, notes in zip(outcome.edits, steps, outcome.coupled, outcome.notes, strict=True):
        pair = ((now[0], step[0]), (now[1], step[1]))
        changes.append(Change(edit, exact, outcome.max_difference, *pair, coupled, notes))
        now = step
    if exact is False and not any(getattr(edit, "approximate", False) for edit in outcome.edits):
        _warn(changes)
    return after.evolved(changes=(*before.changes, *changes))


def _counted(architecture: Architecture) -> tuple[int, int]:
    costs = architecture.profile()
    return costs.macs, costs.params


def _check_prediction(after: Architecture, outcome: Outcome) -> None:
    """The counted costs must equal the predicted ones: else the surgery missed something."""
    try:
        costs = after.profile()
    except ReadError as error:
        raise EditError(f"the changed network cannot be read; nothing was changed. {error}") from error
    if outcome.steps and outcome.steps[-1] != (costs.macs, costs.params):
        raise ConvwrightError(
            f"predicted {outcome.steps[-1]} MACs and parameters, counted {(costs.macs, costs.params)} after the edit. "
            "This is a defect of convwright; please report the network."
        )


def _warn(changes: Sequence[Change]) -> None:
    notes = list(dict.fromkeys(note for change in changes for note in change.notes))
    why = f" ({notes[0]}{', ...' if len(notes) > 1 else ''})" if notes else ""
    warnings.warn(
        f"the function is not kept exactly: measured difference {changes[0].max_difference:.2g}{why}",
        InexactEditWarning,
        stacklevel=5,
    )

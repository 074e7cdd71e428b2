"""Plans: edits as a file that a person can read, and that replays on a fresh copy of the model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convwright.architecture.architecture import Architecture
from convwright.architecture.capture.graph import depends_on_values
from convwright.architecture.reading import InputLike, read
from convwright.cost.counts import counted_macs, counted_params
from convwright.edits.constraints import Divisor, DivisorLike
from convwright.edits.edit import EDITS, Change, Edit, Importance, Options, Outcome
from convwright.edits.execution_check import with_remedy
from convwright.edits.origins import followed
from convwright.edits.plan_file import (
    called,
    check_head,
    edits_of,
    options_from,
    plain_options,
    shape_from,
    text_of,
    values_of,
)
from convwright.edits.replace import Replace
from convwright.edits.summary import summary
from convwright.edits.surgery import optimizer_follows
from convwright.edits.width import Width
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
        options: what the original was created with where it has a name, e.g. ``{"num_classes": 10}``: plain
            values only, and none that loads weights.
        inputs: shapes by name, as for ``read``, where the network takes several tensors.
    """

    edits: tuple[Edit, ...]
    model: str
    input_shape: tuple[int, ...]
    params: int
    macs: int
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    inputs: str = ""

    @property
    def example(self) -> InputLike:
        """What its network is read with."""
        pairs = [part.partition("=") for part in self.inputs.split(",") if part]
        whole = {name: torch.empty([int(n) for n in shape.split("x")], device="meta") for name, _, shape in pairs}
        return whole or self.input_shape  # as tensors: of a shape such as 1x5, read could not tell that it has a batch

    def __str__(self) -> str:
        lines = [f"{i}. {summary(edit)}" for i, edit in enumerate(self.edits, start=1)]
        return "\n".join([f"plan for {self.model}, {len(lines)} edit{'' if len(lines) == 1 else 's'}", *lines])

    @classmethod
    def empty(cls, architecture: Architecture) -> Plan:
        """Return the plan that changes nothing."""
        macs, params = _counted(architecture)
        shape = tuple(architecture.example_input.shape)
        named = {} if architecture.given is None else dict(architecture.inputs.named(architecture.model))
        plain = all(name.isidentifier() and tensor.is_floating_point() for name, tensor in named.items())
        inputs = ",".join(f"{name}={'x'.join(map(str, tensor.shape))}" for name, tensor in named.items()) * plain
        return cls((), architecture.source, shape, params, macs, plain_options(architecture.options), inputs)

    def with_edits(self, *edits: Edit) -> Plan:
        """Return a plan with these edits at the end."""
        return replace(self, edits=(*self.edits, *edits))

    def to_json(self) -> str:
        """Return the plan as JSON, one edit per line."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            **({"options": dict(self.options)} if self.options else {}),
            "input_shape": list(self.input_shape),
            **({"inputs": self.inputs} if self.inputs else {}),
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
        values = values_of(text, origin)
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise EditError(f"{origin} is not a convwright plan: it has no 'format': '{FORMAT}'.")
        try:
            check_head(values, VERSION, origin)
            return cls(
                edits=edits_of(values["edits"], origin),
                model=values["model"],
                input_shape=shape_from(values["input_shape"], origin),
                params=values["params"],
                macs=values["macs"],
                options=options_from(values.get("options", {}), origin),
                inputs=values.get("inputs", ""),
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
        return cls.from_json(text_of(Path(path)), str(path))


def apply(
    plan: Plan, model: nn.Module | str, example_input: InputLike = None, *, verify: bool = True, **kwargs: Any
) -> Architecture:
    """Replay a plan on a fresh copy of the model it was made for.

    Args:
        plan: the plan.
        model: the network, in its original form; it is not changed.
        example_input: as for ``read``; the plan's own inputs by default.
        verify: measure the difference to the original.
        **kwargs: passed to the constructor of a named model, beside the options in the plan.

    Returns:
        The changed architecture; its ``model`` takes the state dict that was saved with the plan.

    Raises:
        EditError: if the plan was made for another network, or an edit is refused; the message has its number.
    """
    if isinstance(model, str) and model == plan.model:
        kwargs = {**plan.options, **kwargs}
    architecture = read(model, plan.example if example_input is None else example_input, **kwargs)
    check_made_for(plan, architecture)
    return _applied(architecture, plan.edits, Options(verify=verify), numbered=True)


def check_made_for(plan: Plan, architecture: Architecture) -> None:
    """Refuse a plan that was made for another network.

    Raises:
        EditError: if the number of parameters differs.
    """
    params = architecture.profile().params
    if params != plan.params:
        raise EditError(
            f"this plan was made for {plan.model} with {plan.params:,} parameters; "
            f"{architecture.source} has {params:,}. Build the original network with the same options."
        )


def apply_edits(
    architecture: Architecture,
    edits: Sequence[Edit],
    *,
    divisor: DivisorLike = 1,
    importance: Any = "l2",
    verify: bool = True,
    optimizer: Any = None,
) -> Architecture:
    """Apply edits to a copy of an architecture's model; see ``Architecture.apply``."""
    return _applied(architecture, edits, Options(Divisor.of(divisor), importance, verify, optimizer))


def _applied(
    architecture: Architecture, edits: Sequence[Edit], options: Options, numbered: bool = False
) -> Architecture:
    done = list(passages(architecture, edits, options, numbered))
    for passage in done:
        _warn_if_inexact(passage)
        if options.optimizer is not None:
            optimizer_follows(options.optimizer, passage.outcome.model, passage.outcome.moved)
    return done[-1].after if done else architecture


@dataclass(frozen=True, eq=False)
class Passage:
    """One run of edits of a kind, carried out together.

    Attributes:
        before: the network before it.
        edits: the edits as they were given.
        outcome: what carrying them out gave.
        after: the network after it.
    """

    before: Architecture
    edits: tuple[Edit, ...]
    outcome: Outcome
    after: Architecture


def passages(
    architecture: Architecture, edits: Sequence[Edit], options: Options, numbered: bool = False
) -> Iterator[Passage]:
    """Carry out edits run by run, and yield the networks before and after each run.

    Args:
        architecture: the network to begin with.
        edits: the edits.
        options: how they are carried out.
        numbered: name a refused edit by its number.

    Raises:
        EditError: if an edit is refused.
    """
    current, count = architecture, 0
    for number, edit in enumerate(edits, start=1):
        if getattr(edit, "kind", "") not in EDITS:
            raise EditError(f"{edit!r} is not an edit; see convwright.edits.")
        target = getattr(edit, "target", "")
        if not isinstance(target, str):
            raise EditError(f"edit {number} ({edit.kind}) names {target!r}; a target is the name of a layer or block.")
    for _, grouped in groupby(edits, key=lambda e: e.kind):
        run = tuple(grouped)
        while run:
            turn = _without_repeats(run) if numbered or isinstance(run[0], Width) else run
            passage = _first_passage(current, turn, options, numbered, count)
            yield passage
            current, count, run = passage.after, count + len(passage.edits), run[len(passage.edits) :]


def _without_repeats(run: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """Return the edits of a run before one names a target again: that one is applied after them."""
    seen: set[object] = set()
    for number, edit in enumerate(run):
        target = getattr(edit, "target", None)
        if target is not None and target in seen:
            return run[:number]
        seen.add(target)
    return run


def _first_passage(
    current: Architecture, run: tuple[Edit, ...], options: Options, numbered: bool, count: int
) -> Passage:
    """Carry out a run; of a plan that is replayed, the longest beginning of the run that can be done at once.

    A plan does not say which of its edits were applied together. A second edit of one block, or of what an earlier
    edit put there, can only be meant to come after it.
    """
    try:
        return _passage(current, run, options)
    except EditError as error:
        if not numbered:
            raise
        which, reason = _refused(current, run, options, error)
        if which:
            return _passage(current, run[:which], options)
        raise EditError(f"{called(count + 1, run[0])} is refused, nothing was changed: {reason}") from error


def _passage(current: Architecture, run: tuple[Edit, ...], options: Options) -> Passage:
    for edit in run:
        if isinstance(edit, Width) and edit.repairs:
            _check_repairs(current, edit.repairs)
    carry_out = EDITS[run[0].kind][1]
    fresh = tuple(replace(e, repairs=None) if isinstance(e, Width) and e.repairs else e for e in run)
    try:
        outcome = carry_out(current, run, options)
    except EditError as error:
        if fresh == run:
            raise with_remedy(current, run, error) from error
        outcome = carry_out(current, fresh, options)  # a plan edited by hand: stored sizes are found anew
    return Passage(current, run, outcome, _succeed(current, outcome))


def _check_repairs(architecture: Architecture, repairs: Mapping[str, Any]) -> None:
    modules = dict(architecture.model.named_modules())
    for name, value in repairs.items():
        path, _, attribute = name.rpartition(".")
        module = modules.get(path)
        own = [] if module is None else [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own and type(module).__module__.startswith("torch.nn"):
            raise EditError(f"its repairs name {name}: a {type(module).__name__} has the sizes of its weights.")
        stored = vars(module).get(attribute) if module is not None and not attribute.startswith("_") else None
        rows = [v if isinstance(v, list | tuple) else (v,) for v in (stored, value)]
        whole = all(row and all(isinstance(v, int) and not isinstance(v, bool) for v in row) for row in rows)
        if not whole or isinstance(stored, list | tuple) != isinstance(value, list | tuple):
            raise EditError(f"its repairs name {name}, which is no size that a module of {architecture.source} stores.")


def _refused(current: Architecture, run: tuple[Edit, ...], options: Options, error: EditError) -> tuple[int, EditError]:
    """Return which edit of a failing run is refused, and why: the last of the shortest beginning that fails."""
    works, fails = 0, len(run)
    while fails - works > 1:
        middle = (works + fails) // 2
        try:
            _passage(current, run[:middle], replace(options, verify=False))
        except EditError as earlier:
            fails, error = middle, earlier
        else:
            works = middle
    return fails - 1, error


def _succeed(before: Architecture, outcome: Outcome) -> Architecture:
    """Record what happened; the changed model is captured, and must cost what was predicted."""
    measured = outcome.max_difference
    exact, difference = (None, None) if measured is None else (measured.exact, measured.difference)
    if measured is not None and not (measured.exact or measured.rounding or all(outcome.notes)):
        named = ", ".join(dict.fromkeys(getattr(edit, "target", edit.kind) for edit in outcome.edits))
        raise EditError(
            f"{named} cannot change this way: the result differs from what the edit promises by {difference:.2g}, and "
            "convwright does not know why. Nothing was changed; please report the network."
        )
    after = Architecture(
        outcome.model,
        before.example_input if outcome.example_input is None else outcome.example_input,
        before.source,
        applied=before.plan.with_edits(*outcome.edits),
        options=before.options,
        constraints=before.constraints,
        origins=followed(before, outcome),
        captured=before.captured,
        free_outputs=before.free_outputs,
        given=before.given if outcome.example_input is None else None,
    )
    if outcome.capture is not None:
        after.__dict__["capture"] = replace(outcome.capture, free_outputs=before.free_outputs)
    _check_prediction(after, outcome)
    changes = []
    now = _counted(before)
    steps = outcome.steps or (_counted(after),) * len(outcome.edits)
    keeps = outcome.keeps or (False,) * len(outcome.edits)
    each = zip(outcome.edits, steps, outcome.coupled, outcome.notes, keeps, strict=True)
    for edit, step, coupled, notes, kept in each:
        pair = ((now[0], step[0]), (now[1], step[1]))
        said = (*notes, *(measured.notes if measured is not None else ()))
        changes.append(Change(edit, exact, difference, *pair, coupled, said, kept and exact is True))
        now = step
    return after.evolved(changes=(*before.changes, *changes))


def _counted(architecture: Architecture) -> tuple[int, int]:
    return counted_macs(architecture), counted_params(architecture)


def _check_prediction(after: Architecture, outcome: Outcome) -> None:
    """The counted costs must equal the predicted ones: else the surgery missed something."""
    try:
        counted = _counted(after)
    except ReadError as error:
        raise EditError(f"the changed network cannot be read; nothing was changed. {error}") from error
    by_values = any(map(depends_on_values, after.capture.graph.nodes))  # such as how many boxes there are
    if outcome.steps and outcome.steps[-1] != counted and not by_values:
        raise ConvwrightError(
            f"predicted {outcome.steps[-1]} MACs and parameters, counted {counted} after the edit. "
            "This is a defect of convwright; please report the network."
        )


def _warn_if_inexact(passage: Passage) -> None:
    changes = passage.after.changes[len(passage.before.changes) :]
    if changes[0].exact is not False or isinstance(changes[0].edit, Replace):
        return  # who puts in another operator asks for another function
    notes = list(dict.fromkeys(note for change in changes for note in change.notes))
    why = f" ({notes[0]}{', ...' if len(notes) > 1 else ''})" if notes else ""
    warnings.warn(
        f"the function is not kept exactly: measured difference {changes[0].max_difference:.2g}{why}",
        InexactEditWarning,
        stacklevel=5,
    )

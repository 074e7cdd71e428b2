"""Stored sizes are repaired and remembered; plan files from anywhere are read as data, or refused promptly."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from edit_checks import check_edited, check_plan, check_same, snapshot
from random_networks import Ghost, Net, Split, randomised

from convwright.architecture import Architecture, read
from convwright.edits import Plan, Width, apply
from convwright.errors import EditError

EMPTY: list[int] = []
GHOST = Net(steps=(Ghost(7), Ghost(11)))
SPLIT = Net(steps=(Split((5, 7), 3), Split((5, 7), 5)))


def reading(net: Net) -> Architecture:
    return read(net.randomised(), net.input())


@functools.cache
def ghost_plan() -> str:
    return reading(GHOST).apply(Width("steps.0.primary", 3)).plan.to_json()


def test_a_stored_size_follows_and_is_written_into_the_plan() -> None:
    arch = reading(SPLIT)
    target = arch.groups[[g.name.startswith("steps.0.wide") for g in arch.groups].index(True)].name
    new = arch.apply(Width(target, 3))
    (edit,) = new.plan.edits
    assert edit.repairs == {"steps.0.parts": [3, 7]}
    assert (new.model.steps[0].parts, arch.model.steps[0].parts) == ([3, 7], [5, 7])
    assert new.model.steps[1].parts == [5, 7]
    assert new.changes[0].exact
    check_edited(arch, new, 1)
    check_plan(arch, new, randomised(SPLIT.build(), 5), SPLIT.input())


def replayed(changes: dict[str, object]) -> None:
    """Replay a plan with other repairs; it is refused, or works, and the model stays as it is."""
    values = json.loads(ghost_plan())
    values["edits"][0]["repairs"] = changes
    model = GHOST.randomised()
    before = snapshot(model)
    try:
        apply(Plan.from_json(json.dumps(values)), model, GHOST.input())
    finally:
        check_same(model, before)


@pytest.mark.parametrize(
    "name",
    [
        "__class__", "steps.0.__class__", "steps.0.__dict__", "steps.0._modules", "steps.0.forward", "steps.0.primary",
        "steps.0.training", "steps.9.out_channels", "../../etc.size", "steps.0.primary.weight", "", ".",
        "..out_channels",
        "steps.0.forward.__globals__", "steps.0.out_channels.__class__", "steps.0.absent", "steps.0.primary.forward",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [3, [1, 2]])
def test_repairs_of_anything_but_stored_sizes_are_refused(name: str, value: object) -> None:
    with pytest.raises(EditError):
        replayed({name: value})


@pytest.mark.parametrize("value", [None, "3", 2.5, True, {}, EMPTY, ["a"], [[1]], [None], {"a": 1}])
def test_repairs_to_anything_but_whole_numbers_are_refused(value: object) -> None:
    with pytest.raises(EditError):
        replayed({"steps.0.out_channels": value})


@pytest.mark.parametrize("value", [0, -1, 10**9, 10**30])
def test_repairs_to_wrong_sizes_are_found_anew_or_refused(value: int) -> None:
    try:
        replayed({"steps.0.out_channels": value})
    except EditError as error:
        assert str(error)  # noqa: PT017


# ------------------------------------------------------------------ plan files


def test_a_plan_cut_anywhere_is_refused() -> None:
    text = ghost_plan().rstrip()
    for end in range(len(text)):
        with pytest.raises(EditError):
            Plan.from_json(text[:end])


@pytest.mark.parametrize("field", ["edits", "model", "input_shape", "params", "macs"])
@pytest.mark.parametrize("value", [None, 5, "x", [1, "a"], {"a": 1}, [[]], True, 1e400, -(10**40)])
def test_fields_of_a_wrong_type_are_refused_or_the_plan_is_for_another_network(field: str, value: object) -> None:
    values = json.loads(ghost_plan())
    values[field] = value
    try:
        plan = Plan.from_json(json.dumps(values))
        apply(plan, GHOST.randomised(), GHOST.input())
    except EditError:
        return
    assert field in ("model", "macs", "input_shape")


@pytest.mark.parametrize("field", ["target", "size", "keep"])
@pytest.mark.parametrize("value", [None, -5, "x", [1, "a"], {"a": 1}, {"a": [None]}, True, 10**9, 1e300])
def test_edits_with_fields_of_a_wrong_type_are_refused(field: str, value: object) -> None:
    if field == "keep" and value in (None, {"a": [None]}, {"a": 1}):
        return  # nothing, or another group's
    values = json.loads(ghost_plan())
    values["edits"][0][field] = value
    with pytest.raises(EditError):
        apply(Plan.from_json(json.dumps(values)), GHOST.randomised(), GHOST.input())


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 900 + "]" * 900,
        "1" * 10_000,
        "NaN",
        "\x00",
        "\ufeff{}",
        '"' + "x" * 10**6,
    ],
    ids=["brackets", "braces", "closed", "digits", "nan", "null", "mark", "long"],
)
def test_bombs_are_refused(text: str) -> None:
    with pytest.raises(EditError):
        Plan.from_json(text)


def test_a_number_of_hundreds_of_digits_is_refused_wherever_it_stands() -> None:
    plan = json.loads(ghost_plan())
    plan["edits"][0]["target"] = 10**400
    with pytest.raises(EditError, match="is the largest"):
        Plan.from_json(json.dumps(plan))


def test_a_width_of_billions_takes_no_memory() -> None:
    arch = reading(GHOST)
    for size in (10**9, 10**12, 10**30):
        with pytest.raises(EditError):
            arch.apply(Width("stem", size))


def test_nothing_is_drawn_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    reading(GHOST).apply(Width("steps.0.primary", 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_weight_that_its_own_code_computes_is_refused_in_words() -> None:
    layer = torch.nn.utils.parametrizations.orthogonal(torch.nn.Conv2d(4, 6, 3))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), layer, torch.nn.Flatten(), torch.nn.Linear(6 * 16, 3))
    arch = read(model.eval(), torch.zeros(2, 3, 8, 8))
    for verify in (True, False):
        with pytest.raises(
            EditError, match=r"1 cannot change: its channels are frozen, .* carries no channels at matmul"
        ):
            arch.apply(Width("1", 5), verify=verify)

"""Plans: readable, replayable, refused for other networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import Plain, Residual, Shuffled

from convwright.architecture import read
from convwright.edits import Plan, Width, apply, scale_widths
from convwright.errors import EditError

SHAPE = (3, 11, 13)

widths = st.builds(
    Width,
    st.text(min_size=1, max_size=20),
    st.integers(1, 4096),
    st.none() | st.dictionaries(st.text(min_size=1, max_size=9), st.lists(st.integers(0, 99), min_size=1), min_size=1),
)


@given(st.lists(widths, max_size=5), st.text(max_size=20), st.integers(1, 10**12))
def test_plans_survive_json(edits: list[Width], model: str, count: int) -> None:
    plan = Plan(tuple(edits), model, (1, 3, 32, 32), count, count)
    assert Plan.from_json(plan.to_json()) == plan


def test_each_edit_is_one_line(tmp_path: Path) -> None:
    new = read(Residual(), SHAPE).apply(Width("a", 5), Width("stem", 4))
    new.plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    assert '    {"edit": "width", "target": "a", "size": 5},\n' in text
    assert json.loads(text)["edits"][1] == {"edit": "width", "target": "stem", "size": 4}
    assert list(tmp_path.iterdir()) == [tmp_path / "plan.json"]


@pytest.mark.parametrize("network", [Residual, Shuffled])
@pytest.mark.parametrize("ratio", [0.6, 2.0])
def test_a_plan_replays_to_the_same_network(network: type, ratio: float) -> None:
    torch.manual_seed(1)
    model = network()
    arch = read(model, SHAPE)
    new = arch.apply(*scale_widths(arch, ratio))
    again = apply(Plan.from_json(new.plan.to_json()), model)
    for (name, a), (_, b) in zip(new.model.state_dict().items(), again.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    fresh = apply(new.plan, network(), SHAPE)
    fresh.model.load_state_dict(new.model.state_dict())
    assert fresh.plan == new.plan


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"repairs": {"a.kernel_size": [9, 9]}}, "a Conv2d has the sizes of its weights"),
        ({"repairs": {"a.in_channels": 99}}, "a Conv2d has the sizes of its weights"),
        ({"keep": {"nix": [0]}}, "no layer or group called 'nix'"),
        ({"keep": {"stem": [0, 1]}}, "which channels of stem to keep, and stem loses none"),
    ],
)
def test_plans_that_lie_are_refused(more: dict[str, object], said: str) -> None:
    arch = read(Residual(), SHAPE)
    values = json.loads(arch.apply(Width("a", 5)).plan.to_json())
    values["edits"][0] |= more
    with pytest.raises(EditError, match=said):
        apply(Plan.from_json(json.dumps(values)), Residual())


def test_edits_in_steps_add_up_in_the_plan() -> None:
    arch = read(Residual(), SHAPE)
    steps = arch.apply(Width("a", 5)).apply(Width("stem", 4))
    assert steps.plan == arch.apply(Width("a", 5), Width("stem", 4)).plan
    assert len(steps.changes) == 2


def test_a_plan_for_another_network_is_refused() -> None:
    plan = read(Residual(), SHAPE).apply(Width("a", 5)).plan
    with pytest.raises(EditError, match="made for Residual with"):
        apply(plan, Plain(), SHAPE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "not a convwright plan"),
        ('{"format": "convwright plan", "version": 99}', "version 99"),
        ('{"format": "convwright plan", "version": 1}', "damaged"),
        (
            '{"format": "convwright plan", "version": 1, "edits": [{"edit": "wdith"}], "model": "x", '
            '"input_shape": [1], "params": 1, "macs": 1}',
            "Did you mean width",
        ),
        (
            '{"format": "convwright plan", "version": 1, "edits": [{"edit": "width", "sise": 1}], "model": "x", '
            '"input_shape": [1], "params": 1, "macs": 1}',
            "Did you mean size",
        ),
        (
            '{"format": "convwright plan", "version": 1, "edits": [{"edit": "width"}], "model": "x", '
            '"input_shape": [1], "params": 1, "macs": 1}',
            "incomplete",
        ),
    ],
)
def test_what_is_no_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(EditError, match=message):
        Plan.from_json(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EditError, match=r"none.json"):
        Plan.load(tmp_path / "none.json")


def test_edits_that_name_a_target_again_are_applied_one_after_the_other():
    arch = read("zoo:resnet20", "3x32x32")
    first, second = Width("layer1.0.conv1", 12, {"layer1.0.conv1": range(4, 16)}), Width("layer1.0.conv1", 8)
    together = arch.apply(first, second, verify=False).model
    singly = arch.apply(first, verify=False).apply(second, verify=False).model
    assert torch.equal(together.layer1[0].conv1.weight, singly.layer1[0].conv1.weight)

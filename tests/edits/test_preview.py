"""Plans as a person reads and edits them: previews, mistakes made by hand, options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import Residual
from torch import Tensor, nn

from convwright.architecture import Architecture, read
from convwright.edits import (
    AddBlock,
    Kernel,
    Plan,
    RemoveBlock,
    Replace,
    Resolution,
    Width,
    apply,
    preview,
    scale_widths,
    tree,
)
from convwright.errors import EditError

SHAPE = (3, 11, 13)


class Ghost(nn.Module):
    """Stores a size beside its tensors, and cuts by it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = 6
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.cheap = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        both = torch.cat([x, self.cheap(x)], 1)
        first, second = both.split([self.kept, self.kept], 1)
        return self.head(torch.cat([second, first], 1).mean((2, 3)))


@pytest.fixture(scope="module")
def resnet() -> Architecture:
    torch.manual_seed(0)
    return read("zoo:resnet20", num_classes=7)


@pytest.fixture(scope="module")
def short() -> Architecture:
    """The same with fewer blocks, where no count of the whole network is asked for."""
    torch.manual_seed(0)
    return read("zoo:resnet20", num_classes=7, depths=[2, 1, 1])


ALL = (
    Width("conv1", 12),
    RemoveBlock("layer1.1"),
    AddBlock("layer2.1", copies=2),
    Kernel("layer3.1.conv1", 5),
    Replace("layer3.1.conv2", "dw_rpw", groups=2),
    Resolution(24),
)


@pytest.mark.few(1)
def test_a_preview_foretells_what_applying_does(resnet: Architecture) -> None:
    steps = preview(resnet, ALL)
    changes = resnet.apply(*ALL).changes
    assert [(s.macs, s.params) for s in steps] == [(c.macs, c.params) for c in changes]
    assert [s.edit for s in steps] == [c.edit for c in changes]
    assert [(s.before, s.after) for s in steps] == [
        ("16", "12"),
        ("residual block of 7 layers", "removed, its input goes on"),
        ("1 residual block", "3"),
        ("3x3", "5x5"),
        ("Conv2d", "dw_rpw(groups=2)"),
        ("3x32x32", "3x24x24"),
    ]
    assert [s.number for s in steps if s.approximate] == [5]
    json.dumps([s.as_dict() for s in steps])


@pytest.mark.breadth
def test_a_preview_says_why_layers_are_coupled(resnet: Architecture) -> None:
    (group,) = preview(resnet, ALL[:1])[0].groups
    assert group.written == ("conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2")
    assert group.joined == ("layer1.0.add", "layer1.1.add", "layer1.2.add")
    assert group.along == ("bn1", "layer1.0.bn2", "layer1.1.bn2", "layer1.2.bn2")
    assert "layer2.0.downsample.0" in group.read
    text = tree(preview(resnet, ALL))
    assert "joined at layer1.0.add" in text
    assert text.splitlines()[-1].startswith("in total: MACs 40,812,992 -> ")


def test_a_plan_prints_itself(resnet: Architecture) -> None:
    text = str(Plan.empty(resnet).with_edits(*ALL))
    assert text.splitlines()[:2] == ["plan for zoo:resnet20, 6 edits", "1. width conv1 -> 12"]
    assert "6. resolution -> 24" in text


def test_stored_sizes_are_shown_and_found_anew_after_an_edit_by_hand() -> None:
    model = Ghost()
    arch = read(model, SHAPE)
    plan = arch.apply(Width("conv", 4)).plan
    assert preview(arch, plan)[0].repairs == {".kept": 4}
    assert "stored size kept becomes 4" in tree(preview(arch, plan))
    values = json.loads(plan.to_json())
    values["edits"][0]["size"] = 5
    by_hand = Plan.from_json(json.dumps(values))
    assert next(iter(preview(arch, by_hand)[0].repairs.values())) == 5
    assert apply(by_hand, model).model.kept == 5


@pytest.mark.few(2)
@pytest.mark.parametrize("change", ["a width", "an edit", "keep"])
def test_a_plan_edited_by_hand_replays(change: str, short: Architecture) -> None:
    edits = (*scale_widths(short, {"layer1.0.conv1": 0.5, "layer2.0.conv1": 2.0}), RemoveBlock("layer1.1"))
    plan = short.apply(*edits, importance=lambda group, arch: torch.arange(group.units)).plan
    values = json.loads(plan.to_json())
    assert values["edits"][0]["keep"]
    if change == "a width":
        values["edits"][1]["size"] = 40
    elif change == "an edit":
        del values["edits"][0]
    else:
        del values["edits"][0]["keep"]
    by_hand = Plan.from_json(json.dumps(values))
    assert len(preview(short, by_hand)) == len(apply(by_hand, "zoo:resnet20").changes) == len(values["edits"])


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a layer that is not there": (
        {"edit": "width", "target": "layer1.0.conv9", "size": 8},
        r"edit 3 \(width of layer1.0.conv9\) .*no layer",
    ),
    "a frozen group": ({"edit": "width", "target": "fc", "size": 8}, r"edit 3 \(width of fc\) .*frozen"),
    "a wrong count of channels": (
        {"edit": "width", "target": "layer2.0.conv1", "size": 3, "keep": {"layer2.0.conv1": [0, 1]}},
        r"edit 3 \(width of layer2.0.conv1\) .*keep 3 different",
    ),
    "a repair of nothing": (
        {"edit": "width", "target": "layer2.0.conv1", "size": 3, "repairs": {"layer9.size": 3}},
        r"edit 3 \(width of layer2.0.conv1\) .*layer9.size",
    ),
    "a repair of a function": (
        {"edit": "width", "target": "layer2.0.conv1", "size": 3, "repairs": {"conv1.forward": 3}},
        r"edit 3 .*conv1.forward",
    ),
    "a block that must stay": ({"edit": "remove_block", "target": "layer2.0"}, r"edit 3 \(remove block of layer2.0\)"),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_by_its_number(mistake: str, short: Architecture) -> None:
    edit, message = MISTAKES[mistake]
    values = json.loads(short.apply(Width("conv1", 12), Width("layer1.0.conv1", 8)).plan.to_json())
    values["edits"].append(edit)
    plan = Plan.from_json(json.dumps(values))
    before = {name: tensor.clone() for name, tensor in short.model.state_dict().items()}
    for carry_out in (lambda: preview(short, plan), lambda: apply(plan, short.model)):
        with pytest.raises(EditError, match=message):
            carry_out()
    assert all(torch.equal(tensor, before[name]) for name, tensor in short.model.state_dict().items())


def altered(**fields: Any) -> str:
    values = {"format": "convwright plan", "version": 1, "model": "x", "input_shape": [1, 3, 8, 8]}
    return json.dumps({**values, "params": 1, "macs": 1, "edits": [], **fields})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (altered(edits=[{"edit": "width", "target": "a", "size": "8"}]), r"edit 1 \(width of a\): its 'size' must be"),
        (altered(edits=[{"edit": "width", "target": 3, "size": 8}]), "'target' must be a name"),
        (altered(edits=[{"edit": "width", "target": "a", "size": 10**9}]), "largest"),
        (altered(edits=[{"edit": "width", "target": "a", "size": True}]), "whole number"),
        (altered(edits=[{"edit": "width", "target": "a", "size": 8, "keep": {"a": "01"}}]), "lists of whole numbers"),
        (altered(edits=[{"edit": "width", "target": "a" * 2000, "size": 8}]), "more than 1000 characters"),
        (altered(edits=["width"]), "edit 1: it must be an object"),
        (altered(edits={"edit": "width"}), "must be a list"),
        (altered(input_shape=[1, 3, 10**8, 10**8]), "no shape of an image"),
        (altered(input_shape=[1, 3, 0, 8]), "no shape of an image"),
        (altered(options=[1]), "must be an object"),
        (altered(options={"checkpoint_path": "x.pt"}), "does not load weights"),
        (altered(options={"a": [[[[[[[[1]]]]]]]]}), "nested"),
        ("[" * 100_000, "not JSON"),
        (altered().replace('"params": 1', '"params": NaN'), "NaN is no number"),
        (altered(model="x" * 10_000_001), "more than 10,000,000"),
    ],
)
def test_untrusted_values_are_refused(text: str, message: str) -> None:
    with pytest.raises(EditError, match=message):
        Plan.from_json(text)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with path.open("wb") as file:
        file.truncate(10_000_001)
    with pytest.raises(EditError, match="more than 10,000,000 bytes"):
        Plan.load(path)


def test_a_plan_remembers_how_its_network_was_created(short: Architecture) -> None:
    plan = Plan.from_json(short.apply(Width("conv1", 8)).plan.to_json())
    assert plan.options == {"num_classes": 7, "depths": [2, 1, 1]}
    assert apply(plan, "zoo:resnet20").model.fc.out_features == 7
    assert "options" not in read(Residual(), SHAPE).plan.to_json()
    without = {k: v for k, v in json.loads(plan.to_json()).items() if k != "options"}
    with pytest.raises(EditError, match="this plan was made for zoo:resnet20"):
        apply(Plan.from_json(json.dumps(without)), "zoo:resnet20")

"""Costs in widths, copies of blocks and resolution together: equal to the counted network, at random settings."""

import numpy as np
import pytest
import torch
from torch import nn

import convwright as cw
from convwright.cost import count_by_torch
from convwright.cost.stage_costs import StageCosts
from convwright.errors import BudgetError, EditError

CASES = [
    ("resnet20", {"widths": (4, 6, 10), "depths": (2, 1, 2)}, ("layer1.1", "layer3.1"), (19, 32)),
    ("mobilenet-v2", {"width": 0.25, "depths": (1, 2, 1, 1, 1, 1, 1)}, ("stage2.1",), (29, 37)),
    ("mobilenet-v1", {"width": 0.25, "depths": (1, 1, 1, 2, 1)}, (), (17, 33)),
    ("cifar-b", {}, (), (21, 32)),
    pytest.param("vgg16-bn", {"width": 0.125}, (), (33, 40), marks=pytest.mark.slow),
    pytest.param("ghostnet", {}, ("stage2.1", "stage6.4"), (37, 240), marks=pytest.mark.slow),
    pytest.param("ghostnet-large", {}, ("stage1.0", "stage6.1"), (31, 232), marks=pytest.mark.slow),
    pytest.param("efficientnet-b0", {}, ("stage2.1", "stage6.1"), (47, 248), marks=pytest.mark.slow),
]


def counted(arch):
    found = arch.profile()
    return {"macs": found.macs, "params": found.params}


def counted_by_torch(model, *sides):
    return {
        "macs": count_by_torch(model, torch.empty(1, 3, *sides)),
        "params": sum(p.numel() for p in model.parameters()),
    }


@pytest.mark.few(2)
@pytest.mark.parametrize(("name", "options", "blocks", "sides"), CASES)
def test_equal_to_the_built_network(name, options, blocks, sides):
    arch = cw.read(f"zoo:{name}", "3x32x32", **options)
    costs = StageCosts.of(arch, blocks)
    random = np.random.default_rng(len(name))
    widths = {g.name: g.step * int(random.integers(1, 2 * g.units + 1)) for g in arch.free_groups if not g.tied}
    copies = {block: int(random.integers(1, 4)) for block in blocks}
    edits = [cw.Width(n, size) for n, size in widths.items()]
    edits += [cw.AddBlock(n, copies=more) for n, more in copies.items()]
    built = arch.apply(*edits, importance="first", verify=False).model
    for side in sides:
        assert costs.costs(widths, copies, side) == counted_by_torch(built, side, side)


def test_a_block_that_is_absent():
    arch = cw.read("zoo:resnet20", "3x17x17", widths=(5, 7, 11))
    costs = StageCosts.of(arch, ("layer2.2", "layer2.1"))
    built = arch.apply(cw.RemoveBlock("layer2.2"), verify=False)
    assert costs.costs({}, {"layer2.2": -1}, 17) == counted(built)
    with pytest.raises(BudgetError, match="-1 takes it out"):
        costs.costs({}, {"layer2.2": -2}, 17)


class Rearranged(nn.Module):
    """A network whose shape operations are written with sizes of the image: it has to be read anew."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(24, 5, 1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = self.first(x)
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)
        return self.fc(self.second(x).mean((2, 3)))


def test_a_network_that_must_be_read_anew():
    arch = cw.read(Rearranged(), "1x3x17x17")
    costs = StageCosts.of(arch)
    kept = StageCosts.of(cw.Constraints(keep=("first",)).bound(arch))
    assert kept.costs({}, {}, 21) == costs.costs({}, {}, 21)  # read anew with the user's constraints
    for side in (17, 21, 33):
        assert costs.costs({"first": 11}, {}, side) == counted(
            arch.apply(cw.Width("first", 11), cw.Resolution(side), verify=False)
        )


def test_a_fixed_resolution_is_said():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 13 * 13, 3))
    arch = cw.read(model, "1x1x13x13")
    costs = StageCosts.of(arch)
    assert costs.refusal(13) == ""
    assert "21x21" in costs.refusal(21)
    assert costs.costs({"0": 7}, {}, 13) == counted(arch.apply(cw.Width("0", 7), verify=False))
    with pytest.raises(BudgetError, match="does not take inputs"):
        costs.costs({}, {}, 21)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_is_counted_per_sample(batch):
    arch = cw.read("zoo:resnet20", (batch, 3, 16, 16), depths=(1, 1, 1))
    assert StageCosts.of(arch).costs({}, {}, 24) == counted_by_torch(arch.model, 24, 24)


def test_rectangles_follow_each_axis():
    arch = cw.read("zoo:mobilenet-v2", (1, 3, 31, 47), width=0.25, depths=(1, 1, 1, 1, 1, 1, 1))
    costs = StageCosts.of(arch)
    assert costs.costs({}, {}, (53, 29)) == counted_by_torch(arch.model, 53, 29)


def test_wrong_names_and_numbers_are_refused():
    arch = cw.read("zoo:resnet20", "3x16x16", depths=(1, 1, 1))
    costs = StageCosts.of(arch)
    with pytest.raises(BudgetError, match="no free channel group is called"):
        costs.costs({"layer9": 3}, {}, 16)
    with pytest.raises(BudgetError, match=r"layer1\.0 is none of the blocks"):
        costs.costs({}, {"layer1.0": 1}, 16)
    with pytest.raises(BudgetError, match="resolution"):
        costs.costs({}, {}, (16, 16, 16))
    with pytest.raises(EditError):
        StageCosts.of(arch, ("nothing",))


def test_pools_round_as_they_do():
    model = nn.Sequential(
        nn.Conv2d(3, 5, 5, stride=3, padding=1), nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(5, 7, 3, dilation=2, padding=1), nn.AvgPool2d(2),
        nn.Conv2d(7, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    arch = cw.read(model, "1x3x41x41")
    costs = StageCosts.of(arch)
    for side in (37, 43, 53, 64):
        assert costs.costs({}, {}, side) == counted_by_torch(model, side, side)

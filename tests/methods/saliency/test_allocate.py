"""Allocation: budgets are met and used, by the exact costs, and the loss is that of the exact optimum or close."""

import itertools

import numpy as np
import pytest
import torch

import convwright as cw
from convwright.architecture import read
from convwright.cost import costs_of, parse_budget, profile
from convwright.cost.budget import Limits
from convwright.edits.constraints import Constraints
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods.saliency import allocate, allocation, blocks_worth


@pytest.fixture(scope="module")
def resnet():
    return read("zoo:resnet20", "3x16x16", widths=[24, 32, 64], depths=[2, 2, 1])


def limits_of(arch, budget):
    return parse_budget(budget).resolve(profile(arch))


def drawn(arch, seed):
    rng = np.random.default_rng(seed)
    return {group.name: rng.exponential(rng.exponential(), group.units) for group in arch.free_groups}


def optimum(arch, scores, limits, multiple):
    """Return the least saliency lost by trying all widths."""
    model = arch.cost_model()
    sizes = [[g.size, *(w for w in range(g.size - 1, 0, -1) if w % multiple == 0)] for g in arch.free_groups]
    table = np.array(list(itertools.product(*sizes)))
    worth = [np.append(0, np.cumsum(np.sort(scores[name]))) for name in model.groups]
    lost = np.sum([w[size - table[:, i]] for i, (w, size) in enumerate(zip(worth, model.sizes, strict=True))], axis=0)
    fits = np.all([model.costs(table, [m])[m] <= limit for m, limit in limits.limits.items()], axis=0)
    floor = np.all(table >= 0.1 * model.sizes, axis=1)
    return lost[fits & floor].min()


@pytest.mark.parametrize("budget", ["macs<=50%", "params<=30%", "macs<=70%, params<=40%", "activations<=70%"])
def test_it_is_the_exact_optimum_or_close(budget):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        *(torch.nn.Conv2d(i, o, 3, padding=1) for i, o in ((1, 16), (16, 24), (24, 12), (12, 20))),
        torch.nn.Flatten(),
        torch.nn.Linear(20 * 64, 3),
    )
    arch = read(model, (1, 1, 8, 8))
    limits, ratios = limits_of(arch, budget), []
    for seed in range(12):
        scores = drawn(arch, seed)
        found = allocation(arch, scores, limits, divisor=2)
        ratios.append(found.lost / optimum(arch, scores, limits, 2))
    assert min(ratios) >= 1 - 1e-9
    # The peak of memory is that of two groups together, which no single step lowers: there a draw may be far off.
    assert np.median(ratios) < 1 + 1e-9
    assert np.mean(ratios) < (1.1 if "activations" in budget else 1.02)
    assert np.mean(np.array(ratios) < 1 + 1e-9) >= 0.5


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["zoo:resnet20", "zoo:mnist-a", "timm:ghostnet_100", "torchvision:shufflenet_v2_x0_5"])
@pytest.mark.parametrize("budget", ["macs<=50%", "macs<=25%", "params<=40%, macs<=60%", "weights<=50%"])
def test_budgets_are_met_and_used_on_networks_of_all_kinds(name, budget):
    arch = read(name, "1x28x28" if "mnist" in name else "3x32x32")
    limits, scores = limits_of(arch, budget), drawn(arch, 3)
    new = arch.apply(*allocate(arch, scores, budget), verify=False)
    costs = costs_of(profile(new))
    used = max(costs[metric] / limit for metric, limit in limits.limits.items())
    assert 0.95 <= used <= 1


def test_a_budget_that_needs_less_than_a_tenth_of_the_channels_is_met(resnet):
    limits = limits_of(resnet, "macs<=1%")
    assert allocation(resnet, drawn(resnet, 0), limits, divisor=1).use > 0.8


def test_the_narrowest_widths_are_judged_by_the_estimate_itself(resnet):
    present = resnet.cost_model().sizes.sum()

    def estimate(widths):  # steep at first: slopes say too little of what the last step saves
        return 0 if sum(widths.values()) <= len(widths) else 100 - 0.01 * (present - sum(widths.values()))

    limits = Limits({"latency": 50}, {"latency": estimate})
    sizes = [edit.size for edit in allocation(resnet, drawn(resnet, 0), limits, divisor=1).edits]
    assert sizes == [1] * len(resnet.free_groups)


def test_the_channels_of_least_saliency_go(resnet):
    scores = drawn(resnet, 1)
    edits = allocate(resnet, scores, "macs<=60%")
    for edit in edits:
        for name, kept in edit.keep.items():
            gone = np.delete(scores[name], kept)
            assert not len(gone) or gone.max() <= scores[name][kept].min()
    new = resnet.apply(*edits)
    assert all(change.exact for change in new.changes)


def test_widths_suit_kernels_unless_a_number_is_stated(resnet):
    found = allocation(resnet, drawn(resnet, 2), limits_of(resnet, "macs<=50%"))
    wanted = [found.divisor.of_width(resnet.group(edit.target).size) for edit in found.edits]
    assert wanted
    assert all(edit.size % multiple == 0 for edit, multiple in zip(found.edits, wanted, strict=True))
    assert found.divisor.part == 1 or found.use > 0.97
    stated = allocate(resnet, drawn(resnet, 2), "macs<=50%", divisor=1)
    assert any(edit.size % 8 for edit in stated)


def test_constraints_hold(resnet):
    constraints = Constraints(keep="layer2.0.conv1", ratio={"layer1.*": (0.75, 1)})
    new = resnet.apply(*allocate(resnet, drawn(resnet, 4), "macs<=60%", constraints), verify=False)
    assert new.group("layer2.0.conv1").size == resnet.group("layer2.0.conv1").size
    assert new.group("layer1.1.conv1").size >= 0.75 * resnet.group("layer1.1.conv1").size


def test_blocks_go_where_the_widths_they_save_are_worth_more(resnet):
    scores, limits = drawn(resnet, 5), limits_of(resnet, "macs<=50%")
    widths = allocation(resnet, scores, limits)
    free = allocation(resnet, scores, limits, blocks={"layer1.0": 0.0, "layer1.1": 0.0})
    dear = allocation(resnet, scores, limits, blocks={"layer1.0": 1e9, "layer1.1": np.inf})
    assert dear.edits == widths.edits
    assert {e.target for e in free.edits if isinstance(e, cw.RemoveBlock)} >= {"layer1.0"}
    assert free.lost < widths.lost
    new = resnet.apply(*free.edits, verify=False)
    assert limits.met(costs_of(profile(new)))


def test_what_a_block_is_worth_is_read_off_the_measured_curve():
    curve = [[0, 0], [1, 0.1], [4, 0.2], [9, 0.2]]
    worth = blocks_worth({"blocks": {"a": 0.15, "b": -1.0, "c": 0.5, "d": None}, "curve": curve, "loss": 1.0})
    assert worth == {"a": pytest.approx(2.5), "b": 0.0, "c": np.inf}
    assert blocks_worth(None) == blocks_worth({"blocks": {}, "curve": [], "loss": 1.0}) == {}


def test_a_network_within_the_budget_stays(resnet):
    assert allocate(resnet, drawn(resnet, 0), "macs<=120%") == ()


@pytest.mark.parametrize(
    ("scores", "budget", "error", "message"),
    [
        ({"layer1.0.conv9": np.ones(24)}, "macs<=50%", ConvwrightError, "no channel group.*layer1.0.conv1"),
        ({"layer1.0.conv1": np.ones(7)}, "macs<=50%", ConvwrightError, r"of shape \(7,\); give 24 numbers"),
        ({"layer1.0.conv1": np.full(24, np.nan)}, "macs<=50%", ConvwrightError, "are not finite"),
        ({"layer1.0.conv1": np.ones(24)}, "macs<=1%", BudgetError, "no widths.*raise the budget"),
        ({}, "macs<=0%", BudgetError, "positive number"),
    ],
)
def test_what_cannot_be_is_refused(resnet, scores, budget, error, message):
    with pytest.raises(error, match=message):
        allocate(resnet, scores, budget)


def test_constraints_are_taken_as_everywhere_and_from_one_place(resnet, tmp_path):
    (tmp_path / "c.yaml").write_text("keep: layer1.*")
    scores = drawn(resnet, 0)
    found = [
        allocate(resnet, scores, "macs<=70%", given)
        for given in (Constraints(keep="layer1.*"), {"keep": ["layer1.*"]}, tmp_path / "c.yaml")
    ]
    bound = Constraints(keep="layer1.*").bound(resnet)
    free = {group.name: scores[group.name] for group in bound.free_groups}
    assert found == [allocate(bound, free, "macs<=70%")] * 3
    with pytest.raises(ConvwrightError, match="is bound to constraints already"):
        allocate(bound, free, "macs<=70%", {"keep": "layer2.*"})


@pytest.mark.parametrize(("blocks", "message"), [({"layer1.7": 1.0}, "does not exist"), ({"layer1.0": np.nan}, "nan")])
def test_worths_of_blocks_are_checked(resnet, blocks, message):
    with pytest.raises(ConvwrightError, match=message):
        allocate(resnet, drawn(resnet, 0), "macs<=50%", blocks=blocks)

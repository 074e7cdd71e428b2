import math

import pytest
import torch
from torch import nn

from convwright.architecture import read
from convwright.cost import costs_of, parse_budget, profile
from convwright.errors import BudgetError
from convwright.methods import Evidence, Uniform
from convwright.methods.shared.uniform_widths import uniform_widths


@pytest.fixture(scope="module")
def resnet():
    return read("zoo:resnet20", "1x16x16", in_channels=1, depths=(2, 1, 1))


def limits_of(arch, budget):
    return parse_budget(budget).resolve(profile(arch))


def built_costs(arch, edits):
    return costs_of(profile(arch.apply(*edits, importance="first", verify=False)))


def evidence(candidate, number, costs, score=0.5, **kwargs):
    return Evidence(candidate, number, score, 0.01, costs, **kwargs)


def played(method, arch):
    """Answer everything that a method asks, by counting alone; return the batches."""
    batches, number = [], 0
    while batch := method.ask():
        batches.append(batch)
        for candidate in batch:
            costs = built_costs(arch, candidate.plan.edits) if candidate.plan.edits else costs_of(profile(arch))
            method.tell(evidence(candidate, number, costs))
            number += 1
    return batches


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("budget", "least"),
    [
        ("macs<=50%", 0.98),
        ("macs<=10%", 0.97),
        ("params<=30%", 0.98),
        ("macs<=50% and params<=30%", 0.98),
        ("macs<=200%", 0.98),
        ("params<=40k", 0.98),
    ],
)
@pytest.mark.parametrize("divisor", [1, 4])
def test_the_budget_is_met_from_below_and_used(resnet, budget, least, divisor):
    limits = limits_of(resnet, budget)
    edits = uniform_widths(resnet, limits, divisor)
    costs = built_costs(resnet, edits)
    used = max(costs[m] / limit for m, limit in limits.limits.items())
    assert limits.met(costs)
    assert used >= (least if divisor == 1 else least - 0.03)
    assert all(e.size % divisor == 0 or e.size < divisor for e in edits)


@pytest.mark.parametrize(
    ("network", "budget", "odd"),
    [
        ("zoo:resnet20", "macs<=50%", 0),
        ("zoo:resnet20", "macs<=140%", 0),
        ("zoo:resnet20", "macs<=4%", None),
        ("zoo:mnist-a", "params<=1500", None),
    ],
)
def test_auto_takes_multiples_as_long_as_they_use_the_budget(network, budget, odd):
    arch = read(network)
    limits = limits_of(arch, budget)
    edits = uniform_widths(arch, limits, "auto")
    costs = arch.cost_model().costs({e.target: e.size for e in edits})
    assert limits.met({metric: int(cost) for metric, cost in costs.items()})
    assert max(costs[m] / limit for m, limit in limits.limits.items()) >= 0.97
    wrong = [e for e in edits if arch.group(e.target).size >= 16 and e.size % 8]
    assert (not wrong) if odd == 0 else (arch.free_groups[0].size < 16 or wrong)
    if odd == 0:
        assert all(e.size % 16 == 0 for e in edits if arch.group(e.target).size >= 64)


def test_all_groups_get_nearly_one_ratio(resnet):
    edits = uniform_widths(resnet, limits_of(resnet, "macs<=50%"))
    ratios = [e.size / resnet.group(e.target).size for e in edits]
    assert len(edits) == len(resnet.free_groups)
    assert max(ratios) - min(ratios) < 0.1


def test_a_budget_of_everything_changes_nothing(resnet):
    assert uniform_widths(resnet, limits_of(resnet, "macs<=100%")) == ()


def test_growing_does_not_break_a_second_limit(resnet):
    assert uniform_widths(resnet, limits_of(resnet, "macs<=200%, params<=100%")) == ()


def test_a_limit_on_memory_does_not_regrow_what_costs_nothing(resnet):
    edits = uniform_widths(resnet, limits_of(resnet, "activations<=60%"))
    ratios = [e.size / resnet.group(e.target).size for e in edits]
    assert len(edits) == len(resnet.free_groups)
    assert max(ratios) < 0.8


class Split(nn.Module):
    """Two equal parts of one convolution: their sizes are tied."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, padding=1)
        self.branch = nn.Conv2d(10, 10, 3, padding=1)
        self.fc = nn.Linear(20, 4)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, 1)
        return self.fc(torch.cat([left, self.branch(right)], 1).mean((2, 3)))


def test_tied_groups_keep_their_proportion():
    arch = read(Split(), "3x8x8")
    assert any(group.tied for group in arch.free_groups)
    limits = limits_of(arch, "macs<=40%")
    edits = uniform_widths(arch, limits)
    new = arch.apply(*edits, verify=False)
    assert limits.met(costs_of(profile(new)))
    assert new.model.stem.out_channels == 2 * new.model.branch.in_channels


def test_an_unreachable_divisor_is_refused(resnet):
    with pytest.raises(BudgetError, match="divisor 16; raise the budget or lower the divisor"):
        uniform_widths(resnet, limits_of(resnet, "macs<=5%"), divisor=16)


def test_it_asks_for_the_base_then_baseline_and_candidate(resnet):
    limits = limits_of(resnet, "macs<=50%")
    method = Uniform(resnet, limits, epochs=3, tune_epochs=2, seed=7)
    (base,), (baseline, candidate) = played(method, resnet)
    assert (base.parent, base.epochs, base.seed, base.plan.edits) == (None, 3, 7, ())
    assert (baseline.role, baseline.parent, baseline.plan.edits) == ("baseline", 0, ())
    assert (candidate.role, candidate.parent) == ("candidate", 0)
    assert (baseline.epochs, baseline.seed) == (candidate.epochs, candidate.seed)
    assert method.best().trial == 2
    assert limits.met(method.best().costs)
    assert method.ask() == ()


def test_it_is_resumed_by_telling_it_again(resnet):
    limits = limits_of(resnet, "macs<=50%")
    first = Uniform(resnet, limits, epochs=3, tune_epochs=2)
    batches = played(first, resnet)
    for done in range(4):
        method = Uniform(resnet, limits, epochs=3, tune_epochs=2)
        flat = [c for batch in batches for c in batch]
        for number, candidate in enumerate(flat[:done]):
            method.tell(evidence(candidate, number, {"macs": 0}))
        left = {0: batches[0], 1: batches[1], 2: batches[1][1:], 3: ()}[done]
        assert method.ask() == left


def test_without_a_base_there_is_nothing_to_do(resnet):
    method = Uniform(resnet, limits_of(resnet, "macs<=50%"), epochs=1, tune_epochs=1)
    (base,) = method.ask()
    method.tell(evidence(base, 0, {}, math.nan, status="failed", message="the loss became nan"))
    assert method.ask() == ()
    assert method.best() is None


def test_a_result_over_the_limit_is_not_the_best(resnet):
    limits = limits_of(resnet, "macs<=50%")
    method = Uniform(resnet, limits, epochs=1, tune_epochs=1)
    method.tell(evidence(method.batches[1][1], 2, {"macs": limits.limits["macs"] + 1}))
    assert method.best() is None


def test_it_reads_no_weights(resnet):
    other = read("zoo:resnet20", "1x16x16", in_channels=1, depths=(2, 1, 1))
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.fill_(float("nan"))
    limits = limits_of(resnet, "macs<=50%")
    one, two = (Uniform(a, limits, epochs=1, tune_epochs=1) for a in (resnet, other))
    assert one.batches == two.batches

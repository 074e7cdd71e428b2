"""What can go wrong in a channel search: failed trials, no quality, budgets and options that cannot be."""

import math

import pytest
from channel_worlds import World, hungry, limits_of, small, widths
from torch import nn

from convwright.architecture import read
from convwright.cost.budget import Limits
from convwright.errors import BudgetError, ConvwrightError, RunError
from convwright.methods import ChannelSearch, Evidence
from convwright.methods.shared.width_surface import Surface


@pytest.fixture(scope="module")
def plain():
    return small("chain")


@pytest.mark.parametrize("mode", ["corrected", "parity"])
def test_a_failed_trial_is_rejected_and_the_widths_go_back(plain, mode):
    method = ChannelSearch(plain, epochs=2, trials=7, mode=mode)
    world = World(plain, hungry(plain)[1], fails=lambda number: number in (0, 3)).play(method)
    steps = method.history
    assert [step["accepted"] for step in steps][:5] == [False, True, True, False, True]
    assert steps[1]["widths"] == steps[0]["widths"]  # there is nothing to go back to: the start again
    assert steps[4]["widths"] == steps[2]["widths"]
    assert len(steps) == 7
    assert world.batches[1][0].parent is None
    assert world.batches[4][0].parent == 2
    assert steps[3]["network"] is None
    assert "it broke" in method.log[3]
    assert method.best().trial == 7


@pytest.mark.parametrize("rule", ["greedy", "annealing"])
def test_going_back_below_the_budget_still_ends_on_it(plain, rule):
    """The first trial that is allowed the whole budget fails; the smaller one that is repeated is not the result."""
    limits = limits_of(plain, "macs<=200%")
    method = ChannelSearch(plain, limits, epochs=2, trials=4, start=3, rule=rule)
    World(plain, hungry(plain)[1], fails=lambda number: number == 2).play(method)
    macs = [step["costs"]["macs"] for step in method.history]
    assert macs[3] == macs[1] < 0.9 * limits.limits["macs"]
    assert method.best().costs["macs"] > 0.99 * limits.limits["macs"]


@pytest.mark.parametrize("mode", ["corrected", "parity"])
def test_two_failures_in_a_row_end_the_search(plain, mode):
    method = ChannelSearch(plain, epochs=2, trials=20, mode=mode)
    world = World(plain, fails=lambda number: number in (4, 5)).play(method)
    assert len(method.history) == 6
    assert "2 failed in a row, it broke" in method.log[-1]
    assert method.best().trial == 6
    assert world.batches[-1][0].epochs == 2
    nothing = ChannelSearch(plain, epochs=2, trials=20, mode=mode)
    World(plain, fails=lambda number: True).play(nothing)
    assert nothing.best() is None
    assert "no final network" in nothing.log[-1]


@pytest.mark.parametrize("mode", ["corrected", "parity"])
@pytest.mark.parametrize("value", [0.0, None, math.nan])
def test_no_quality_anywhere_ends_the_search(plain, mode, value):
    class Nan(World):
        def observed(self, number, candidate, sizes):
            layers = sorted({m.layer for listed in self.members.values() for m in listed})
            table = {"layers": layers, "metrics": {"qc": [[[value, value]] * len(layers)]}}
            return {"channel-quality": table}

    method = ChannelSearch(plain, epochs=2, trials=20, mode=mode)
    Nan(plain).play(method)
    assert len(method.history) == 3
    assert "no kernel had any quality in 3 trials" in method.log[-1]
    assert all("quality" in line for line in method.log[:3])
    assert method.best() is not None


def test_quality_may_be_0_for_a_while_and_in_single_groups(plain):
    method = ChannelSearch(plain, epochs=2, trials=8)
    lame = plain.free_groups[0].name
    World(plain, lambda n, name, size: 0.0 if n < 2 or name == lame else 0.4).play(method)
    assert len(method.history) == 8
    assert widths(method)[0] == widths(method)[1]
    assert lame in method.log[2]
    assert method.history[-1]["widths"][lame] < method.history[0]["widths"][lame]


def test_a_broken_base_or_final(plain):
    method = ChannelSearch(plain, epochs=0, trials=3)
    World(plain, fails=lambda number: number == 0).play(method)
    assert method.best() is None
    assert "nothing to begin with, it broke" in method.log[-1]
    method = ChannelSearch(plain, epochs=1, trials=3)
    World(plain, hungry(plain)[1], fails=lambda number: number == 3).play(method)
    assert method.best().trial in (0, 1, 2)
    assert "its training failed" in method.log[-1]


@pytest.mark.parametrize("mode", ["corrected", "parity"])
@pytest.mark.parametrize("start", ["tiny", "given"])
def test_one_trial_works(plain, mode, start):
    method = ChannelSearch(plain, epochs=2, trials=1, mode=mode, start=start)
    world = World(plain).play(method)
    assert len(world.evidence) == 3
    assert method.best().trial == 1


def test_what_is_not_observed_is_said(plain):
    method = ChannelSearch(plain, epochs=2, trials=2)
    (candidate,) = method.ask()
    method.tell(Evidence(candidate, 0, 0.5, 0.01, {}))
    with pytest.raises(RunError, match="not observed by probe channel-quality"):
        method.ask()


@pytest.mark.parametrize("mode", ["corrected", "parity"])
def test_budgets_out_of_reach_are_refused_at_once(plain, mode):
    with pytest.raises(BudgetError, match=r"cannot be met.*min_width"):
        ChannelSearch(plain, limits_of(plain, "macs<=10%"), epochs=1, mode=mode, min_width=16)
    with pytest.raises(BudgetError, match="cannot be met"):
        ChannelSearch(plain, limits_of(plain, "params<=20"), epochs=1, mode=mode)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_width": 32, "max_width": 16}, "min_width=32 is above max_width=16"),
        ({"trials": 0}, "trials=0"),
        ({"trial_epochs": 1.5}, "trial_epochs=1.5"),
        ({"gamma": 1.0}, "gamma=1.0"),
        ({"gamma": math.nan}, "gamma=nan"),
        ({"start": "huge"}, "start='huge'"),
        ({"mode": "exact"}, "mode='exact'.*'corrected' or 'parity'"),
        ({"rule": "random"}, "rule='random'"),
        ({"metric": "condition"}, "metric='condition'.*qc"),
        ({"transfer": "inherit"}, "transfer='inherit'.*net2wider"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"spread": 0.5}, "spread=0.5"),
    ],
)
def test_wrong_options(plain, changes, message):
    with pytest.raises(ConvwrightError, match=message):
        ChannelSearch(plain, epochs=1, **changes)


def test_steps_outside_the_bounds():
    with pytest.raises(ConvwrightError, match="multiples of 3: none lies from 4 to 5"):
        ChannelSearch(small("concat"), epochs=1, min_width=4, max_width=5)


def test_networks_with_nothing_to_search():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)

        def forward(self, x):
            return self.conv(x)

    with pytest.raises(ConvwrightError, match=r"no channel group whose width can change .*conv"):
        ChannelSearch(read(Fixed(), (1, 1, 5, 5)), epochs=1)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(25, 11), nn.ReLU(), nn.Linear(11, 3))
    with pytest.raises(ConvwrightError, match="kernels of convolutions"):
        ChannelSearch(read(linear, (1, 1, 5, 5)), epochs=1)


def test_frozen_groups_stay(plain):
    frozen = plain.free_groups[2].name
    arch = plain.evolved(fixed={frozen: "the test says so"})
    assert frozen not in {g.name for g in arch.free_groups}
    method = ChannelSearch(arch, limits_of(arch, "macs<=60%"), epochs=1, trials=4)
    world = World(arch, hungry(arch)[1]).play(method)
    assert all(e.target != frozen for evidence in world.evidence for e in evidence.candidate.plan.edits)


def test_surface_answers_latency(plain):
    limits = Limits({"latency": 1000}, {"latency": lambda sizes: 10 * sum(sizes.values())})
    surface = Surface(plain, limits)
    place = surface.project({f.name: 1.0 for f in surface.families})
    assert 0.97 <= place.use <= 1
    assert max(place.widths.values()) - min(place.widths.values()) <= 1

"""`ParetoSearch` in made-up worlds, where accuracy is a known function of the plan."""

import itertools
import math
import zlib
from functools import cache

import pytest
import torch
from channel_worlds import limits_of, small
from hypothesis import given, settings
from hypothesis import strategies as st
from test_auto import Block, World
from torch import nn

from convwright.architecture import read
from convwright.cost import costs_of
from convwright.cost.cost_model import CostModel
from convwright.edits import RemoveBlock, solve
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods import METHODS, ParetoSearch
from convwright.methods.auto.designs import DesignBuilder
from convwright.methods.auto.pareto import objective_costs
from convwright.methods.phased.moves import Scene
from convwright.methods.shared.dominance import dominates
from convwright.methods.shared.halving import rungs


class Small(nn.Module):
    """Two residual blocks and a reduction; widths are primes."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.stem, self.one = nn.Conv2d(1, 13, 3, padding=1), nn.Sequential(Block(13, 11), Block(13, 17))
        self.down, self.fc = nn.Conv2d(13, 23, 3, stride=2, padding=1), nn.Linear(23, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.down(self.one(self.stem(x)))).mean((2, 3)))


@cache
def residual():
    torch.manual_seed(0)
    return read(Small(), (1, 1, 8, 8))


BENCHES, FOUND = {}, {}  # designs are pure functions of network and limits: made once for all tests


@pytest.fixture(autouse=True)
def _shared_designs(monkeypatch):
    monkeypatch.setattr("convwright.methods.auto.pareto.DesignBuilder", shared)


def shared(arch, limits, divisor, top=None):
    """One bench for networks with the same layers and limits."""
    layers = zlib.crc32(str([(n, tuple(t.shape)) for n, t in arch.model.state_dict().items()]).encode())
    key = top is None, layers, str(arch.example_input.shape), limits.describe(), str(dict(limits.limits)), divisor
    return BENCHES.setdefault(key, DesignBuilder(arch, limits, divisor, top))


class Net:
    """A network and widths that are counted, not built."""

    def __init__(self, scene, widths=()):
        self.scene, self.widths = scene, {edit.target: edit for edit in widths}
        solved = solve(scene.arch, list(self.widths.values())).units
        index = scene.arch.channels.index
        self.sizes = {g.name: int(solved[index[g.name]]) * g.step for g in scene.arch.free_groups}
        self.costs = {m: int(cost) for m, cost in CostModel.of(scene.arch).costs(self.sizes).items()}

    @property
    def arch(self):
        """What `World` gives to the truth."""
        return self


class Shared(World):
    """Networks are built for structure only, and once for all tests."""

    def after(self, done, edits):
        scene, widths = Scene(self.arch, limits_of(self.arch, "macs<=50%")), []
        for edit in (*done, *edits):
            if edit.kind == "width":
                widths.append(edit)
                continue
            scene = self.structure(scene, (*widths, edit))
            widths = []
        return Net(scene, widths)

    def built(self, candidate):
        return self.after((), candidate.plan.edits)

    def structure(self, scene, edits):
        key = id(scene.arch), tuple(map(str, edits))
        if key not in FOUND:
            FOUND[key] = scene, scene.after(edits)  # with the first, so that no other gets its id
        return FOUND[key][1]


def pareto(arch, budget=None, **options):
    limits = limits_of(arch, budget) if budget else None
    return ParetoSearch(arch, limits, **{"epochs": 3, "tune_epochs": 2, "search_epochs": 24, "rounds": 0, **options})


def saturating(net):
    """Accuracy rises with the parameters, slower and slower."""
    return 0.9 - 0.3 * math.exp(-net.costs["params"] / 3000)


def saturating_and_late(net):
    """The same; and the wider the last layers against the first, the better."""
    return saturating(net) + 0.002 * net.sizes["down"] / net.sizes["stem"]


def play(method, truth=saturating_and_late, **options):
    return Shared(method.arch, truth, **options).play(method)


# ------------------------------------------------------------------ the objective


@pytest.mark.parametrize(
    ("text", "costs"),
    [
        ("accuracy,macs", ("macs",)),
        ("macs", ("macs",)),
        ("macs,accuracy", ("macs",)),
        ("params , ACCURACY,macs", ("params", "macs")),
        (["activations", "weights"], ("activations", "weights")),
        (("accuracy", "latency"), ("latency",)),
    ],
)
def test_accuracy_is_meant_and_the_order_of_costs_is_kept(text, costs):
    assert objective_costs(text) == costs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy,mac", r"'mac' is unknown; give accuracy and one or two of macs, .*Did you mean"),
        ("accuracy,macs,macs", "macs comes twice"),
        ("accuracy,accuracy,macs", "accuracy comes twice"),
        ("accuracy", "here is no cost"),
        ("macs,params,weights", r"here is 3 costs \(macs, params, weights\)"),
        ("", "'' is unknown"),
        ([], "here is no cost"),
    ],
)
def test_objectives_that_are_none(text, message):
    with pytest.raises(ConvwrightError, match=message):
        objective_costs(text)


def test_latency_is_a_cost_where_the_budget_limits_it():
    with pytest.raises(ConvwrightError, match=r"latency is measured only where .* add .*latency<=100%"):
        pareto(residual(), objective="latency")
    limits = limits_of(residual(), "macs<=90%")
    timed = type(limits)({"latency": 1000}, {"latency": lambda widths: int(15 * sum(widths.values()))})
    method = ParetoSearch(residual(), timed, objective="latency")
    assert [bench.limits.limits["latency"] for bench in method.benches] == [1000, 707, 500, 353]
    assert all(bench.widths_only for bench in method.benches)


@pytest.mark.parametrize(
    ("fitting", "kept"), [(None, [1000]), (lambda limits, network, choose: limits, [1000, 707, 500, 353])]
)
def test_times_that_no_widths_reach_are_tried_where_blocks_may_go(fitting, kept):
    limits = limits_of(residual(), "macs<=50%")
    timed = type(limits)({"latency": 1000}, {"latency": lambda widths: 900}, fitting=fitting)
    method = ParetoSearch(residual(), timed, objective="latency")
    assert [bench.limits.limits["latency"] for bench in method.benches] == kept


# ------------------------------------------------------------------ the course


@pytest.mark.parametrize("objective", [("macs",), ("params", "macs")])
def test_the_course_in_trials(objective):
    method = pareto(residual(), objective=objective, epochs=4, tune_epochs=3, seed=5, points=3, rounds=1)
    world = play(method)
    base, first, *_, last = world.batches
    assert [(c.role, c.parent, c.epochs, c.seed) for c in base] == [("base", None, 4, 5)]
    assert all(c.parent == 0 and c.epochs == first[0].epochs and c.seed == 6 for c in first)
    assert len({c.plan.edits for c in first}) == len(first) >= 6
    *finals, baseline = last
    assert baseline.role == "baseline"
    assert 2 <= len(finals) <= 3
    assert all(c.epochs == 3 for c in finals)
    # Every finalist and the untouched network have as many epochs behind them, and the search keeps to its own.
    assert {world.trained(c) for c in last} == {world.trained(baseline)}
    assert sum(c.epochs for batch in world.batches[1:-1] for c in batch) <= 24
    numbers = [e.trial for e in world.evidence if e.candidate in finals]
    assert method.finals == tuple(numbers)
    assert method.best().trial in numbers
    assert method.ask() == ()
    assert len(method.log) == len(method.decisions)


def test_the_first_population_lies_along_the_front():
    """Without a budget the networks cost about 1, 0.71, 0.5 and 0.35 times the untouched one; with one, of it."""
    for budget, cost in ((None, "macs"), ("params<=61%", "params"), ("params<=83%", "macs")):
        method = pareto(residual(), budget, objective=(cost,))
        world = Shared(residual(), saturating)
        for _ in range(2):
            batch = method.ask()
            for candidate in batch:
                world.evidence.append(world.answer(candidate))
                method.tell(world.evidence[-1])
        top = method.limits.limits.get(cost, costs_of(residual().profile())[cost])
        shares = [e.costs[cost] / top for e in world.evidence[1:]]
        assert max(shares) <= 1
        for level in (0.5**0.5, 0.5, 0.5**1.5):
            assert any(0.93 * level < share <= level for share in shares), (budget, level)
        assert all(method.limits.met(e.costs) for e in world.evidence[1:])


def test_what_is_trained_to_the_end_is_spread_and_not_beaten_by_more_than_a_rounding():
    method = pareto(residual(), search_epochs=32)
    world = play(method)
    ended = [world.evidence[number] for number in method.finals]
    assert len(ended) >= 3
    points = [(e.score, -e.costs["macs"]) for e in ended]
    assert max(cost for _, cost in points) / min(cost for _, cost in points) < 0.55  # costs are negative
    for one in points:
        assert not any(dominates((other[0], other[1] * 1.026), one) and other != one for other in points)
    race = next(e for e in reversed(method.decisions[:-1]) if e.trials)
    alive = [world.evidence[number] for number in race.trials]
    best = max(alive, key=lambda e: e.score)
    assert max(p[0] for p in points) >= best.score  # the end of the front went on


def test_the_result_is_the_most_accurate_within_the_budget_or_else_the_knee():
    limited, free = pareto(residual(), "macs<=80%"), pareto(residual(), objective="params")
    world = play(limited)
    assert limited.best().score == max(world.evidence[n].score for n in limited.finals)
    assert "the most accurate within macs <=" in limited.log[-1]
    # A bend: half of the network is as good as all of it, less is far worse.
    most = residual().profile().params
    world = play(free, lambda net: 0.8 + 0.01 * net.costs["params"] / most - max(0, 0.47 - net.costs["params"] / most))
    best, ended = free.best(), [world.evidence[n] for n in free.finals]
    assert 0.47 < best.costs["params"] / most <= 0.5
    assert best.score < max(e.score for e in ended)
    assert "the knee of the front" in free.log[-1]


def test_neighbours_are_tried_at_their_own_cost():
    method = pareto(residual(), search_epochs=40, rounds=2, objective=("macs", "params"))
    world = play(method)
    seen = 0
    for batch in world.batches[2:-1]:
        for candidate in batch:
            parent = world.evidence[candidate.parent].candidate
            if candidate.plan == parent.plan:
                continue
            seen += 1
            new, old = (world.built(c).costs for c in (candidate, parent))
            assert any(new[metric] <= old[metric] for metric in ("macs", "params"))
    assert seen >= 2
    assert len({e.candidate.plan.edits for e in world.evidence}) == len(
        {frozenset(map(str, e.candidate.plan.edits)) for e in world.evidence}
    )


def test_a_rounding_cheaper_is_no_reason_to_stay():
    """Of two networks at one level the worse one is dominated, though it may cost less by one per cent."""
    method = pareto(residual())
    world = play(method)
    race = next(d for d in method.decisions if d.phase.startswith("rung 1"))
    levels = {}
    for number in race.trials:
        evidence = world.evidence[number]
        levels.setdefault(round(2 * math.log2(evidence.costs["macs"] / residual().profile().macs)), []).append(evidence)
    on = {e.candidate.parent for e in world.evidence if e.candidate.parent in race.trials}
    for found in levels.values():
        going = [e for e in found if e.trial in on]
        if len(on) <= len(levels):
            assert not going or max(found, key=lambda e: e.score) in going


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32), noise=st.sampled_from([0.0, 0.01, 0.1]), spent=st.integers(1, 40), two=st.booleans())
def test_any_noise_any_failures_any_budget(seed, noise, spent, two):
    """Limits hold, epochs are kept to, the result is a final training; told again, all is decided again."""

    def fails(number, candidate):
        return candidate.role == "candidate" and zlib.crc32(f"{seed}{number}".encode()) % 4 == 0

    given_ = {"rounds": 1, "search_epochs": spent, "objective": ("macs", "params") if two else ("params",)}
    method = pareto(residual(), "macs<=70%", **given_)
    world = play(method, noise=noise, fails=fails, seed=seed)
    assert sum(c.epochs for batch in world.batches[1:] for c in batch if c.role == "candidate" and c not in
               world.batches[-1]) <= spent  # fmt: skip
    best = method.best()
    if method.finals:
        assert best.trial in method.finals
    assert best is None or (best.usable and method.limits.met(best.costs))
    replayed, told = pareto(residual(), "macs<=70%", **given_), iter(world.evidence)
    while batch := replayed.ask():
        for candidate in batch:
            evidence = next(told)
            assert evidence.candidate == candidate
            replayed.tell(evidence)
    assert replayed.log == method.log
    assert replayed.best() == best


# ------------------------------------------------------------------ what does not work


def test_failures_are_told():
    method = pareto(residual())
    play(method, fails=lambda number, candidate: True)
    assert method.best() is None
    assert method.log == ("network: there is nothing to begin with, it broke",)
    method = pareto(residual())
    world = play(method, fails=lambda number, candidate: candidate.role == "candidate")
    assert len(world.batches) == 2
    assert method.best() is None
    assert method.log[-1] == "end: no final network: no proposal could be trained"
    assert "failed (it broke)" in method.log[-2]
    method = pareto(residual(), rounds=0)
    play(method, fails=lambda number, candidate: candidate.role == "candidate" and candidate.epochs == 2)
    assert method.finals == ()
    assert method.log[-1] == "end: no final network: it broke"


def test_a_budget_that_no_proposal_reaches_ends_before_any_training():
    with pytest.raises(BudgetError, match=r"no proposal meets params <= 5 .*Raise the budget"):
        pareto(residual(), "params<=5", objective="params")


def test_a_network_with_nothing_to_change():
    arch = read(nn.Sequential(nn.Flatten(), nn.Linear(49, 3)), (1, 1, 7, 7))
    with pytest.raises(ConvwrightError, match="has nothing that method pareto could change"):
        pareto(arch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search_epochs": 0}, "search_epochs=0.*greater than or equal to 1"),
        ({"points": 1}, "points=1 .*greater than or equal to 2"),
        ({"points": True}, "points=True .*valid integer"),
        ({"eta": 1}, "eta=1 .*greater than or equal to 2"),
        ({"rounds": -1}, "rounds=-1 .*greater than or equal to 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConvwrightError, match=message):
        pareto(residual(), **options)


@pytest.mark.parametrize(("name", "budget"), [("mobile", None), ("concat", "params<=61%")])
def test_networks_without_blocks_too(name, budget):
    method = pareto(small(name), budget, search_epochs=8)
    world = play(method, lambda built: 0.5)
    assert method.limits.met(method.best().costs)
    assert all(method.limits.met(e.costs) for e in world.evidence if e.candidate.role == "candidate")


def test_levels_that_widths_cannot_reach_are_left_out():
    """A budget just above the smallest widths: the lower levels are said to be out of reach."""
    arch = read(nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 9, 101)), (1, 1, 5, 5))
    method = pareto(arch, objective="params", search_epochs=4, rounds=0)
    assert len(method.benches) == 4
    tight = pareto(arch, "params<=25%", objective="params", search_epochs=4, rounds=0)
    assert 1 <= len(tight.benches) < 4
    play(tight, lambda built: 0.5)
    assert "cannot be reached by width" in tight.log[0]


# ------------------------------------------------------------------ parts


@given(count=st.integers(1, 60), budget=st.integers(1, 500), eta=st.integers(2, 5), points=st.integers(2, 7))
def test_a_course_keeps_the_budget_and_ends_with_the_points(count, budget, eta, points):
    found = rungs(count, budget, eta, last=points, least=points)
    assert sum(rung.cost for rung in found) <= budget
    assert found[0].count <= count
    assert found[-1].count == min(points, found[0].count)
    for before, after in itertools.pairwise(found):
        assert after.epochs == eta * before.epochs
        assert after.count == max(points, math.ceil(before.count / eta)) < before.count
    if found[0].count < count:
        assert sum(rung.cost for rung in rungs(found[0].count + 1, 10**6, eta, last=points, least=points)) > budget


def test_a_level_makes_what_a_bench_makes():
    arch = residual()
    first, limits = DesignBuilder(arch, limits_of(arch, "macs<=90%")), limits_of(arch, "macs<=47%")
    level, alone = DesignBuilder(arch, limits, top=first), DesignBuilder(arch, limits)
    block = next(b.name for b in arch.blocks if b.kind == "residual")
    for edits in ((), (RemoveBlock(block),)):
        assert level.design("it", edits) == alone.design("it", edits)
        assert level.scene(edits).use == pytest.approx(alone.scene(edits).use)
    width = level.uniform("uniform").edits
    assert level.scene(width).costs == Scene(arch, limits).after(width).costs


def test_pareto_is_the_method_of_that_name():
    assert METHODS["pareto"] is ParetoSearch
    assert ParetoSearch.ranks

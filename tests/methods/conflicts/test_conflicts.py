"""Conflict removal: the published rules, its course with a made-up evaluator, budgets, and what can go wrong."""

import itertools
import json
import math
from dataclasses import replace
from functools import cache

import pytest
from torch import nn

import convwright as cw
from convwright.cost import profile
from convwright.cost.budget import Limits, costs_of
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods import ConflictRemoval, Evidence
from convwright.methods.conflicts.blocks import BlockGroups, pruned, read_conflicts

PUBLISHED = (3, 12, 41, 3)


@pytest.fixture(scope="module")
def arch():
    return cw.read("zoo:resnet20", (3, 16, 16), num_classes=3)


class Unit(nn.Module):
    """A plain unit of two convolutions."""

    def __init__(self, inputs, width, stride=1):
        super().__init__()
        self.one, self.two = nn.Conv2d(inputs, width, 3, stride, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x):
        return self.two(self.one(x).relu()).relu()


@pytest.fixture(scope="module")
def plain():
    widths = [(3, 5, 1), (5, 5, 1), (5, 5, 1), (5, 7, 2), (7, 7, 1), (7, 7, 1)]
    units = [Unit(*each) for each in widths]
    return cw.read(nn.Sequential(*units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 3)), (3, 8, 8))


def bundles(names, *rows, first="start"):
    """What the probe would tell: per moment a block -> share in conflict, or None for NaN."""
    times = [{"event": first if n == 0 else "epoch", "epoch": n, "step": 10 * n} for n in range(len(rows))]
    excess = [[row.get(name, 0.0) for name in names] for row in rows]
    return {"bundles": {"own": {name: n for n, name in enumerate(names)}, "times": times, "excess": excess}}


@cache
def costs_without(arch, gone):
    edits = [cw.RemoveBlock(name) for name in gone]
    return costs_of(profile(arch.apply(*edits, verify=False) if gone else arch))


class World:
    """Trains nothing: a block conflicts, from an epoch on, as long as more than `depth` blocks are there."""

    def __init__(self, arch, hurts=(), depth=0, at=1, worth=None, fail=(), nan=()):
        self.arch, self.hurts, self.depth, self.at = arch, hurts, depth, at
        self.worth, self.fail, self.nan = worth or {}, set(fail), set(nan)
        self.names = [name for stage in BlockGroups.of(arch).stages for name in stage]

    def __call__(self, number, candidate):
        gone = [edit.target for edit in candidate.plan.edits]
        left = [name for name in self.names if name not in gone]
        costs = costs_without(self.arch, tuple(gone))
        if number in self.fail:
            return Evidence(candidate, number, math.nan, 0.0, {}, status="failed", message="the loss became nan")
        bad = {name: 0.25 for name in self.hurts if name in left} if len(left) > self.depth else {}
        bad = {left[0]: None} if number in self.nan else bad
        rows = [bad if n >= self.at or number in self.nan else {} for n in range(candidate.epochs + 1)]
        stop, status = candidate.stop, "done"
        if stop is not None:
            within = int(stop.probe.rpartition("-")[2])
            watched = left[-1:] if "last" in stop.probe else left
            hits = [n for n, row in enumerate(rows) if 1 <= n <= within and any(row.get(w, 0) != 0 for w in watched)]
            if hits:
                rows, status = rows[: hits[0] + 1], "stopped"
        score = 0.9 - sum(self.worth.get(name, 0.001) for name in gone)
        probes = json.loads(json.dumps(bundles(left, *rows))) if candidate.probes else {}
        return Evidence(candidate, number, score, 0.01, costs, probes, status)


def run(method, world, most=60):
    """Run a search to its end; return all evidence."""
    found = []
    for _ in range(most):
        batch = method.ask()
        if not batch:
            return found
        for candidate in batch:
            found.append(world(len(found), candidate))
        for evidence in found[-len(batch) :]:
            method.tell(evidence)
    raise AssertionError("no end")


# ------------------------------------------------------------------ the rules


@pytest.mark.parametrize(
    ("conflicting", "truncate", "coded", "every", "first"),
    [
        (range(20, 60), (3, 12, 5, 3), (3, 12, 4, 3), (3, 12, 5, 0), (3, 12, 5, 3)),
        ({1, 16, 57}, (1, 12, 41, 3), (0, 12, 41, 3), (2, 12, 40, 2), (2, 12, 41, 3)),
        ((), PUBLISHED, PUBLISHED, PUBLISHED, PUBLISHED),
        (range(60), (0, 12, 41, 3), (0, 12, 41, 3), (0, 0, 0, 0), (0, 12, 41, 3)),
    ],
)
def test_published_rules(conflicting, truncate, coded, every, first):
    assert pruned(PUBLISHED, set(conflicting), "truncate", least=0) == truncate
    assert pruned(PUBLISHED, set(conflicting), "truncate", least=0, off_by_one=True) == coded
    assert pruned(PUBLISHED, set(conflicting), "all_groups", least=0) == every
    assert pruned(PUBLISHED, set(conflicting), "first_group", least=0) == first
    for rule, counts in (("truncate", truncate), ("all_groups", every), ("first_group", first)):
        guarded = pruned(PUBLISHED, set(conflicting), rule)
        assert guarded == tuple(max(1, count) for count in counts)


def test_rules_agree_where_conflicts_are_a_step_in_depth():
    for start in range(sum(PUBLISHED) + 1):
        bad = set(range(start, sum(PUBLISHED)))
        assert pruned(PUBLISHED, bad, "truncate", least=0) == pruned(PUBLISHED, bad, "first_group", least=0)


def test_a_group_at_its_guard_does_not_keep_the_others_from_losing_blocks(arch):
    """Found on 120 layers: the second stage was down to one block, which conflicted, and all ended there."""
    assert pruned((3, 1, 1, 3), {3, 4, 6, 7}, "first_group") == (3, 1, 1, 1)
    assert pruned((3, 2, 1, 3), {3, 4, 6, 7}, "first_group", least=(1, 2, 1, 1)) == (3, 2, 1, 1)
    assert pruned((2, 1, 4), {2, 3, 5}, "truncate") == (2, 1, 1)
    groups = BlockGroups.of(arch)
    gone = ("layer2.1", "layer2.2")
    assert groups.cut(gone, {"layer2.0", "layer3.1"}, "first_group", exact=False) == (("layer3.1",), "")


def test_groups_of_a_network(arch, plain):
    groups = BlockGroups.of(arch)
    assert [len(stage) for stage in groups.stages] == [3, 3, 3]
    assert set(groups.fixed) == {"layer2.0", "layer3.0"}
    assert groups.removable(("layer1.0", "layer1.1")) == ("layer2.1", "layer2.2", "layer3.1", "layer3.2")
    assert BlockGroups.of(plain).stages == (("0", "1", "2"), ("3", "4", "5"))
    assert set(BlockGroups.of(plain).fixed) == {"0", "3"}


def test_a_block_that_cannot_go_is_replaced_by_another_or_named(arch):
    groups = BlockGroups.of(arch)
    assert groups.cut((), {"layer2.0"}, "first_group", exact=False) == (("layer2.2",), "")
    chosen, remark = groups.cut((), {"layer2.0", "layer2.1"}, "first_group", exact=True)
    assert chosen == ("layer2.1",)
    assert remark.startswith("layer2.0 stays: block layer2.0 cannot be removed: it changes the shape")
    every = [name for stage in groups.stages for name in stage]
    for rule in ("truncate", "all_groups", "first_group"):
        chosen, _ = groups.cut((), every, rule, exact=False)
        assert all(groups.left(chosen))


# ------------------------------------------------------------------ the course


def test_published_course(plain):
    """Conflict at the last block: pruned, restarted from new weights, until the window is clean."""
    method = ConflictRemoval(plain, epochs=12, seed=5)
    found = run(method, World(plain, hurts=("1", "2", "4", "5"), depth=4))
    trials = [e.candidate for e in found]
    assert [(e.status, e.candidate.role) for e in found] == [
        ("stopped", "candidate"), ("done", "candidate"), ("done", "baseline"),
    ]  # fmt: skip
    assert all(c.weights == "fresh" and c.parent is None for c in trials)
    assert [c.seed for c in trials] == [5, 6, 6]
    assert trials[0].stop.probe == "bundles.last-10"
    assert [e.target for e in trials[1].plan.edits] == ["1", "2"]
    assert trials[2].plan.edits == ()
    assert trials[2].epochs == trials[1].epochs == 12
    assert method.best() is found[1]
    assert "4 of 6 blocks conflict after epoch 1; 1, 2 removed, blocks per stage [1, 3]" in method.log[0]
    json.dumps([decision.to_dict() for decision in method.decisions], allow_nan=False)


@pytest.mark.parametrize(("rule", "left"), [("first_group", [1, 3]), ("all_groups", [1, 1]), ("truncate", [1, 3])])
def test_rules_in_the_course(plain, rule, left):
    method = ConflictRemoval(plain, epochs=3, rule=rule)
    run(method, World(plain, hurts=("1", "2", "4", "5"), depth=5))
    assert list(method.decisions[0].groups) == left


def test_check_before_looks_at_new_weights_first(plain):
    method = ConflictRemoval(plain, epochs=12, check="before")
    found = run(method, World(plain, hurts=("2", "5"), depth=5, at=0))
    assert [e.candidate.epochs for e in found] == [0, 0, 12, 12]
    assert found[1].candidate.weights == found[2].candidate.weights == "fresh"
    assert found[1].candidate.seed == found[2].candidate.seed
    assert found[2].candidate.stop.probe == "bundles.last-9"
    assert "before the first step" in method.log[0]


def test_check_at_the_start_never_ends_a_training(plain):
    method = ConflictRemoval(plain, epochs=4, check="start")
    found = run(method, World(plain, hurts=("2", "5"), depth=0, at=1))
    assert [(e.candidate.epochs, e.candidate.stop) for e in found] == [(0, None), (4, None), (4, None)]


def test_conflicts_outside_the_window_do_not_count(plain):
    found = run(ConflictRemoval(plain, epochs=6, window=2), World(plain, hurts=("2", "5"), at=3))
    assert [e.status for e in found] == ["done", "done"]


def test_a_residual_network_is_watched_at_any_branch(arch):
    method = ConflictRemoval(arch, epochs=5)
    found = run(method, World(arch, hurts=("layer1.2", "layer3.1")))
    assert [len(e.candidate.plan.edits) for e in found] == [0, 1, 2, 0]
    assert run(ConflictRemoval(arch, epochs=5, watch="last"), World(arch, hurts=("layer1.2",)))[0].status == "done"


def test_kept_weights(arch):
    method = ConflictRemoval(arch, epochs=5, restart="inherit")
    found = run(method, World(arch, hurts=("layer1.2", "layer3.1")))
    assert [(e.candidate.parent, e.candidate.weights) for e in found[1:3]] == [(0, "inherit"), (1, "inherit")]
    edits = [e.candidate.plan.edits for e in found]
    assert edits[2][: len(edits[1])] == edits[1]


def test_a_trained_network_is_judged_first(arch):
    method = ConflictRemoval(arch, epochs=0, tune_epochs=2)
    found = run(method, World(arch, hurts=("layer1.2", "layer3.1"), at=0))
    assert [e.candidate.role for e in found] == ["base", "candidate", "candidate", "baseline"]
    assert found[0].candidate.epochs == 0
    assert [e.target for e in found[1].candidate.plan.edits] == ["layer1.2"]
    assert found[1].candidate.parent == found[3].candidate.parent == 0
    assert method.best() is found[2]
    anew = run(ConflictRemoval(arch, epochs=0, restart="fresh"), World(arch))
    assert [(e.candidate.role, e.candidate.weights) for e in anew[1:]] == [
        ("candidate", "fresh"),
        ("baseline", "fresh"),
    ]


def test_what_conflicts_and_cannot_go_is_trained_to_its_end(arch):
    method = ConflictRemoval(arch, epochs=3, restart="inherit")
    found = run(method, World(arch, hurts=("layer3.0",)))
    assert [(e.status, e.candidate.stop is None) for e in found] == [
        ("stopped", False), ("done", True), ("done", True),
    ]  # fmt: skip
    assert "none of them can be removed; layer3.0 stays" in method.log[0]
    assert method.best() is found[1]


def test_stages_keep_a_block_and_the_search_ends(arch, plain):
    for network, rule in itertools.product((arch, plain), ("first_group", "all_groups", "truncate")):
        world = World(network)
        world.hurts = tuple(world.names)
        method = ConflictRemoval(network, epochs=2, rule=rule)
        run(method, world)
        assert all(method.groups.left(method.gone))
        assert method.best() is not None


# ------------------------------------------------------------------ budgets


def test_budget_takes_conflicting_blocks_first_then_the_cheapest(arch):
    macs = arch.profile().macs
    limits = Limits({"macs": macs * 6 // 10})
    worth = {"layer1.0": 0.2, "layer1.1": 0.003, "layer2.1": 0.01, "layer2.2": 0.1, "layer3.1": 0.05, "layer3.2": 0.002}
    method = ConflictRemoval(arch, limits, epochs=5, watch="last")
    found = run(method, World(arch, hurts=("layer1.2",), worth=worth))
    looks = [e for e in found if e.candidate.epochs == 0]
    assert {e.candidate.plan.edits[-1].target for e in looks} == set(worth)
    assert {e.candidate.parent for e in looks} == {0}
    assert method.gone == ("layer1.2", "layer3.2", "layer1.1", "layer2.1")
    best = method.best()
    assert limits.met(best.costs)
    assert "1 by conflict, 3 by the accuracy without it" in next(line for line in method.log if "budget" in line)
    one_less = arch.apply(*(cw.RemoveBlock(name) for name in method.gone[:-1]), verify=False)
    assert not limits.met(costs_of(profile(one_less)))


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_conflicts_alone_may_meet_the_budget(arch, metric):
    limit = int(costs_of(profile(arch))[metric] * 0.98)
    method = ConflictRemoval(arch, Limits({metric: limit}), epochs=3)
    found = run(method, World(arch, hurts=("layer1.2", "layer3.2")))
    assert not any(e.candidate.epochs == 0 for e in found)
    assert method.best().costs[metric] <= limit


def test_budgets_that_cannot_be_met_are_refused_at_once(arch):
    with pytest.raises(BudgetError, match="removing blocks cannot meet params <= 100"):
        ConflictRemoval(arch, Limits({"params": 100}), epochs=3)
    with pytest.raises(BudgetError, match="a limit on latency needs an estimate"):
        ConflictRemoval(arch, Limits({"latency": 100}), epochs=3)
    with pytest.raises(BudgetError, match=r"with all that can go removed, latency is still \d+ns"):
        ConflictRemoval(arch, Limits({"latency": 500}, networks={"latency": by_convolutions}), epochs=3)


def by_convolutions(network):
    """Say that each convolution takes 0.1 microseconds."""
    return 100 * sum(layer.kind == "conv" for layer in network.layers)


@pytest.mark.parametrize("share", [pytest.param(0.9, marks=pytest.mark.breadth), 0.75])
def test_blocks_go_until_an_estimate_of_the_latency_is_met(arch, share):
    limit = int(share * by_convolutions(arch))
    limits = Limits({"latency": limit}, networks={"latency": by_convolutions})
    method = ConflictRemoval(arch, limits, epochs=3)
    world = World(arch)
    spent = []

    def judged(number, candidate):
        evidence = world(number, candidate)
        spent.append(by_convolutions(arch.apply(*candidate.plan.edits)))
        return replace(evidence, costs={**evidence.costs, "latency": spent[-1]})

    run(method, judged)
    best = method.best()
    assert limit - 2 * 100 < best.costs["latency"] <= limit  # a block has two convolutions: no more go than must
    assert best.costs["latency"] == min(spent)


# ------------------------------------------------------------------ failures, replay


def test_a_diverged_network_is_not_clean(plain):
    world = World(plain, nan=(0,))
    method = ConflictRemoval(plain, epochs=3, seed=1)
    found = run(method, world)
    assert "diverged, 0 gives numbers that are not finite" in method.log[0]
    assert [e.candidate.seed for e in found] == [1, 2, 2]
    assert found[1].candidate.plan.edits == ()
    world = World(plain, nan=(0, 1))
    method = ConflictRemoval(plain, epochs=3)
    assert len(run(method, world)) == 2
    assert method.best() is None


def test_failures(plain):
    method = ConflictRemoval(plain, epochs=3)
    run(method, World(plain, fail=(0,)))
    assert method.log[0].endswith("failed, the loss became nan")
    assert method.best() is not None
    method = ConflictRemoval(plain, epochs=3)
    assert len(run(method, World(plain, fail=range(9)))) == 2
    method = ConflictRemoval(plain, epochs=0)
    assert len(run(method, World(plain, fail=(0,)))) == 1


@pytest.mark.parametrize("options", [{}, {"check": "before", "rule": "all_groups"}, {"restart": "inherit"}])
def test_replay(arch, options):
    """A new method that is told the old evidence asks for the same."""
    world = World(arch, hurts=("layer1.1", "layer2.2", "layer3.0"), depth=6)
    limits = None if options else Limits({"macs": arch.profile().macs * 7 // 10})
    whole = ConflictRemoval(arch, limits, epochs=4, **options)
    found = run(whole, world)
    again = ConflictRemoval(arch, limits, epochs=4, **options)
    for evidence in found:
        assert evidence.candidate in again.ask()
        stored = Evidence.from_dict(json.loads(json.dumps(evidence.to_dict())), evidence.candidate)
        again.tell(replace(stored, seconds=3.0))
    assert again.ask() == ()
    assert again.log == whole.log
    assert again.best().trial == whole.best().trial


def test_reading_evidence(plain):
    names = ["a", "b"]
    world = World(plain)
    candidate = ConflictRemoval(plain, epochs=3).ask()[0]
    base = world(0, candidate)
    seen = read_conflicts(replace(base, probes=bundles(names, {}, {"a": 0.5}, {"b": 0.25})), "last", 10)
    assert (seen.seen, seen.moment, seen.blocks) == (True, "after epoch 2", {"a": 0.0, "b": 0.25})
    assert seen.mean == {"a": pytest.approx(1 / 6), "b": pytest.approx(1 / 12)}
    assert read_conflicts(replace(base, probes=bundles(names, {}, {"a": 0.5})), "any", 0).seen is False
    assert read_conflicts(replace(base, probes={}), "any", 9) is None
    assert read_conflicts(replace(base, probes=bundles(names, {"b": None})), "last", 9).diverged == "b"


def test_bad_options_and_networks_without_blocks(plain):
    for options, words in (
        ({"rule": "third"}, "rule='third' .*'first_group'"),
        ({"check": "later"}, "check='later'"),
        ({"watch": "all"}, "watch='all'"),
        ({"restart": "warm"}, "restart='warm'"),
        ({"window": 0}, "window=0"),
        ({"restarts": True}, "restarts=True"),
    ):
        with pytest.raises(ConvwrightError, match=words):
            ConflictRemoval(plain, epochs=3, **options)
    lone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ConvwrightError, match="has no blocks"):
        ConflictRemoval(cw.read(lone, (3, 8, 8)), epochs=3)

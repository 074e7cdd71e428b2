"""Channel search, played with made-up evaluators: qualities as a function of the plan's widths."""

import itertools
import json
import math

import pytest
import torch
from channel_worlds import World, chain, constant, hungry, limits_of, small, spread, widths

from convwright.architecture import read
from convwright.methods import ChannelSearch, Evidence, method_named


@pytest.fixture(scope="module")
def networks():
    return {name: small(name) for name in ("mobile", "concat", "shuffle", "chain")} | {"resnet": read("zoo:resnet20")}


@pytest.fixture(scope="module")
def plain(networks):
    return networks["chain"]


# ------------------------------------------------------------------ as published


def published(arch, **changes):
    return ChannelSearch(arch, **{"epochs": 3, "mode": "parity", **changes})


def test_published_trace(plain):
    metric = [0.30, 0.40, 0.35, 0.05, 0.0]
    method = published(plain, trials=5)
    World(plain, lambda number, name, size: metric[number]).play(method)
    assert widths(method) == [[width] * 4 for width in (16, 32, 42, 52, 46)]


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [(0.6, (48, 56, 70)), (0.7, (60, 82, 110)), (0.8, (98, 160, 256)), (0.9, (256, 256, 256))],
)
def test_published_size_is_set_by_gamma(plain, gamma, expected):
    for quality, width in zip((0.3, 0.45, 0.6), expected, strict=True):
        method = published(plain, gamma=gamma)
        world = World(plain, constant(quality)).play(method)
        assert len(method.history) == 36
        assert widths(method)[-1] == [width] * 4
        assert set(world.sizes(method.best().candidate.plan).values()) <= {width, width - 2}


def test_published_annealing_begins_as_by_hand(plain):
    metric = [0.30, 0.40, 0.35]
    found = set()
    for seed in range(7):
        method = published(plain, rule="annealing", trials=36, seed=seed)
        world = World(plain, lambda number, name, size: metric[min(number, 2)])
        for _ in range(2):
            (candidate,) = method.ask()
            world.evidence.append(world.answer(candidate))
            method.tell(world.evidence[-1])
        (third,) = method.ask()
        found |= set(world.sizes(third.plan).values())
    assert found == {42, 60}


def test_published_momentum_takes_the_highest_epoch(plain):
    class Rising(World):
        def observed(self, number, candidate, sizes):
            found = super().observed(number, candidate, sizes)
            rows = found["channel-quality"]["metrics"]["qc"]
            found["channel-quality"]["metrics"]["qc"] = [rows[0], [[None, 0.0]] * len(rows[0])]
            return found

    high, low = published(plain, trials=4), published(plain, trials=4)
    Rising(plain, constant(0.5)).play(high)
    World(plain, constant(0.5)).play(low)
    assert widths(high) == widths(low)
    ours = ChannelSearch(plain, epochs=1, trials=1)
    Rising(plain, constant(0.5)).play(ours)
    assert ours.history[0]["network"] == 0  # the last epoch's, and nothing where there is none


def test_published_candidates(plain):
    method = published(plain, trials=8, seed=5)
    world = World(plain).play(method)
    *search, final = world.batches
    assert [len(batch) for batch in world.batches] == [1] * 8 + [2]
    first, *others = (batch[0] for batch in search)
    assert (first.parent, first.weights, first.epochs) == (None, "fresh", 2)
    assert [(c.parent, c.weights) for c in others] == [(n, "svd") for n in range(7)]
    assert all(c.probes == ("channel-quality-parity",) for c in (first, *others))
    chosen, baseline = final
    assert (chosen.parent, chosen.weights, chosen.epochs, chosen.probes) == (None, "fresh", 3, ())
    assert (baseline.role, baseline.plan.edits, baseline.epochs, baseline.seed) == ("baseline", (), 3, chosen.seed)
    # Accumulated quality rises, so the best is the last that is scored: the seventh of eight.
    assert world.sizes(chosen.plan) == method.history[6]["widths"]
    assert "trial 6" in method.log[-1]


def test_published_search_keeps_the_best_from_trial_6_on(plain):
    falling = [0.1, 0.9, 0.9, 0.9, 0.9, 0.5, 0.9, 0.1, 0.0, 0.0, 0.0]
    method = published(plain, trials=11, gamma=0.3)
    world = World(plain, lambda number, name, size: falling[min(number, 10)]).play(method)
    assert world.sizes(method.best().candidate.plan) == method.history[6]["widths"]


def test_published_widths_within_limits_are_chosen(plain):
    limits = limits_of(plain, "macs<=200%")
    method = published(plain, limits=limits, trials=36, gamma=0.8)
    World(plain).play(method)
    assert limits.met(method.best().costs)
    assert max(map(max, widths(method))) == 160  # the course is as without limits
    assert "trial" in method.log[-1]


def test_published_widths_of_a_residual_network(networks):
    quality = hungry(networks["resnet"])[1]
    method = published(networks["resnet"], trials=9, rule="annealing", seed=3)
    world = World(networks["resnet"], quality).play(method)
    assert all(w % 2 == 0 and 16 <= w <= 256 for row in widths(method) for w in row)
    for step, evidence in zip(method.history, world.evidence, strict=False):
        assert step["widths"] == world.sizes(evidence.candidate.plan)


# ------------------------------------------------------------------ ours: on the budget


CASES = [
    ("mobile", "macs<=50%"), ("mobile", "params<=40%, macs<=60%"), ("concat", "macs<=50%"), ("concat", "params<=150%"),
    ("shuffle", "macs<=50%"), ("resnet", "macs<=50%"), ("resnet", "params<=30%"), ("chain", "macs<=300%"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "budget"), CASES)
@pytest.mark.parametrize("start", ["given", "tiny"])
def test_every_candidate_is_within_the_budget_and_the_last_uses_it(networks, network, budget, start):
    arch = networks[network]
    limits = limits_of(arch, budget)
    quality = hungry(arch, 1)[1]
    method = ChannelSearch(arch, limits, epochs=2, trials=5, start=start, seed=2)
    world = World(arch, quality).play(method)
    steps = {g.name: g.step for g in arch.free_groups}
    for evidence in world.evidence[:-1]:
        sizes = world.sizes(evidence.candidate.plan)
        assert limits.met(evidence.costs)
        assert all(size % steps[name] == 0 for name, size in sizes.items())
    final = method.best()
    use = max(final.costs[metric] / limit for metric, limit in limits.limits.items())
    assert use >= (0.97 if network == "shuffle" else 0.99)
    assert method.history[0]["costs"]["macs"] == world.evidence[0].costs["macs"]


@pytest.mark.parametrize("network", ["mobile", "concat", "shuffle"])
def test_plans_are_carried_out(networks, network):
    arch = networks[network]
    method = ChannelSearch(arch, limits_of(arch, "macs<=60%"), epochs=2, trials=3)
    world = World(arch, hungry(arch, 3)[1]).play(method)
    for evidence in world.evidence[:-1]:
        built = arch.apply(*evidence.candidate.plan.edits, importance="first", verify=False)
        profile = built.profile()
        assert (profile.macs, profile.params) == (evidence.costs["macs"], evidence.costs["params"])


@pytest.mark.parametrize("network", ["resnet", "mobile", "concat"])
@pytest.mark.parametrize("rule", ["greedy", "annealing"])
def test_widths_move_to_the_needy_groups_at_equal_macs(networks, network, rule):
    arch = networks[network]
    need, quality = hungry(arch, 4)

    def score(sizes):
        return 0.9 - 0.3 * spread(sizes, need)

    method = ChannelSearch(arch, limits_of(arch, "macs<=90%"), epochs=2, trials=16, rule=rule, seed=1, divisor=1)
    world = World(arch, quality, score).play(method)
    start, end = method.history[0]["widths"], world.sizes(method.best().candidate.plan)
    assert spread(end, need) < 0.35 * spread(start, need)
    fuller = max(start, key=lambda name: need[name] / start[name])
    emptier = min(start, key=lambda name: need[name] / start[name])
    assert end[fuller] > start[fuller]
    assert end[emptier] < start[emptier]


def test_a_group_without_quality_keeps_channels_enough_to_go_on_from(networks):
    arch = networks["mobile"]
    starved = arch.free_groups[0].name

    def quality(number, name, size):
        return 0.0 if name == starved else 0.5

    method = ChannelSearch(arch, limits_of(arch, "macs<=60%"), epochs=2, trials=9, rule="greedy", spread=64.0)
    world = World(arch, quality).play(method)
    sizes = [world.sizes(evidence.candidate.plan)[starved] for evidence in world.evidence[:-1]]
    assert min(sizes) == 2, "weights cannot be carried on from a group of one channel"
    assert sizes[0] > 2


@pytest.mark.parametrize("gamma", [0.0, 0.6, 0.9])
def test_gamma_does_not_set_the_size(plain, gamma):
    method = ChannelSearch(plain, limits_of(plain, "macs<=70%"), epochs=2, trials=12, gamma=gamma, divisor=1)
    World(plain, hungry(plain, 5)[1]).play(method)
    macs = [step["costs"]["macs"] for step in method.history]
    assert min(macs) > 0.99 * max(macs)


@pytest.mark.parametrize("network", ["resnet", "mobile", "concat", "shuffle"])
@pytest.mark.parametrize("rule", ["greedy", "annealing"])
def test_constant_evidence_moves_nothing(networks, network, rule):
    arch = networks[network]
    method = ChannelSearch(arch, limits_of(arch, "macs<=50%"), epochs=2, trials=5, rule=rule)
    World(arch, constant(0.31)).play(method)
    assert all(row == widths(method)[0] for row in widths(method))


def test_a_tiny_start_grows_to_the_budget_in_a_third_of_the_trials(networks):
    arch = networks["resnet"]
    method = ChannelSearch(arch, epochs=2, trials=12, start=5, divisor=1)
    World(arch, constant(0.4)).play(method)
    macs = [step["costs"]["macs"] for step in method.history]
    assert set(widths(method)[0]) == {5}
    assert macs[0] < macs[1] < macs[2] < macs[3] < macs[4]
    growth = [b / a for a, b in itertools.pairwise(macs[:5])]
    assert max(growth) < 1.3 * min(growth)
    assert len({tuple(row) for row in widths(method)[4:]}) == 1


def test_without_limits_the_networks_own_costs_hold(plain):
    method = ChannelSearch(plain, epochs=2, trials=6)
    World(plain, hungry(plain)[1]).play(method)
    own = plain.profile()
    assert all(s["costs"]["macs"] <= own.macs and s["costs"]["params"] <= own.params for s in method.history)


def test_no_width_leaves_the_leash_or_the_bounds(plain):
    favourite = plain.free_groups[1].name
    method = ChannelSearch(
        plain, limits_of(plain, "macs<=60%"), epochs=2, trials=30, rule="greedy", spread=2.0, min_width=11, max_width=53
    )
    World(plain, lambda number, name, size: 1.0 if name == favourite else 0.1).play(method)
    assert all(11 <= w <= 53 for row in widths(method) for w in row)
    free = ChannelSearch(plain, limits_of(plain, "macs<=60%"), epochs=2, trials=30, rule="greedy", spread=2.0)
    World(plain, lambda number, name, size: 1.0 if name == favourite else 0.1).play(free)
    logs = [math.log(free.history[-1]["widths"][g.name] / g.size) for g in plain.free_groups]
    assert max(logs) - min(logs) < 2 * math.log(2.0) + 0.1


def test_divisor_and_steps(networks):
    for name in ("resnet", "concat"):
        method = ChannelSearch(networks[name], limits_of(networks[name], "macs<=80%"), epochs=1, trials=4, divisor=4)
        World(networks[name], hungry(networks[name])[1]).play(method)
        grouped = {g.name: math.lcm(g.step, 4) for g in networks[name].free_groups}
        assert all(size % grouped[n] == 0 for step in method.history for n, size in step["widths"].items())


# ------------------------------------------------------------------ annealing


def test_losing_trials_are_rejected_and_the_search_goes_back(plain):
    scores = iter([0.8, 0.2, 0.81, 0.3, 0.82, 0.83, 0.9, 0.9])
    method = ChannelSearch(plain, limits_of(plain, "macs<=60%"), epochs=2, trials=6, transfer="net2wider")
    world = World(plain, hungry(plain)[1], lambda sizes: next(scores)).play(method)
    assert [step["accepted"] for step in method.history] == [True, False, True, False, True, True]
    assert [batch[0].parent for batch in world.batches[:6]] == [None, 0, 0, 2, 2, 4]
    assert "rejected" in method.log[1]
    assert "20.00%" in method.log[1]
    assert world.sizes(method.best().candidate.plan) == method.history[5]["widths"]


def test_a_hot_search_accepts_losses_and_a_cold_one_does_not(plain):
    def accepted(temperature):
        falling = itertools.count()
        method = ChannelSearch(plain, epochs=2, trials=10, temperature=temperature)
        World(plain, hungry(plain)[1], lambda sizes: 0.9 - 0.01 * next(falling)).play(method)
        return sum(step["accepted"] for step in method.history)

    assert accepted(0.0) == 1
    assert 1 < accepted(3.0) <= 10
    assert accepted(1e6) == 10


# ------------------------------------------------------------------ determinism, replay


@pytest.mark.parametrize("mode", ["corrected", "parity"])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_same_seed_same_candidates_and_replay(plain, mode, seed):
    def make(seed=seed):
        return ChannelSearch(plain, epochs=2, trials=9, mode=mode, rule="annealing", seed=seed, start="tiny")

    quality = hungry(plain, seed)[1]
    first, second = make(), make()
    world, again = World(plain, quality).play(first), World(plain, quality).play(second)
    assert world.batches == again.batches
    assert World(plain, quality).play(make(seed + 1)).batches != world.batches
    flat = [c for batch in world.batches for c in batch]
    for done in (0, 1, 5, len(flat) - 2, len(flat) - 1, len(flat)):
        method = make()
        for evidence in world.evidence[:done]:
            method.tell(Evidence.from_dict(json.loads(json.dumps(evidence.to_dict())), evidence.candidate))
        end = done + 1 if done < len(flat) - 2 else len(flat)
        assert list(method.ask()) == flat[done:end]
        if done == len(flat):
            assert (method.log, method.history, method.best()) == (first.log, first.history, first.best())


def test_it_reads_no_weights():
    torch.manual_seed(3)
    one, two = read(chain(11, 13), (1, 1, 9, 9)), read(chain(11, 13), (1, 1, 9, 9))
    with torch.no_grad():
        for parameter in two.model.parameters():
            parameter.fill_(math.nan)
    worlds = [World(one, hungry(arch)[1]).play(ChannelSearch(arch, epochs=1, trials=4)) for arch in (one, two)]
    assert worlds[0].batches == worlds[1].batches


def test_history_and_decisions_are_plain_data(plain):
    method = ChannelSearch(plain, epochs=1, trials=3)
    World(plain, hungry(plain)[1]).play(method)
    values = [decision.to_dict() for decision in method.decisions]
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert len(method.log) == len(values) == 4
    assert [step["trial"] for step in method.history] == [0, 1, 2]
    assert set(method.history[0]["values"]) == {g.name for g in plain.free_groups}


# ------------------------------------------------------------------ networks that come trained


def test_a_trained_network_is_judged_and_inherited(plain):
    method = ChannelSearch(plain, limits_of(plain, "macs<=60%"), epochs=0, tune_epochs=5, trials=3)
    world = World(plain, hungry(plain)[1]).play(method)
    (base,), (first,), (second,), (third,), (final, baseline) = world.batches
    assert (base.role, base.epochs, base.parent) == ("base", 0, None)
    assert (first.parent, first.weights) == (0, "inherit")
    assert [(c.parent, c.weights) for c in (second, third)] == [(1, "net2wider"), (2, "net2wider")]
    for last in (final, baseline):
        assert (last.parent, last.weights, last.epochs) == (0, "inherit", 5)
    assert method.best().candidate is final


def test_fresh_trials_have_no_parent(plain):
    method = ChannelSearch(plain, epochs=1, trials=3, transfer="fresh")
    world = World(plain).play(method)
    assert {(c.parent, c.weights) for batch in world.batches[:-1] for c in batch} == {(None, "fresh")}


def test_it_is_found_by_name():
    assert method_named("channel-search") is ChannelSearch


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v2"])
def test_whole_networks(name):
    arch = read(name, (1, 3, 64, 64))
    limits = limits_of(arch, "macs<=60%")
    method = ChannelSearch(arch, limits, epochs=1, trials=3)
    World(arch, hungry(arch)[1]).play(method)
    best = method.best()
    profile = arch.apply(*best.candidate.plan.edits, importance="first", verify=False).profile()
    assert (profile.macs, profile.params) == (best.costs["macs"], best.costs["params"])
    assert 0.99 < best.costs["macs"] / limits.limits["macs"] <= 1

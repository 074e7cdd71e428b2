"""The response surface over widths: what it fits, where it goes, and that all of it lies on the budget."""

import math

import numpy as np
import pytest
from channel_worlds import World, limits_of, small

from convwright.errors import ConvwrightError
from convwright.methods import ChannelSearch
from convwright.methods.channel_search.response import fit, trends_of
from convwright.methods.shared.width_surface import Surface
from convwright.metrics.quality.channel_quality import members


@pytest.fixture(scope="module")
def networks():
    return {name: small(name) for name in ("mobile", "concat", "shuffle", "chain")}


def needs(arch, trend):
    """What a width e times as large brings, in accuracy: more for the later groups, or for the earlier."""
    names = [group.name for group in arch.free_groups]
    return {name: 0.03 * trend * (2 * n / (len(names) - 1) - 1) for n, name in enumerate(names)}


def rising(slopes, start):
    return lambda sizes: 0.5 + sum(slope * math.log(sizes[name] / start[name]) for name, slope in slopes.items())


# ------------------------------------------------------------------ the fit


def test_the_fit_finds_slopes_that_are_there():
    """Nearly always: it is a claim about drawn trials."""
    right = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        points = rng.standard_normal((29, 5)) * 0.5
        slopes = rng.choice([-1.0, 1.0], 5) * rng.uniform(0.02, 0.06, 5)
        found = fit(points, np.zeros((0, 5)), 0.6 + points @ slopes, np.full(29, 0.001))
        expected, deviation = found.expected(points)
        right.append(
            np.allclose(found.slopes(), slopes, rtol=0.5, atol=0.005)  # shrunk, as few trials should be
            and np.allclose(expected, 0.6 + points @ slopes, atol=0.01)
            and (deviation < 0.02).all()
        )
    assert np.mean(right) >= 0.95


def test_a_trend_is_seen_in_fewer_trials_than_there_are_groups():
    """Nearly always: five trials that happen to lie close together show nothing."""
    trend, right = np.linspace(-1, 1, 13)[None], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        points = rng.uniform(-1, 1, (5, 1)) @ trend + 0.05 * rng.standard_normal((5, 13))
        sign = rng.choice([-1.0, 1.0])
        found = fit(points, trend, 0.5 + sign * 0.05 * points @ trend[0], np.full(5, 0.005))
        ahead, behind = (found.expected(step * trend)[0][0] for step in (0.7 * sign, -0.7 * sign))
        right.append(ahead > behind and np.sign(found.slopes()[-1]) == sign)
    assert np.mean(right) >= 0.95


def test_far_from_all_trials_the_fit_says_that_it_does_not_know(networks):
    rng = np.random.default_rng(7)
    points = 0.2 * rng.standard_normal((11, 3))
    found = fit(points, np.zeros((0, 3)), 0.5 + points @ np.array([0.03, -0.02, 0.05]), np.full(11, 0.01))
    near, far = (found.expected(step * np.ones((1, 3)))[1][0] for step in (0.0, 3.0))
    assert far > 1.5 * near


@pytest.mark.parametrize("network", ["mobile", "concat", "shuffle", "chain"])
def test_trends_are_centred_and_tell_groups_apart(networks, network):
    arch = networks[network]
    surface = Surface(arch, limits_of(arch, "macs<=60%"))
    trends = trends_of(arch, surface, members(arch))
    assert trends.shape[1] == len(surface.families)
    assert np.allclose(trends.mean(1), 0)
    assert np.allclose(np.abs(trends).max(1), 1)


def test_equal_maps_have_no_trend_over_maps(networks):
    arch = networks["chain"]
    trends = trends_of(arch, Surface(arch, limits_of(arch, "macs<=60%")), members(arch))
    assert len(trends) <= 1  # padded convolutions: all maps are equal; the last group is shared by one layer less


# ------------------------------------------------------------------ the course


@pytest.mark.parametrize("network", ["mobile", "concat", "chain"])
@pytest.mark.parametrize("trend", [-1, 1])
def test_it_climbs_whichever_way_accuracy_rises(networks, network, trend):
    arch = networks[network]
    slopes = needs(arch, trend)
    method = ChannelSearch(arch, limits_of(arch, "macs<=60%"), epochs=2, trials=14, rule="response", seed=3)
    start = World(arch).sizes(method.ask()[0].plan)
    score = rising(slopes, start)
    world = World(arch, score=score).play(method)
    trials, final = world.evidence[:14], world.sizes(method.best().candidate.plan)
    assert all(evidence.candidate.weights == "fresh" and evidence.candidate.parent is None for evidence in trials)
    assert score(final) > 0.5 + 0.6 * (max(evidence.score for evidence in trials) - 0.5)
    assert score(final) > 0.51
    limit = limits_of(arch, "macs<=60%").limits["macs"]
    assert all(0.97 * limit < evidence.costs["macs"] <= limit for evidence in trials)


def test_the_same_seed_asks_the_same(networks):
    def course(seed):
        arch = networks["mobile"]
        method = ChannelSearch(
            arch, limits_of(arch, "macs<=60%"), epochs=2, trials=9, rule="response", seed=seed, divisor=1
        )
        World(arch, score=lambda sizes: 0.5 + 0.001 * max(sizes.values())).play(method)
        return [list(step["widths"].values()) for step in method.history]

    assert course(3) == course(3)
    assert course(3) != course(4)


def test_widths_that_cannot_be_trained_are_left_behind(networks):
    arch = networks["chain"]
    method = ChannelSearch(arch, limits_of(arch, "macs<=60%"), epochs=2, trials=9, rule="response", divisor=1)
    world = World(arch, fails=lambda number: number in (0, 3)).play(method)
    plans = [evidence.candidate.plan for evidence in world.evidence[:9]]
    assert plans[0] != plans[1]
    assert plans[3] != plans[4]
    assert method.best() is not None


def test_no_quality_does_not_end_a_course_that_follows_accuracy(networks):
    arch = networks["chain"]
    method = ChannelSearch(arch, limits_of(arch, "macs<=60%"), epochs=2, trials=7, rule="response")
    world = World(arch, quality=lambda number, name, size: 0.0).play(method)
    assert len(world.evidence) == 7 + 2


@pytest.mark.parametrize("options", [{"mode": "parity"}, {"transfer": "net2wider"}, {"transfer": "svd"}])
def test_trials_that_go_on_from_each_other_are_refused(networks, options):
    with pytest.raises(ConvwrightError, match=r"rule='response'.*new weights"):
        ChannelSearch(networks["chain"], epochs=1, rule="response", **options)

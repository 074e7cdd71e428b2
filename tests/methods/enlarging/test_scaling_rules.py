"""Scaling rules: worked instances on GhostNet's generator, laws of the formulas, and the method."""

import itertools
import math

import pytest

import convwright as cw
from convwright.cost.budget import Limits
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods.base import Evidence
from convwright.methods.enlarging.compound import (
    Scaling,
    Setting,
    compound,
    fast,
    scaled,
    shares,
    single,
    to_cost,
)
from convwright.methods.shared.stage_knobs import Stages
from convwright.zoo.parts import divisible

GHOST = Setting((16, 24, 40, 80, 112, 160), (1, 2, 2, 4, 2, 5), 224)
B0 = Setting((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), 224)


@pytest.fixture(scope="module")
def cost():
    stages = Stages.of(cw.read("zoo:ghostnet-large"))

    def found(setting):
        return stages.costs(setting.widths, setting.depths, setting.resolution, setting.ends)["macs"]

    return found


WORKED = [
    (single(GHOST, "width", 2.155), 600, ((36, 52, 88, 172, 240, 344), GHOST.depths, 224), 596.92),
    (single(GHOST, "width", 6.055), 4400, ((96, 144, 244, 484, 680, 968), GHOST.depths, 224), 4403.5),
    (single(GHOST, "depth", 4.806), 600, (GHOST.widths, (5, 10, 10, 20, 10, 25), 224), 587.78),
    (single(GHOST, "resolution", 456 / 224), 600, (GHOST.widths, GHOST.depths, 456), 600.41),
    (single(GHOST, "resolution", 1256 / 224), 4400, (GHOST.widths, GHOST.depths, 1256), 4403.6),
    (compound(GHOST, 2.195, quantum=4), 600, ((20, 28, 48, 100, 140, 196), (2, 3, 3, 6, 3, 8), 304), 565.2),
    (compound(GHOST, 5.49, quantum=4), 4400, ((28, 40, 68, 136, 188, 272), (3, 6, 6, 11, 6, 14), 480), 4368),
    (fast(GHOST, 4.697, quantum=4), 600, ((28, 44, 76, 148, 208, 296), (1, 2, 2, 5, 2, 6), 244), 608.2),
    (fast(GHOST, 34.6, quantum=4), 4400, ((68, 100, 164, 332, 464, 660), (1, 3, 3, 6, 3, 7), 268), 4403.9),
]


@pytest.mark.parametrize(("found", "target", "expected", "millions"), WORKED)
def test_worked_instances_on_ghostnet(cost, found, target, expected, millions):
    assert (found.widths, found.depths, found.resolution) == expected
    digits = len(str(millions).partition(".")[2])
    assert round(cost(found) / 1e6, digits) == millions


@pytest.mark.parametrize(
    ("rule", "start"),
    [
        (lambda m: single(GHOST, "width", m), 1.0),
        (lambda m: single(GHOST, "depth", m), 1.0),
        (lambda m: single(GHOST, "resolution", m), 1.0),
        (lambda m: compound(GHOST, m, quantum=4), 0.0),
        (lambda m: fast(GHOST, m, quantum=4), 1.0),
    ],
)
@pytest.mark.parametrize("target", [600_000_000, 4_400_000_000])
def test_the_factor_that_is_found_is_as_near_as_the_worked_one(cost, rule, start, target):
    found = cost(to_cost(rule, cost, target, start))
    worked = [abs(cost(s) - target) for s, t, *_ in WORKED if t * 10**6 == target]
    assert abs(found - target) <= max(worked)


def test_depth_alone_becomes_absurd():
    assert single(GHOST, "depth", 38.8).depths[:2] == (39, 78)


@pytest.mark.parametrize(("factor", "side"), [(1.0, 224), (2.0, 256), (7.3, 312)])
def test_one_factor_of_one_changes_nothing_and_products_hold(factor, side):
    assert compound(B0, 0.0) == B0
    assert fast(B0, 1.0) == B0
    # Before rounding depth * width^2 * resolution^2 is the factor, for any weights.
    for weights in ((1, 1, 1), (1, 8, 1), (3, 2, 5)):
        d, w, r = (factor ** (e / sum(weights) / p) for e, p in zip(weights, (1, 2, 2), strict=True))
        assert d * w**2 * r**2 == pytest.approx(factor)
        big = fast(Setting((1600,), (1000,), 22400), factor, weights)
        assert big.depths[0] == pytest.approx(1000 * d, abs=0.51)
        assert big.widths[0] == pytest.approx(1600 * w, abs=4.01)
        assert big.resolution == pytest.approx(22400 * r, abs=2.01)
    assert compound(B0, math.log(2) / math.log(1.92)).resolution > 224
    assert single(B0, "resolution", side / 224).resolution == side


def test_the_published_family_is_not_the_exact_powers():
    # B4 is published at 1.4 / 1.8 / 380.
    assert scaled(B0, width=1.4, depth=1.8, resolution=380 / 224, quantum=8, step=4).resolution == 380
    assert compound(B0, 4).resolution != 380


def test_widths_are_never_rounded_below_nine_tenths():
    for value, quantum in itertools.product(range(1, 200), (4, 8)):
        found = divisible(value, quantum)
        assert found % quantum == 0
        assert found >= 0.9 * value
        assert abs(found - value) <= quantum


def test_shares_add_up():
    assert sum(shares(6, "equal")) == pytest.approx(1)
    assert sum(shares(6, "random", 3)) == pytest.approx(1)
    assert shares(6, "random", 3) == shares(6, "random", 3) != shares(6, "random", 4)
    assert len(shares(5, "random")) == 10


def test_a_rule_that_costs_nothing_is_refused():
    with pytest.raises(ConvwrightError, match="cannot bring the cost"):
        to_cost(lambda m: single(B0, "width", m), lambda setting: 1, 10)


# ------------------------------------------------------------------ the method


@pytest.fixture(scope="module")
def tiny():
    return cw.read("zoo:resnet20", "3x16x16", widths=(8, 12, 16), depths=(1, 2, 1))


def played(method):
    asked = []
    while batch := method.ask():
        for candidate in batch:
            method.tell(Evidence(candidate, len(asked), 0.5, 0.0, {"macs": 0, "params": 0}))
            asked.append(candidate)
    return asked


@pytest.mark.parametrize("rule", ["width", "depth", "resolution", "compound", "fast", "uniform", "random", "equal"])
@pytest.mark.parametrize("epochs", [0, 3])
def test_every_rule_ends_within_its_budget(tiny, rule, epochs):
    limits = Limits({"macs": int(tiny.profile().macs * 2.2)})
    method = Scaling(tiny, limits, rule=rule, epochs=epochs, samples=3, seed=5)
    asked = played(method)
    roles = [c.role for c in asked]
    assert roles[: 1 + (not epochs)] == (["baseline"] if epochs else ["base", "baseline"])
    assert method.best().candidate.role == "candidate"
    for setting in method.settings:
        cost = method._cost(setting)
        assert cost <= limits.limits["macs"]
        assert cost >= 0.95 * limits.limits["macs"]
    if rule == "random":
        assert len(set(method.settings)) == 3


def test_proposals_are_built_as_they_were_costed(tiny):
    limits = Limits({"macs": int(tiny.profile().macs * 2.2)})
    method = Scaling(tiny, limits, rule="compound")
    built = cw.apply(played(method)[1].plan, tiny.model, tiny.example_input, verify=False).profile()
    assert built.macs == method._cost(method.settings[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limits": None}, "give one above"),
        ({"factor": 0.5}, "nothing to enlarge"),
        ({"rule": "magic"}, "rule='magic'"),
        ({"samples": 0}, "samples=0"),
        ({"limits": Limits({"latency": 10**9}, {"latency": lambda widths: 5})}, "cannot follow a limit on latency"),
        ({"alpha": 0.9}, r"alpha=0.9 .*greater than or equal to 1"),
        ({"alpha": 1.0, "beta": 1.0, "gamma": 1.0}, "alpha, beta, gamma are all 1"),
    ],
)
def test_what_is_wrong_is_said(tiny, options, message):
    given = {**options}
    limits = given.pop("limits", Limits({"macs": int(tiny.profile().macs * given.pop("factor", 2.0))}))
    with pytest.raises((BudgetError, ConvwrightError), match=message):
        Scaling(tiny, limits, **given)

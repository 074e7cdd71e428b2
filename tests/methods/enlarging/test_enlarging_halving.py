"""Halving inside a level of greedy enlarging, and moving MACs at a fixed budget in the end."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convwright as cw
from convwright.cost.budget import Limits
from convwright.errors import ConvwrightError
from convwright.methods.base import Evidence
from convwright.methods.enlarging.greedy import GreedyEnlarging
from convwright.methods.enlarging.growth import Knob, Score, Step, moves_between
from convwright.methods.shared.halving import FirstParts


@pytest.fixture(scope="module")
def tiny():
    return cw.read("zoo:resnet20", "3x16x16", widths=(8, 12, 16), depths=(1, 2, 1))


def made(arch, factor=2.0, **options):
    common = {"steps": 4, "tolerance": 0.1, "trial_steps": 90, "trial_epochs": 2, "width_growth": 2.0}
    return GreedyEnlarging(arch, Limits({"macs": int(arch.profile().macs * factor)}), **{**common, **options})


def told(search, worth, stderr=0.0, fails=lambda candidate: False):
    """Answer everything that a search asks; return what was asked."""
    asked = []
    while batch := search.ask():
        for candidate in batch:
            failed = fails(candidate)
            score = math.nan if failed else worth(candidate)
            status = "failed" if failed else "done"
            costs = {"macs": 0, "params": 0}
            search.tell(Evidence(candidate, len(asked), score, stderr, costs, status=status, message="as asked"))
            asked.append(candidate)
    return asked


def liking(*weights):
    """Score plans by their sizes in each stage, with returns that fall; a first part finds half of it."""

    def worth(candidate):
        sizes = dict.fromkeys(("layer1", "layer2", "layer3"), 0.0)
        for edit in candidate.plan.edits:
            where = getattr(edit, "target", "resolution").partition(".")[0]
            if where in sizes:
                sizes[where] += getattr(edit, "size", 0) / 50 + getattr(edit, "copies", 0)
        value = sum(w * math.log1p(s) for w, s in zip(weights, sizes.values(), strict=True))
        return value / (2 if candidate.short else 1) / 20

    return worth


def steps(asked):
    """All steps of the candidates before the final training."""
    return sum(c.recipe["max_steps"] for c in asked if "max_steps" in c.recipe)


def course(search):
    return [{k: v for k, v in h.items() if k != "candidates"} for h in search.history]


@pytest.mark.parametrize("eta", [3, 5])
@pytest.mark.parametrize("weights", [(1, 2, 4), (4, 2, 1), (1, 5, 1)])
@pytest.mark.parametrize("transfer", ["fresh", "inherit"])
def test_where_first_parts_order_alike_the_path_is_the_same_for_fewer_steps(tiny, eta, weights, transfer):
    plain, halved = (made(tiny, weights=transfer, halving=h) for h in (None, eta))
    all_whole, some = (told(search, liking(*weights)) for search in (plain, halved))
    assert course(plain) == course(halved)
    assert [c.plan for c in all_whole[-2:]] == [c.plan for c in some[-2:]]
    assert steps(some) < steps(all_whole)
    first = [c for c in some if c.short]
    assert {c.recipe["max_steps"] for c in first} == {90 // eta}
    assert {c.epochs for c in first} == {2}
    whole = [c for c in some[:-2] if not c.short and c.role == "candidate"]
    assert {c.recipe["max_steps"] for c in whole} == {90}
    for candidate in whole:  # who is trained whole was tried before, from the same weights
        assert any(
            c.plan == candidate.plan and c.parent == candidate.parent and c.seed == candidate.seed for c in first
        )
    assert not any(c.short for c in some[-2:])
    notes = [line for line in halved.log if "first part:" in line]
    assert all("get the whole training" in line for line in notes)
    assert len(notes) == len([level for level in plain.history[1:-1] if len(level["candidates"]) > 1])


def test_whole_epochs_are_divided_where_no_steps_are_given(tiny):
    halved = made(tiny, trial_steps=None, trial_epochs=7, halving=3)
    asked = told(halved, liking(1, 2, 3))
    assert {c.epochs for c in asked if c.short} == {2}
    assert {c.epochs for c in asked[:-2] if not c.short} == {7}


@pytest.mark.parametrize("eta", [4, 5])
def test_who_is_equal_goes_on_and_never_costs_more_than_without(tiny, eta):
    plain, halved = made(tiny), made(tiny, halving=eta)
    equal = lambda c: 0.5  # noqa: E731
    whole, some = told(plain, equal, 0.01), told(halved, equal, 0.01)
    assert steps(some) <= steps(whole)
    count = len(made(tiny).ask())
    first = list(itertools.takewhile(lambda c: not c.short, some[count:]))
    assert len(first) == FirstParts(eta, 1, 90).most(count) > math.ceil(count / eta)


def test_a_first_part_is_not_chosen_before_a_whole_training(tiny):
    """First parts that look better than all whole trainings do not win."""
    worth = liking(1, 2, 3)
    search = made(tiny, halving=3)
    told(search, lambda c: worth(c) * (40 if c.short else 1))
    for level in search.history[1:-1]:
        times = {c["turned"]: c["times"] for c in level["candidates"]}
        assert times[level["turned"]] == max(times.values())
    assert "(first part)" in " ".join(search.log)


def test_where_all_first_parts_fail_the_budget_is_carried_over(tiny):
    search = made(tiny, halving=3)
    first = len(search.ask())
    count = itertools.count()
    asked = told(search, liking(1, 2, 3), fails=lambda c: next(count) < first)
    assert "carried over" in " ".join(search.log)
    assert asked[-1].role == "baseline"


def test_failed_whole_trainings_leave_those_of_first_parts(tiny):
    search = made(tiny, steps=1, halving=3)
    asked = told(search, liking(1, 2, 3), fails=lambda c: not c.short and c.role == "candidate" and bool(c.recipe))
    assert asked[-1].role == "baseline"
    assert search.history[1]["score"] is not None


@given(st.integers(3, 9), st.integers(1, 60), st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_halving_takes_no_longer_and_leaves_no_better_one_behind(eta, more, values, beam):
    halving = FirstParts(eta, 1, eta + more, beam)
    count = len(values)
    kept = halving.going_on([Score(v, 0.01) for v in values])
    if halving.helps(count):
        short = halving.first_part[1]["max_steps"]
        assert count * short + len(kept) * (eta + more) <= count * (eta + more)
        assert len(kept) >= max(math.ceil(count / eta), beam)
    worst = min(values[i] for i in kept)
    assert all(value <= worst for place, value in enumerate(values) if place not in kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"halving": 2}, "halving=2 must be a whole number from 3 on: less saves nothing"),
        ({"halving": True}, "halving=True"),
        ({"halving": 7, "trial_steps": 6}, "trial_steps=6 has no such part; give trial_steps=7"),
        ({"halving": 3, "trial_steps": None}, "trial_epochs=2 has no such part; give trial_epochs=3 at least, or"),
        ({"refine": -1}, "refine=-1 .*greater than or equal to 0"),
        ({"refine": 1, "weights": "inherit"}, "refine=1 takes back what was grown"),
    ],
)
def test_what_is_wrong_is_said(tiny, options, message):
    with pytest.raises(ConvwrightError, match=message):
        made(tiny, **options)


# ------------------------------------------------------------------ moves at a fixed budget


class Units:
    """Knobs with prices."""

    def __init__(self, start, prices):
        self.start, self.prices = tuple(start), prices
        self.knobs = tuple(Knob(f"knob {i}") for i in range(len(self.start)))

    def cost(self, point):
        return sum(n * price for n, price in zip(point, self.prices, strict=True))

    def allows(self, point):
        return True


@given(st.lists(st.integers(1, 13), min_size=2, max_size=4), st.data())
@settings(max_examples=150, deadline=None)
def test_a_move_takes_from_one_knob_and_gives_to_another(prices, drawn):
    start = tuple(drawn.draw(st.integers(1, 5)) for _ in prices)
    point = tuple(n + drawn.draw(st.integers(0, 9)) for n in start)
    space = Units(start, prices)
    target = space.cost(point) + drawn.draw(st.integers(0, 7))
    share, tolerance = drawn.draw(st.integers(1, 40)), drawn.draw(st.sampled_from([0.05, 0.2, 0.9]))
    step = Step(point, 3, space.cost(point))
    found = list(moves_between(space, step, target, share, tolerance, 9))
    for move in found:
        giver, taker = move.turned
        assert (1 - tolerance) * target <= move.cost == space.cost(move.point) <= target
        assert start[giver] <= move.point[giver] < point[giver]
        assert move.point[taker] > point[taker]
        assert all(move.point[i] == point[i] for i in range(len(point)) if i not in move.turned)
        assert (move.level, move.parent) == (9, step)
    if tolerance == 0.9 and any(p > s for p, s in zip(point, start, strict=True)) and set(prices) == {1}:
        assert found


@pytest.mark.parametrize("rising", [8, 20])
def test_refining_mends_what_looked_good_on_the_way(tiny, rising):
    """The second stage gains more the larger it is: then what the first one was given before is better moved there."""

    def worth(candidate):
        return liking(1, 0, 0)(candidate) + rising * liking(0, 1, 0)(candidate) ** 2

    options = {"factor": 2.5, "resolution": False, "tolerance": 0.15}
    plain, refined = made(tiny, **options), made(tiny, **options, refine=2)
    usual, asked = told(plain, worth), told(refined, worth)
    assert asked[: len(usual) - 2] == usual[:-2]  # until then it is the same search
    said = [line for line in refined.log if line.startswith("refine")]
    assert "against" in said[0]
    assert worth(asked[-2]) > worth(usual[-2])
    assert 0.94 * plain.levels[-1] <= refined.history[-1]["cost"] <= plain.levels[-1]
    assert asked[-1].role == "baseline"


def test_refining_ends_where_nothing_is_better(tiny):
    search = made(tiny, resolution=False, refine=3, halving=3)
    told(search, lambda c: 0.5, 0.01)
    said = [line for line in search.log if line.startswith("refine") and "first part" not in line]
    assert len(said) == 1
    assert "none of" in said[0]
    assert "better than 50.00% by more than noise" in said[0]


def test_a_halved_run_is_replayed(tiny):
    options = {"halving": 3, "rescore": 1, "ties": "score", "refine": 1, "resolution": False, "steps": 2}
    worth = liking(2, 3, 1)
    asked = told(made(tiny, **options), worth, 0.01)
    search, again = made(tiny, **options), []
    for number, candidate in enumerate(asked[: len(asked) // 2]):
        search.tell(Evidence(candidate, number, worth(candidate), 0.01, {"macs": 0, "params": 0}))
    while batch := search.ask():
        for candidate in batch:
            number = len(asked) // 2 + len(again)
            search.tell(Evidence(candidate, number, worth(candidate), 0.01, {"macs": 0, "params": 0}))
            again.append(candidate)
    assert again == asked[len(asked) // 2 :]

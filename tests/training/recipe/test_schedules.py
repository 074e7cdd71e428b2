"""Schedules equal torch's over drawn lengths, refuse what is impossible, and state their options."""

import math
from typing import Annotated

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from torch import nn
from torch.optim import lr_scheduler

from convwright.errors import RecipeError
from convwright.training import Recipe
from convwright.training.recipe.schedules import SCHEDULES, Position, Rates, schedule

LR = 0.7


def sgd():
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR, momentum=0.9)


def theirs(make, steps, optimizer=None):
    """Return rate and momentum of a torch scheduler for each of its steps."""
    optimizer = sgd() if optimizer is None else optimizer
    scheduler = make(optimizer)
    found = []
    for step in range(steps):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0].get("momentum")))
        optimizer.step()
        if step + 1 < steps:
            scheduler.step()
    return found


def ours(recipe, total, per_epoch=1):
    return [recipe.rates(Position(step, total, per_epoch)) for step in range(total)]


totals = st.integers(2, 90)


def fits(total, warmup):
    """Whether the rate has a whole step to come down in."""
    return total * (1 - warmup) >= 1


@settings(max_examples=60, deadline=None)
@given(total=totals, warmup=st.floats(0.01, 0.97), cycles=st.booleans())
def test_onecycle_equals_torch(total, warmup, cycles):
    recipe = Recipe(warmup=warmup, schedule_options={"cycle_momentum": cycles})
    if not fits(total, warmup):
        with pytest.raises(RecipeError, match=r"warmup=.*leaves"):
            recipe.rates(Position(0, total))
        return
    if abs(warmup * total - 1) < 1e-6 or warmup * total < 1:  # torch divides by zero, or starts below its range
        return
    make = lambda o: lr_scheduler.OneCycleLR(o, LR, total, pct_start=warmup, cycle_momentum=cycles)  # noqa: E731
    for (lr, momentum), rates in zip(theirs(make, total), ours(recipe, total), strict=True):
        assert LR * rates.factor == pytest.approx(lr, rel=1e-9, abs=1e-12)
        assert (rates.momentum is None) == (not cycles)
        if cycles:
            assert rates.momentum == pytest.approx(momentum, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(total=totals, cycles=st.integers(1, 12), low=st.floats(0.01, 0.9))
def test_triangular_equals_torch(total, cycles, low):
    recipe = Recipe(schedule="triangular", schedule_options={"cycles": cycles, "low": low})
    half = total / (2 * cycles)
    if half < 1:
        with pytest.raises(RecipeError, match=rf"schedule_options.cycles={cycles}: {total} step"):
            recipe.rates(Position(0, total))
        return
    make = lambda o: lr_scheduler.CyclicLR(o, low * LR, LR, step_size_up=half, cycle_momentum=False)  # noqa: E731
    for (lr, _), rates in zip(theirs(make, total), ours(recipe, total), strict=True):
        assert LR * rates.factor == pytest.approx(lr, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    total=totals,
    per_epoch=st.integers(1, 13),
    step_epochs=st.integers(1, 7),
    gamma=st.floats(0.05, 1),
)
def test_step_equals_torch(total, per_epoch, step_epochs, gamma):
    recipe = Recipe(schedule="step", schedule_options={"step_epochs": step_epochs, "gamma": gamma})
    epochs = math.ceil(total / per_epoch)
    each = theirs(lambda o: lr_scheduler.StepLR(o, step_epochs, gamma), epochs)
    for step, rates in enumerate(ours(recipe, total, per_epoch)):
        assert LR * rates.factor == pytest.approx(each[step // per_epoch][0], rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(total=totals, per_epoch=st.integers(1, 13), by_epoch=st.booleans())
def test_cosine_equals_torch(total, per_epoch, by_epoch):
    recipe = Recipe(schedule="cosine", warmup=0, schedule_options={"per_epoch": by_epoch})
    count = math.ceil(total / per_epoch) if by_epoch else total
    each = theirs(lambda o: lr_scheduler.CosineAnnealingLR(o, count), count)
    for step, rates in enumerate(ours(recipe, total, per_epoch)):
        assert LR * rates.factor == pytest.approx(each[step // per_epoch if by_epoch else step][0], rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("total", [8, 50, 331])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.8])
def test_every_schedule_gives_shares(name, total, warmup):
    factors = [rates.factor for rates in ours(Recipe(schedule=name, warmup=warmup), total, 7)]
    assert all(0 < factor <= 1 + 1e-12 for factor in factors)
    assert SCHEDULES[name].about.endswith(".")


def test_impossible_trainings_are_refused():
    with pytest.raises(RecipeError, match=r"over 0 steps"):
        Position(0, 0)
    with pytest.raises(RecipeError, match=r"0 per epoch"):
        Position(0, 5, 0)
    with pytest.raises(RecipeError, match=r"step 5 is outside of the schedule's steps 0..4"):
        Position(5, 5)
    with pytest.raises(RecipeError, match=r"schedule='onecycle': a cycle of one step"):
        Recipe(warmup=0).rates(Position(0, 1))
    with pytest.raises(RecipeError, match=r"warmup=0.99: of 50 step.* at most 0.98"):
        Recipe(schedule="cosine", warmup=0.99).rates(Position(0, 50))
    assert Recipe(schedule="cosine", warmup=0.98).rates(Position(49, 50)).factor == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "cosin"}, r"recipe field schedule: unknown schedule 'cosin'. Did you mean cosine"),
        ({"schedule": 3}, r"recipe field schedule=3"),
        ({"schedule": "step", "schedule_options": {"step_epoch": 3}}, r"schedule_options.step_epoch'. .*step_epochs"),
        ({"schedule": "step", "schedule_options": {"gamma": 0}}, r"recipe field schedule_options.gamma=0: .*greater"),
        ({"schedule": "triangular", "schedule_options": {"low": 1.0}}, r"schedule_options.low=1.0"),
        ({"schedule": "constant", "schedule_options": {"zzz": 1}}, r"schedule_options.zzz'. schedule_options has no"),
        ({"schedule_options": {"warmup": 0.1}}, r"schedule_options.warmup: write it as the field warmup"),
        ({"schedule_options": [1]}, r"recipe field schedule_options="),
    ],
)
def test_bad_schedules(values, message):
    with pytest.raises(RecipeError, match=message) as error:
        Recipe(**values)
    assert "\n" not in str(error.value)


def test_another_schedule_begins_with_its_own_options():
    stairs = Recipe(schedule="step", schedule_options={"gamma": 0.5})
    assert stairs.schedule_options == {"step_epochs": 5, "gamma": 0.5}
    assert stairs.updated(epochs=7).schedule_options == stairs.schedule_options
    assert stairs.updated(schedule="constant").schedule_options == {}


def test_a_schedule_of_ones_own(monkeypatch):
    monkeypatch.setattr("convwright.training.recipe.schedules.SCHEDULES", dict(SCHEDULES))

    @schedule("halves")
    def halves(at: Position, *, times: Annotated[int, Field(ge=1)], momentum: float = 0.5) -> Rates:
        """Half of the rate, some times."""
        return Rates(0.5 ** (times * at.step // at.total), momentum)

    recipe = Recipe(schedule="halves", schedule_options={"times": 3})
    assert [recipe.rates(Position(s, 6)).factor for s in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert recipe.rates(Position(0, 6)).momentum == 0.5
    with pytest.raises(RecipeError, match=r"schedule_options.times=.*[Ff]ield required"):
        Recipe(schedule="halves")

"""Methods that know their proposals beforehand: asking, telling, resuming, the best."""

import pytest

import convwright as cw
from convwright.cost import parse_budget
from convwright.edits import Kernel
from convwright.methods import Evidence
from convwright.methods.proposals import Proposal, Proposals

COUNTS = (0, 1, 3)


@pytest.fixture(scope="module")
def arch():
    return cw.read("zoo:mnist-a")


def made(arch, count, limits=None):
    class Some(Proposals):
        def set_up(self):
            self.propose(*(Proposal(f"proposal {n}", (Kernel("conv1", 3),) * 0) for n in range(count)))

    return Some(arch, limits, epochs=3, tune_epochs=2, seed=5)


def told(candidate, number, score=0.5, **kwargs):
    costs = kwargs.pop("costs", {"macs": 10, "params": 10})
    return Evidence(candidate, number, score, 0.01, costs, **kwargs)


def flat(method):
    return [candidate for batch in method.batches for candidate in batch]


@pytest.mark.parametrize("count", COUNTS)
def test_the_untouched_network_first_then_all_side_by_side(arch, count):
    method = made(arch, count)
    (base,) = method.ask()
    assert (base.role, base.parent, base.epochs, base.seed) == ("base", None, 3, 5)
    assert method.ask() == (base,)
    method.tell(told(base, 0))
    again, *changed = method.ask()
    assert again.role == "baseline"
    assert len(changed) == count
    assert {(c.parent, c.epochs, c.seed) for c in (again, *changed)} == {(0, 2, 6)}


@pytest.mark.parametrize("count", COUNTS)
def test_what_was_told_is_not_asked_for_again(arch, count):
    everything = flat(made(arch, count))
    for done in range(len(everything) + 1):
        method = made(arch, count)
        for number, candidate in enumerate(everything[:done]):
            method.tell(told(candidate, number))
        left = everything[done:]
        assert list(method.ask()) == (left[:1] if not done else left)


def test_evidence_may_come_in_any_order(arch):
    everything = flat(made(arch, 3))
    scores = [0.1, 0.9, 0.4, 0.6, 0.5]
    for order in ([0, 1, 2, 3, 4], [0, 4, 3, 2, 1], [0, 3, 1, 4, 2]):
        method = made(arch, 3)
        for number in order:
            method.tell(told(everything[number], number, scores[number]))
        assert method.ask() == ()
        assert method.best().trial == 3  # neither the base nor the baseline is a proposal


def test_of_equal_proposals_the_first(arch):
    method = made(arch, 3)
    for number, candidate in enumerate(flat(method)):
        method.tell(told(candidate, number))
    assert method.best().trial == 2


def test_failed_ones_and_those_over_the_limit_are_not_the_best(arch):
    limits = parse_budget("macs<=50").resolve(arch.profile())
    method = made(arch, 3, limits)
    everything = flat(method)
    method.tell(told(everything[0], 0))
    method.tell(told(everything[2], 2, 0.9, costs={"macs": 51}))
    method.tell(told(everything[3], 3, float("nan"), status="failed"))
    assert method.best() is None
    method.tell(told(everything[4], 4, 0.1, costs={"macs": 50}))
    assert method.best().trial == 4


def test_without_a_base_nothing_is_asked_for(arch):
    method = made(arch, 2)
    method.tell(told(method.ask()[0], 0, float("nan"), status="failed"))
    assert method.ask() == ()
    assert method.best() is None

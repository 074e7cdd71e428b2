"""Method `saliency` and the course of `auto` for trained networks, in made-up worlds where nothing is trained."""

from functools import cache

import numpy as np
import pytest
from torch import nn

from convwright.architecture import read
from convwright.cost import parse_budget, profile
from convwright.edits import Plan, RemoveBlock, Resolution, check_execution
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods import Auto, Evidence, Saliency
from convwright.runs.evaluate import reshaped


@pytest.fixture(scope="module")
def resnet():
    return read("zoo:resnet20", "3x16x16", widths=[16, 24, 32], depths=[2, 2, 1])


@cache
def built(arch, plan):
    """Return a network by its plan as JSON, and its costs: built once for all tests."""
    network = reshaped(arch, Plan.from_json(plan))
    costs = network.profile()
    return network, {"macs": costs.macs, "params": costs.params}


def limits_of(arch, budget):
    return parse_budget(budget).resolve(profile(arch))


def observed(arch, probes, worth):
    rng = np.random.default_rng(0)
    groups = {group.name: rng.exponential(size=group.units).tolist() for group in arch.free_groups}
    blocks = {block.name: worth for block in arch.blocks}
    found = {"saliency": {"groups": groups}}
    if any(probe.startswith("block-losses") for probe in probes):
        found["block-losses"] = {"blocks": blocks, "curve": [[0, 0], [1, 0.1], [1000, 100.0]], "loss": 1.0}
    return found if probes else {}


def play(method, arch, worth=100.0, score=lambda arch, candidate: 0.5, fails=(), before=None):
    """Answer everything that a method asks; return the candidates."""
    asked, number = [], 0
    while batch := method.ask():
        for candidate in batch:
            network, costs = built(arch, candidate.plan.to_json())
            status = "failed" if number in fails else "done"
            found = observed(network, candidate.probes, worth)
            known = {"before_training": before} if candidate.epochs else {}
            evidence = Evidence(candidate, number, score(network, candidate), 0.01, costs, found, status, **known)
            method.tell(evidence)
            asked.append(candidate)
            number += 1
    return asked


def test_it_cuts_in_rounds_and_trains_once(resnet):
    limits = limits_of(resnet, "macs<=50%")
    method = Saliency(resnet, limits, epochs=0, tune_epochs=5, rounds=3)
    asked = play(method, resnet)
    assert [(c.role, c.epochs, c.parent) for c in asked] == [
        ("base", 0, None), ("candidate", 0, 0), ("candidate", 0, 1), ("baseline", 5, 0), ("candidate", 5, 2),
    ]  # fmt: skip
    macs = [built(resnet, c.plan.to_json())[1]["macs"] for c in asked if c.role != "baseline"]
    assert macs == sorted(macs, reverse=True)
    assert macs[-1] <= limits.limits["macs"]
    assert np.allclose(np.array(macs[1:]) / macs[:-1], 0.5 ** (1 / 3), atol=0.06)
    assert method.best().trial == 4
    assert len(method.decisions) == 3


@pytest.mark.parametrize(("before", "epochs"), [(0.45, [5]), (0.5, [5]), (0.6, [5, 0])])
def test_a_training_that_made_it_worse_is_not_kept(resnet, before, epochs):
    method = Saliency(resnet, limits_of(resnet, "macs<=50%"), epochs=0, tune_epochs=5, rounds=1)
    asked = play(method, resnet, before=before)
    assert [c.epochs for c in asked] == [0, 5, *epochs]
    assert method.best().candidate == asked[-1]
    assert asked[-1].plan == asked[2].plan
    assert any("kept as it was repaired" in line for line in method.log) == (before > 0.5)


def test_epochs_between_cuts_are_taken_from_the_last_training(resnet):
    method = Saliency(resnet, limits_of(resnet, "macs<=50%"), epochs=2, tune_epochs=6, rounds=3, epochs_between=2)
    asked = play(method, resnet)
    assert [c.epochs for c in asked] == [2, 2, 2, 6, 2]
    assert asked[0].epochs + 6 == sum(c.epochs for c in asked if c.role != "baseline")


def test_blocks_that_are_worth_nothing_go_and_dear_ones_stay(resnet):
    for worth, gone in ((0.0, True), (50.0, False)):
        method = Saliency(resnet, limits_of(resnet, "macs<=50%"), epochs=0, tune_epochs=1, blocks=True)
        asked = play(method, resnet, worth)
        assert any(isinstance(edit, RemoveBlock) for edit in asked[-1].plan.edits) is gone
    asked = play(Saliency(resnet, limits_of(resnet, "macs<=50%"), epochs=0, tune_epochs=1), resnet, 0.0)
    assert asked[0].probes == ("saliency",)
    assert not any(isinstance(edit, RemoveBlock) for edit in asked[-1].plan.edits)


@pytest.mark.parametrize("make", [Saliency, pytest.param(Auto, marks=pytest.mark.breadth)])
def test_it_depends_on_what_it_is_told_alone(resnet, make):
    limits = limits_of(resnet, "macs<=50%")
    first, second = (make(resnet, limits, epochs=0, tune_epochs=3) for _ in range(2))
    asked = play(first, resnet)
    for number in range(len(asked)):
        assert second.ask()[0].to_dict() in [c.to_dict() for c in asked[number:]]
        second.tell(first.results[number])
    assert second.best() is not None
    assert second.best().trial == first.best().trial


class Written(nn.Module):
    """A width is written down in its code."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        return self.c(x.view(-1, 4, 8, 7, 7).transpose(1, 2).reshape(-1, 32, 7, 7)).mean((2, 3))


def test_what_the_code_fixes_stays_in_every_round():
    arch = check_execution(read(Written(), (3, 16, 16))).architecture
    assert list(arch.fixed) == ["b"]
    asked = play(Saliency(arch, limits_of(arch, "macs<=50%"), epochs=0, tune_epochs=1, rounds=2), arch)
    assert [edit.target for edit in asked[-1].plan.edits] == ["a", "a"]


def test_a_trial_that_fails_ends_it_without_a_result(resnet):
    for fails in ({0}, {1}):
        method = Saliency(resnet, limits_of(resnet, "macs<=50%"), epochs=0, tune_epochs=1)
        play(method, resnet, fails=fails)
        assert method.best() is None or method.best().usable


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "tailor"}, ConvwrightError, "give one of taylor.*Did you mean taylor"),
        ({"rounds": 0}, ConvwrightError, "rounds=0"),
        ({"budget": "macs<=0.001%"}, BudgetError, "no widths"),
    ],
)
def test_what_cannot_be_is_refused_before_any_training(resnet, options, error, message):
    limits = limits_of(resnet, options.pop("budget", "macs<=50%"))
    with pytest.raises(error, match=message):
        Saliency(resnet, limits, epochs=0, tune_epochs=1, **options)


def test_auto_judges_designs_of_a_trained_network_without_training_and_races_the_best(resnet):
    limits = limits_of(resnet, "macs<=50%")
    likes = {"resolution": 0.9, "depth": 0.8, "": 0.7}

    def score(network, candidate):
        kinds = {type(edit) for edit in candidate.plan.edits}
        return likes["resolution" if Resolution in kinds else "depth" if RemoveBlock in kinds else ""]

    method = Auto(resnet, limits, epochs=0, tune_epochs=6)
    asked = play(method, resnet, worth=0.0, score=score)
    judged = [c for c in asked if c.role == "candidate" and not c.epochs]
    racing = [c for c in asked if c.role == "candidate" and c.epochs == 2]
    assert len(racing) == 3
    assert len(judged) > 6
    assert [c.epochs for c in asked if c.role == "baseline"] == [8]
    assert any(isinstance(edit, Resolution) for edit in method.best().candidate.plan.edits)
    assert limits.met(method.best().costs)
    assert not any(c.weights == "fresh" for c in asked)


@pytest.mark.breadth
def test_auto_keeps_what_the_last_training_made_worse_as_it_was(resnet):
    method = Auto(resnet, limits_of(resnet, "macs<=50%"), epochs=0, tune_epochs=1)
    play(method, resnet, score=lambda network, candidate: 0.4 if candidate.epochs else 0.7)
    assert method.best().candidate.epochs == 0
    assert "as it was before the last training" in method.log[-1]


@pytest.mark.breadth
def test_new_weights_race_where_the_given_ones_are_worth_little(resnet):
    def score(network, candidate):
        return 0.9 if not candidate.plan.edits or candidate.weights == "fresh" else 0.2

    method = Auto(resnet, limits_of(resnet, "macs<=50%"), epochs=0, tune_epochs=6)
    asked = play(method, resnet, score=score)
    assert [c.weights for c in asked].count("fresh") == 1


@pytest.mark.breadth
def test_where_the_resolution_is_fixed_widths_and_blocks_are_left(resnet):
    bound = __import__("convwright").Constraints(resolution="fixed").bound(resnet)
    method = Auto(bound, limits_of(resnet, "macs<=50%"), epochs=0, tune_epochs=3)
    asked = play(method, bound)
    assert not any(isinstance(edit, Resolution) for c in asked for edit in c.plan.edits)
    assert method.best() is not None
    assert all(c.plan == Plan.empty(bound) for c in asked if c.role != "candidate")

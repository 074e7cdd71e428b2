import json
import math

import pytest

import convwright as cw
from convwright.cost import Limits
from convwright.edits import Plan, Width
from convwright.errors import BudgetError, ConvwrightError, RunError
from convwright.methods import (
    METHODS,
    Auto,
    Candidate,
    Evidence,
    Method,
    RandomWidths,
    Stop,
    Terms,
    Uniform,
    method_named,
    register,
)
from convwright.methods.options import checked_options, options_of

BUDGET = Limits({"macs": 10**6})
PLAN = Plan((Width("conv1", 8), Width("conv2", 4, keep={"conv2": [0, 2, 3, 5]})), "zoo:x", (1, 3, 8, 8), 100, 1000)


def test_a_candidate_survives_json():
    candidate = Candidate(PLAN, 3, 5, 7, Stop("rank", 0.5, above=False, epoch=2), "baseline", ("rank",))
    assert Candidate.from_dict(json.loads(json.dumps(candidate.to_dict()))) == candidate
    plain = Candidate(PLAN, None, 5, 7)
    assert Candidate.from_dict(json.loads(json.dumps(plain.to_dict()))) == plain


def test_evidence_survives_json():
    candidate = Candidate(PLAN, None, 1, 0)
    evidence = Evidence(candidate, 4, 0.75, 0.01, {"macs": 5}, {"rank": [1, 2]}, "stopped", 1.5, "early")
    assert Evidence.from_dict(json.loads(json.dumps(evidence.to_dict())), candidate) == evidence


def test_failed_evidence_has_no_score_and_survives_json():
    candidate = Candidate(PLAN, None, 1, 0)
    failed = Evidence(candidate, 0, math.nan, 0.0, {}, status="failed", message="broke")
    back = Evidence.from_dict(json.loads(json.dumps(failed.to_dict(), allow_nan=False)), candidate)
    assert not back.usable
    assert math.isnan(back.score)
    assert back.message == "broke"


@pytest.mark.parametrize("damage", [{"plan": "{}"}, {"stop": {"probe": "x", "what": 1}}, {"unknown": 1}])
def test_a_damaged_candidate_is_refused(damage):
    with pytest.raises(RunError, match="damaged"):
        Candidate.from_dict(Candidate(PLAN, None, 1, 0).to_dict() | damage)


@pytest.mark.parametrize("damage", [{"status": "odd"}, {"score": "high"}, {"unknown": 1}])
def test_damaged_evidence_is_refused(damage):
    candidate = Candidate(PLAN, None, 1, 0)
    with pytest.raises(RunError, match="damaged"):
        Evidence.from_dict(Evidence(candidate, 0, 0.5, 0.1, {}).to_dict() | damage, candidate)


def test_methods_are_found_by_name():
    assert method_named("uniform") is Uniform
    assert method_named("auto") is Auto
    with pytest.raises(ConvwrightError, match=r"unknown method 'unifrom'\. Did you mean uniform\?"):
        method_named("unifrom")


def test_a_new_method_is_one_registration(monkeypatch):
    monkeypatch.setattr("convwright.methods.base.METHODS", dict(METHODS))

    @register("mine")
    class Mine(Uniform):
        pass

    assert method_named("mine") is Mine


class Plain:
    """Has what a method must have, and derives from nothing."""

    def __init__(self, arch, limits, *, epochs, tune_epochs, seed=0, divisor=1):
        super().__init__()
        self.results, self.log = [], []

    def ask(self):
        return () if self.results else (Candidate(PLAN, None, 1, 0),)

    def tell(self, evidence):
        self.results.append(evidence)
        self.log.append("end: told")

    def best(self):
        return self.results[-1] if self.results else None


class Slim(Plain):
    """Widths are all that it changes; it says so itself."""

    ranks = True


@pytest.mark.parametrize(("maker", "ranks"), [(Plain, False), (Slim, True)])
def test_the_registry_gives_any_class_the_hooks_of_a_method(monkeypatch, maker, ranks):
    monkeypatch.setattr("convwright.methods.base.METHODS", dict(METHODS))
    assert register("mine")(maker) is maker
    made = method_named("mine")
    assert (made.ranks, made.beyond_widths) == (ranks, False)
    method = made(None, None, epochs=1, tune_epochs=1)
    assert isinstance(method, Method)
    assert isinstance(method, Plain)
    assert (method.decisions, method.log, method.finals, method.history, method.techniques) == ((), [], (), (), ())
    method.without_techniques(lambda changes: True)
    method.tell(Evidence(method.ask()[0], 0, 0.5, 0.1, {}))
    assert (method.log, method.ask(), method.best().score) == (["end: told"], (), 0.5)


def test_a_method_without_its_three_verbs_is_refused():
    class Half(Method):
        def ask(self):
            return ()

    with pytest.raises(TypeError, match=r"best.*tell"):
        Half()


def test_terms_and_options_are_told_apart():
    arch = cw.read("zoo:mnist-a")
    method = RandomWidths(arch, epochs=3, seed=5, trials=4)
    assert method.terms == Terms(epochs=3, tune_epochs=1, seed=5, divisor="auto")
    assert (method.options.trials, method.options.spread) == (4, 2.0)
    assert RandomWidths(arch, None, Terms(epochs=3, seed=5), trials=4).ask() == method.ask()
    with pytest.raises(
        ConvwrightError, match=r"method random has no option 'trils'; it has trials.*Did you mean trials"
    ):
        RandomWidths(arch, trils=3)
    with pytest.raises(ConvwrightError, match=r"option spread=0.5 of method random: .*greater than or equal to 1"):
        RandomWidths(arch, spread=0.5)
    with pytest.raises(ConvwrightError, match=r"option trials='4' of method random: .*valid integer"):
        RandomWidths(arch, trials="4")
    with pytest.raises(BudgetError, match="method uniform scales a network to a budget; give one"):
        Uniform(arch)


class Chooser(Plain):
    def __init__(
        self, arch, limits, *, epochs, tune_epochs, seed=0, divisor=1, count: int = 3, last: str | None = None
    ):
        super().__init__(arch, limits, epochs=epochs, tune_epochs=tune_epochs)
        self.count = count


def test_options_of_a_class_that_derives_from_nothing_are_its_keyword_arguments(monkeypatch):
    monkeypatch.setattr("convwright.methods.base.METHODS", dict(METHODS) | {"mine": Chooser})
    assert set(options_of("mine").model_fields) == {"count", "last"}
    assert checked_options("mine", {"count": 4}) == {"count": 4}
    with pytest.raises(ConvwrightError, match=r"option count='4' of method mine: .*valid integer"):
        checked_options("mine", {"count": "4"})
    with pytest.raises(
        ConvwrightError, match=r"method mine has no option 'cuont'; it has count, last. Did you mean count"
    ):
        checked_options("mine", {"cuont": 4})
    assert method_named("mine")(None, None, epochs=1, tune_epochs=1, count=4).count == 4


@pytest.mark.parametrize("made", [lambda arch: Uniform(arch, BUDGET), lambda arch: RandomWidths(arch)])
def test_the_evidence_is_found_by_its_old_name(made):
    method = made(cw.read("zoo:mnist-a"))
    for number, candidate in enumerate(method.ask()):
        method.tell(Evidence(candidate, number, 0.5, 0.1, {"macs": 1}))
    assert method.told == method.results
    assert method.results


def test_every_method_is_listed_with_its_options():
    assert {name: method_named(name).name for name in METHODS} == {name: name for name in METHODS}
    for name in METHODS:
        for option in options_of(name)().model_dump():
            assert f"        {option}: " in options_of(name).__doc__

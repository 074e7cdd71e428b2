"""The phased design, played with a made-up evaluator: accuracy as a function of plan and recipe."""

import dataclasses
import json
import math
import zlib
from itertools import pairwise

import pytest
import torch
from torch import nn

from convwright.architecture import read
from convwright.cost import costs_of, parse_budget
from convwright.cost.budget import Limits
from convwright.edits import Plan, RemoveBlock, Replace, apply
from convwright.errors import BudgetError
from convwright.methods import Candidate, Evidence, PhasedDesign, Trying, method_named
from convwright.methods.phased.moves import PHASES, Scene, dense_convolutions, removable, stage_ends
from convwright.methods.phased.techniques import joined
from convwright.runs.evaluate import reshaped

FEW = (Trying("smooth", {"label_smoothing": 0.1}), Trying("mixup", {"techniques": {"mixup": {"alpha": 0.2}}}))


class Vgg(nn.Module):
    """Convolutions that keep the size, pools, and a head that reads a flattened map; sizes are prime."""

    def __init__(self, num_classes=3):
        super().__init__()
        row, channels = [], 1
        for width in (7, 7, 0, 13, 13, 0):
            row += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
            channels = width or channels
        self.features = nn.Sequential(*row)
        self.classifier = nn.Sequential(nn.Linear(13 * 25, 11), nn.ReLU(), nn.Linear(11, num_classes))

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


class Halves(nn.Module):
    """Two equal parts of one convolution: their sizes are tied."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 14, 3)
        self.second, self.third = nn.Conv2d(7, 11, 3, padding=1), nn.Conv2d(11, 13, 3, padding=1)
        self.fc = nn.Linear(13, 3)

    def forward(self, x):
        one, two = self.first(x).chunk(2, 1)
        return self.fc(self.third(torch.relu(self.second(one * two))).mean((2, 3)))


@pytest.fixture(scope="module")
def base():
    return read("zoo:mnist-base")


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    return read(Vgg(), (1, 1, 20, 20))


@pytest.fixture(scope="module")
def small():
    """Three convolutions, one pool between them, global pooling: quick to read."""
    torch.manual_seed(0)
    row = nn.Conv2d(1, 7, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(7, 13, 3), nn.ReLU(), nn.Conv2d(13, 11, 3)
    return read(nn.Sequential(*row, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(11, 3)), (1, 1, 17, 17))


def limits_of(arch, budget):
    return parse_budget(budget).resolve(arch.profile())


def accuracy(candidate, seed=0):
    """A number of plan and recipe alone, in 0.5..0.9."""
    text = f"{seed}{candidate.plan.edits}{sorted(candidate.recipe.items())}"
    return 0.5 + 0.4 * zlib.crc32(text.encode()) / 2**32


BUILT = {}  # networks after edits, which are functions of both: made once for all tests


def built(parent, edits):
    key = parent, str(edits)
    if key not in BUILT:
        BUILT[key] = parent.apply(*edits, importance="first", verify=False)
    return BUILT[key]


class World:
    """Answers with built networks' costs, each built from its parent's; remembers everything."""

    def __init__(self, arch, score=accuracy, fails=lambda number, candidate: False):
        self.arch, self.score, self.fails = arch, score, fails
        self.built, self.batches, self.evidence = {}, [], []

    def answer(self, candidate):
        number = len(self.evidence)
        if self.fails(number, candidate):
            return Evidence(candidate, number, math.nan, 0.0, {}, status="failed", message="it broke")
        parent = self.arch if candidate.parent is None else self.built[candidate.parent]
        given = 0 if candidate.parent is None else len(self.evidence[candidate.parent].candidate.plan.edits)
        new = candidate.plan.edits[given:]
        self.built[number] = built(parent, new) if new else parent
        return Evidence(candidate, number, self.score(candidate), 0.01, costs_of(self.built[number].profile()))

    def play(self, method):
        while batch := method.ask():
            self.batches.append(batch)
            for candidate in batch:
                self.evidence.append(self.answer(candidate))
                method.tell(self.evidence[-1])
        return self


def design(arch, budget, techniques=FEW, **changes):
    return PhasedDesign(
        arch, limits_of(arch, budget), **{"epochs": 3, "tune_epochs": 2, "techniques": techniques, **changes}
    )


def check_lineage(world):
    """Every plan begins with its parent's; what a batch names as a parent was told before it."""
    done = 0
    for batch in world.batches:
        for candidate in batch:
            if candidate.parent is not None:
                assert candidate.parent < done
                parent = world.evidence[candidate.parent]
                assert parent.usable
                assert candidate.plan.edits[: len(parent.candidate.plan.edits)] == parent.candidate.plan.edits
        done += len(batch)


def trained(world, evidence):
    """Epochs from the first weights on."""
    found = evidence.candidate.epochs
    while evidence.candidate.parent is not None:
        evidence = world.evidence[evidence.candidate.parent]
        found += evidence.candidate.epochs
    return found


def baseline_of(world):
    return [e for e in world.evidence if e.candidate.role == "baseline" and e.usable][-1]


# ------------------------------------------------------------------ budgets and order


@pytest.mark.parametrize(
    ("network", "budget"),
    [
        pytest.param("base", "params<=1500", marks=pytest.mark.breadth),
        pytest.param("base", "macs<=10%, params<=20%", marks=pytest.mark.breadth),
        ("vgg", "params<=900"),
        pytest.param("vgg", "weights<=4KB", marks=pytest.mark.breadth),
    ],
)
def test_the_budget_is_met_from_below_and_used(request, network, budget):
    arch = request.getfixturevalue(network)
    world = World(arch)
    method = design(arch, budget)
    world.play(method)
    best = method.best()
    use = Scene(arch, method.limits).use_of(best.costs)
    assert method.limits.met(best.costs)
    assert use > 0.9
    check_lineage(world)
    # The plan as a file, replayed on a fresh network, gives what was trained.
    again = apply(Plan.from_json(best.candidate.plan.to_json()), arch.model, arch.example_input, verify=False)
    assert costs_of(again.profile()) == best.costs
    assert costs_of(reshaped(arch, best.candidate.plan).profile()) == best.costs


@pytest.mark.breadth
def test_phases_come_in_order_and_costs_fall(vgg):
    world = World(vgg)
    method = design(vgg, "params<=700")
    world.play(method)
    names = [d.phase for d in method.decisions]
    expected = ["phase 0, base", *(f"phase {n}, {p.name}" for n, p in enumerate(PHASES, start=1))]
    assert names[: len(expected)] == expected
    assert names[len(expected)].startswith("techniques")
    kept = [d.kept for d in method.decisions[: len(expected)] if d.kept is not None]
    scene = Scene(vgg, method.limits)
    uses = [scene.use_of(world.evidence[number].costs) for number in kept]
    assert len(kept) > 3
    assert all(after < before or before <= 1 for before, after in pairwise(uses))


def test_all_trials_of_a_phase_cost_about_the_same(base):
    method = design(base, "params<=1500")
    world = World(base).play(method)
    for decision in method.decisions:
        if decision.phase.startswith("phase") and len(decision.trials) > 1:
            params = [world.evidence[n].costs["params"] for n in decision.trials]
            assert min(params) > 0.85 * max(params), decision


def test_the_most_accurate_of_a_phase_is_kept_and_losers_are_dropped(base):
    method = design(base, "params<=1500", techniques=())
    world = World(base).play(method)
    for decision in method.decisions:
        tried = [world.evidence[n] for n in decision.trials]
        if tried:
            assert decision.kept == max(tried, key=lambda e: e.score).trial
            assert f"trial {decision.kept} " in decision.reason
    losers = {n for d in method.decisions for n in d.trials} - {d.kept for d in method.decisions}
    assert not losers & {e.candidate.parent for e in world.evidence}


def test_equal_scores_keep_the_cheaper(base):
    method = design(base, "params<=1500", techniques=())
    world = World(base, score=lambda candidate: 0.5).play(method)
    for decision in method.decisions:
        if decision.trials:
            cheapest = min(world.evidence[n].costs["params"] for n in decision.trials)
            assert world.evidence[decision.kept].costs["params"] == cheapest


@pytest.mark.slow
def test_torchvision_resnet():
    arch = read("torchvision:resnet18", (1, 3, 32, 32), num_classes=7)
    method = design(arch, "params<=10%", techniques=())

    def structures(candidate):
        return 0.5 + 0.01 * sum(isinstance(e, RemoveBlock | Replace) for e in candidate.plan.edits)

    world = World(arch, structures).play(method)
    kinds = {e.kind for e in method.best().candidate.plan.edits}
    assert {"remove_block", "replace", "width"} <= kinds
    assert method.limits.met(method.best().costs)
    check_lineage(world)


def test_tied_groups_replay_alike():
    torch.manual_seed(0)
    arch = read(Halves(), (1, 1, 9, 9))
    method = design(arch, "params<=25%", techniques=())
    World(arch).play(method)
    best = method.best()
    assert method.limits.met(best.costs)
    assert costs_of(reshaped(arch, best.candidate.plan).profile()) == best.costs


# ------------------------------------------------------------------ the baseline


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.breadth)])
def test_the_baseline_is_trained_as_long_with_the_same_recipe(small, seed):
    method = design(small, "params<=20%")
    world = World(small, score=lambda c: accuracy(c, seed)).play(method)
    baseline, best = baseline_of(world), method.best()
    assert trained(world, baseline) == trained(world, best)
    assert baseline.candidate.recipe == best.candidate.recipe
    assert (baseline.candidate.seed, baseline.candidate.plan.edits) == (best.candidate.seed, ())


# ------------------------------------------------------------------ techniques


def gains(**points):
    """An evaluator in which techniques add points, and no plan is better than another."""

    def score(candidate):
        named = {*candidate.recipe, *candidate.recipe.get("techniques", {})} - {"techniques"}
        return 0.5 + sum(points.get(name, 0.0) for name in named) - points.get("pair", 0.0) * (len(named) > 1)

    return score


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ({}, {}),
        ({"mixup": 0.013}, {}),  # within the standard error of the difference: 0.0141
        ({"mixup": 0.05}, FEW[1].recipe),
        ({"mixup": -0.1, "label_smoothing": 0.05}, FEW[0].recipe),
        ({"mixup": 0.05, "label_smoothing": 0.04}, {**FEW[0].recipe, **FEW[1].recipe}),
        ({"mixup": 0.05, "label_smoothing": 0.04, "pair": 0.06}, FEW[1].recipe),
    ],
)
def test_techniques_are_kept_only_if_validation_says_so(base, points, expected):
    method = design(base, "params<=100%")
    world = World(base, gains(**points)).play(method)
    assert method.best().candidate.recipe == expected
    assert baseline_of(world).candidate.recipe == expected
    assert method.best().candidate.plan.edits == ()
    assert "nothing to cut" in method.log[1]


def test_operators_are_edits_and_need_room(base):
    operators = (Trying("blurpool", operator="blurpool"), Trying("squeeze_excite", operator="squeeze_excite"))
    method = design(base, "params<=26k", techniques=(*operators, Trying("odd", operator="no-such-operator")))
    World(base, lambda c: 0.5 + 0.1 * len(c.plan.edits)).play(method)
    edits = method.best().candidate.plan.edits
    assert {e.operator for e in edits} == {"blurpool"}
    assert [e.target for e in edits] == ["features.3", "features.7"]
    assert "no room for squeeze_excite" in method.log[-1]
    assert "odd finds no layer here" in method.log[-1]


def test_recipes_are_joined():
    one, two = {"cutout": 3, "techniques": {"ema": {}}}, {"cutout": 5, "techniques": {"sam": {"rho": 0.1}}}
    assert joined([one, two]) == {"cutout": 5, "techniques": {"ema": {}, "sam": {"rho": 0.1}}}
    assert joined([{"cutout": 3}]) == {"cutout": 3}
    assert joined([]) == {}


# ------------------------------------------------------------------ replay and failures


@pytest.mark.breadth
def test_replay_asks_the_same_wherever_it_was_stopped(vgg):
    first = design(vgg, "params<=900", seed=5)
    world = World(vgg).play(first)
    flat = [c for batch in world.batches for c in batch]
    ends = [0]
    for batch in world.batches:
        ends.append(ends[-1] + len(batch))
    for done in (0, ends[2], ends[2] + 1, len(flat)):
        method = design(vgg, "params<=900", seed=5)
        for evidence in world.evidence[:done]:
            method.tell(evidence)
        end = next((end for end in ends if end > done), len(flat))
        assert list(method.ask()) == flat[done:end]
        if done == len(flat):
            assert method.log == first.log
            assert method.best() == first.best()


@pytest.mark.breadth
def test_it_reads_no_weights():
    torch.manual_seed(1)
    one, two = read(Vgg(), (1, 1, 20, 20)), read(Vgg(), (1, 1, 20, 20))
    with torch.no_grad():
        for parameter in two.model.parameters():
            parameter.fill_(float("nan"))
    world = World(one).play(design(one, "params<=900", techniques=()))
    method, answers = design(two, "params<=900", techniques=()), iter(world.evidence)
    for batch in world.batches:
        assert method.ask() == batch
        for _ in batch:
            method.tell(next(answers))
    assert method.ask() == ()


@pytest.mark.few(2)
@pytest.mark.parametrize("failing", ["base", "structure", "all of phase 2", "last phase", "techniques", "candidates"])
def test_failures_are_survived(small, failing):
    def fails(number, candidate):
        operators = any(isinstance(e, Replace) for e in candidate.plan.edits)
        return {
            "base": number == 0,
            "structure": operators,
            "all of phase 2": candidate.role == "candidate" and number <= 3,
            "last phase": candidate.role == "candidate" and candidate.seed == 3 and candidate.parent != 0,
            "techniques": bool(candidate.recipe),
            "candidates": candidate.role == "candidate",
        }[failing]

    method = design(small, "params<=20%")
    world = World(small, fails=fails).play(method)
    check_lineage(world)
    best = method.best()
    if failing in ("base", "candidates"):
        assert best is None
        assert "it broke" in method.log[-1]
        return
    assert method.limits.met(best.costs)
    assert trained(world, baseline_of(world)) >= trained(world, best)
    if failing == "structure":
        assert not any(isinstance(e, Replace) for e in best.candidate.plan.edits)
    if failing == "last phase":
        assert any(d.phase == "phases undone" for d in method.decisions)
    if failing == "techniques":
        assert "failed (it broke)" in method.log[-1]


def test_networks_without_anything_to_cut_but_widths():
    torch.manual_seed(0)
    arch = read(nn.Sequential(nn.Flatten(), nn.Linear(25, 11), nn.ReLU(), nn.Linear(11, 3)), (1, 1, 5, 5))
    method = design(arch, "params<=50%", techniques=None)
    World(arch).play(method)
    assert {e.kind for e in method.best().candidate.plan.edits} == {"width"}
    assert sum("skipped" in line for line in method.log) == 4


def test_a_head_that_brings_more_than_the_budget_asks_for(vgg):
    """Then there is nothing left to cut; growing is offered and kept only if it is more accurate."""
    method = design(vgg, "params<=5500", techniques=())
    World(vgg, lambda c: 0.5 + 0.1 * any(isinstance(e, Replace) for e in c.plan.edits)).play(method)
    assert any(isinstance(e, Replace) for e in method.best().candidate.plan.edits)
    assert method.limits.met(method.best().costs)


def test_impossible_budgets_are_refused_at_once(base):
    with pytest.raises(BudgetError, match="no common ratio"):
        design(base, "params<=20")
    latency = Limits({"latency": 10}, {"latency": lambda widths: 20})
    with pytest.raises(BudgetError, match="cannot hold a limit on latency"):
        PhasedDesign(base, latency, epochs=1, tune_epochs=1)


# ------------------------------------------------------------------ what is found to propose


def test_stage_ends_are_where_maps_get_much_smaller(base):
    assert stage_ends(base) == ["features.1.0", "features.5.0"]  # and not where kernels without padding trim them
    m1 = read("zoo:mnist-m1")
    assert stage_ends(m1) == ["features.3", "features.8"]  # the 1x1 transitions of the paper


def test_the_first_convolution_stays_dense(base):
    assert dense_convolutions(base) == ["features.1.0", "features.4.0", "features.5.0"]
    assert dense_convolutions(read("zoo:mnist-m3")) == []


def test_a_convolution_that_narrows_can_be_dropped_with_a_narrower_one_before_it():
    row = nn.Sequential(
        nn.Conv2d(1, 7, 3), nn.ReLU(), nn.Conv2d(7, 7, 3, padding=1), nn.ReLU(), nn.Conv2d(7, 5, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    found = removable(read(row, (1, 1, 11, 11)))
    (width,) = found["4"]
    assert (width.target, width.size) == ("2", 5)


# ------------------------------------------------------------------ data


def test_a_candidate_with_a_recipe_survives_json_and_old_records_are_read(base):
    candidate = Candidate(Plan.empty(base), 0, 1, 2, recipe={"techniques": {"mixup": {"alpha": 0.2}}})
    values = json.loads(json.dumps(candidate.to_dict()))
    assert Candidate.from_dict(values) == candidate
    assert hash(candidate) == hash(dataclasses.replace(candidate, recipe={}))
    plain = dataclasses.replace(candidate, recipe={})
    assert "recipe" not in plain.to_dict()  # so a run that began before there was one is resumed
    assert Candidate.from_dict(plain.to_dict()) == plain


def test_decisions_are_plain_data(base):
    method = design(base, "params<=100%")
    World(base).play(method)
    values = [decision.to_dict() for decision in method.decisions]
    assert json.loads(json.dumps(values)) == values
    assert len(method.log) == len(values)


def test_it_is_found_by_name():
    assert method_named("phased") is PhasedDesign

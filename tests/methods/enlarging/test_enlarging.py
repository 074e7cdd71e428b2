"""Greedy enlarging: the core on surrogates whose optimum is known, and the method on real networks."""

import itertools
import math
import time
import zlib

import numpy as np
import pytest
import torch

import convwright as cw
from convwright import zoo
from convwright.cost import count_by_torch
from convwright.cost.budget import Limits
from convwright.edits.transfer import check_widths_only
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods.base import Candidate, Evidence
from convwright.methods.enlarging.greedy import GreedyEnlarging, GreedyOptions
from convwright.methods.enlarging.growth import Knob, Score, Step, budgets, enlarge, nearest, ranked, trimmed
from convwright.methods.shared.stage_knobs import Stages


class Units:
    """Knobs whose units cost what is said; the cost of a point is the sum, or a given function."""

    def __init__(self, start, cost=sum, **options):
        self.start = tuple(start)
        self.knobs = tuple(Knob(f"knob {i}", **options) for i in range(len(self.start)))
        self._cost = cost

    def cost(self, point):
        return int(self._cost(point))

    def allows(self, point):
        return True


def grown(space, levels, worth, growth=None):
    """Run the core with a function that scores points; return the levels."""
    seen = []
    course = enlarge(space, levels, growth or GreedyOptions(tolerance=0.0), seen.append)
    pool = next(course, None)
    while pool is not None:
        try:
            pool = course.send([worth(step.point) for step in pool])
        except StopIteration:
            break
    return seen


def separable(c, beta):
    return lambda m: Score(-sum(a * n**-beta for a, n in zip(c, m, strict=True)))


C = (0.5, 1, 2, 4)


# ------------------------------------------------------------------ surrogates with a known optimum


@pytest.mark.parametrize(
    ("start", "scale", "target", "optimum"),
    [
        ((1, 1, 1, 1), 1, 41, (5, 7, 11, 18)),
        ((20, 1, 1, 1), 1, 41, (20, 4, 7, 10)),  # lower bounds: nothing is taken away
        ((10, 10, 10, 10), 10, 410, (45, 71, 113, 181)),
    ],
)
def test_separable_concave_scores_are_solved_exactly(start, scale, target, optimum):
    space = Units(start)
    levels = budgets(sum(start), target, target - sum(start))
    last = grown(space, levels, separable(C, 0.5))[-1].kept[0].point
    total = lambda m: separable(C, 0.5)(m).score  # noqa: E731
    if scale == 1:
        assert last == optimum
        ranges = [range(n, target) for n in start[:3]]
        others = (m for m in itertools.product(*ranges) if sum(m) + start[3] <= target)
        assert total(last) == pytest.approx(max(total((*m, target - sum(m))) for m in others), abs=1e-12)
    else:  # the continuous optimum, to one quantum
        shares = [c ** (1 / 1.5) for c in C]
        ideal = [target * s / sum(shares) for s in shares]
        assert all(abs(a - b) <= 1 for a, b in zip(last, ideal, strict=True))


def test_the_printed_loss():
    assert -separable(C, 0.5)((5, 7, 11, 18)).score == pytest.approx(2.147403, abs=1e-6)


@pytest.mark.parametrize(("beam", "end", "value"), [(1, (5, 0), 2.5), (2, (5, 0), 2.5), (3, (0, 5), 3.0)])
def test_where_the_assumption_fails_only_a_beam_finds_the_optimum(beam, end, value):
    worth = lambda p: Score(max(0.5 * p[0], 0.12 * p[1] ** 2))  # noqa: E731
    levels = tuple(range(6))
    best = grown(Units((0, 0)), levels, worth, GreedyOptions(tolerance=0.0, beam=beam))[-1].kept[0]
    assert (best.point, best.score.score) == (end, value)


def products(p):
    """A toy network: three stages of d blocks and w channels, and a side."""
    d, w, r = p[:3], p[3:6], p[6]
    return sum(n * c * c * math.ceil(r / s) ** 2 for n, c, s in zip(d, w, (1, 2, 4), strict=True))


def test_regret_beside_exhaustive_search():
    start, c = (1, 1, 1, 4, 4, 8, 8), (3.0, 2.0, 1.0)

    def worth(p):
        each = [n * w * w * math.ceil(p[6] / s) ** 2 for n, w, s in zip(p[:3], p[3:6], (1, 2, 4), strict=True)]
        return Score(1 - sum(a * m**-0.5 for a, m in zip(c, each, strict=True)) - 0.2 * (p[6] / 8) ** -1.0)

    space = Units(start, products)
    levels = budgets(products(start), 3 * products(start), 6, "geometric")
    seen = grown(space, levels, worth, GreedyOptions(tolerance=0.05))
    grid = itertools.product(*[range(1, 4)] * 3, range(4, 9), range(4, 9), range(8, 14), range(8, 13))
    points = [(p, products(p), worth(p).score) for p in grid]
    for level in seen:
        fit = [value for _, cost, value in points if abs(cost - level.budget) <= 0.05 * level.budget]
        if level.kept and fit:
            reached = level.kept[0].score.score
            assert reached >= max(fit) - 0.1 * (max(fit) - worth(start).score) - 0.02
    assert seen[-1].kept


def test_more_seeds_choose_better_among_noisy_scores():
    random = np.random.default_rng(11)
    truth = [0.70, 0.71, 0.72, 0.73]

    def picked(seeds, sigma):
        draws = [t + sigma * random.standard_normal(seeds) for t in truth]
        steps = [Step((i,), 1, 1, (i,), None, Score(float(d.mean()))) for i, d in enumerate(draws)]
        return truth[ranked(steps)[0].point[0]]

    quality = [np.mean([picked(seeds, 0.03) for _ in range(300)]) for seeds in (1, 4, 16)]
    assert quality == sorted(quality)
    assert picked(1, 0.0) == 0.73


# ------------------------------------------------------------------ rules of the core


def test_ties_go_to_the_cheaper_then_to_the_earlier_knob():
    def step(cost, turned, value, stderr):
        return Step((cost, turned), 1, cost, (turned,), None, Score(value, stderr))

    noisy = [step(120, 0, 0.800, 0.01), step(100, 2, 0.790, 0.01), step(100, 1, 0.791, 0.01), step(90, 3, 0.7, 0.01)]
    assert [s.turned[0] for s in ranked(noisy)] == [1, 2, 0, 3]
    exact = [step(s.cost, s.turned[0], s.score.score, 0.0) for s in noisy]
    assert [s.turned[0] for s in ranked(exact)] == [0, 1, 2, 3]
    failed = step(1, 4, float("nan"), 0.0)
    assert failed not in ranked([*noisy, failed])


def test_a_coarse_knob_spans_levels_and_is_compared_at_equal_cost():
    coarse = Units((0, 0), lambda p: 100 + 3 * p[0] + 17 * p[1])
    levels = (100, 106, 112, 118, 124, 130)
    seen = grown(coarse, levels, lambda p: Score(p[0] + 10 * p[1]), GreedyOptions(tolerance=0.02))
    at = {level.number: [s.point for s in level.judged] for level in seen}
    assert at[1] == [(2, 0)]
    assert (0, 1) in at[3]
    assert (6, 0) in at[3]
    assert seen[2].kept[0].point == (0, 1)
    assert seen[-1].kept[0].point == (4, 1)


def test_nothing_lands_on_a_level_and_its_budget_is_carried_over():
    coarse = Units((0,), lambda p: 100 + 40 * p[0])
    seen = grown(coarse, (100, 110, 120, 130, 140), lambda p: Score(1.0), GreedyOptions(tolerance=0.01, span=1))
    assert [bool(level.kept) for level in seen] == [False, False, False, True]
    assert seen[-1].kept[0].point == (1,)


def test_a_level_where_all_fail_is_passed_by_what_spans_it():
    space = Units((0, 0), lambda p: 100 + 5 * p[0] + 10 * p[1])
    worth = lambda p: Score(math.nan if p == (1, 0) else 1.0)  # noqa: E731
    seen = grown(space, (100, 105, 110, 115), worth, GreedyOptions(tolerance=0.001))
    assert not seen[0].kept
    assert seen[1].kept[0].point == (0, 1)
    assert seen[2].kept[0].point == (1, 1)


@pytest.mark.parametrize("schedule", ["arithmetic", "geometric"])
def test_schedules(schedule):
    levels = budgets(141, 600, 15, schedule)
    assert (levels[0], levels[-1], len(levels)) == (141, 600, 16)
    assert all(a < b for a, b in itertools.pairwise(levels))
    steps = [b - a if schedule == "arithmetic" else b / a for a, b in itertools.pairwise(levels)]
    assert max(steps) - min(steps) <= (1 if schedule == "arithmetic" else 0.02)


def test_caps_hold():
    capped = Units((10, 10), growth=1.5)
    assert nearest(capped, (10, 10), 0, 1000) == (15, 10)


def test_trimming_ends_within_the_target():
    space = Units((4, 4, 4), lambda p: p[0] ** 2 + 3 * p[1] ** 2 + 7 * p[2])
    for point, target in itertools.product([(9, 9, 9), (20, 4, 4), (5, 5, 5)], (300, 377)):
        cost = space.cost(trimmed(space, point, target, 0.03, (0, 1, 2)))
        assert 0.97 * target <= cost <= target


def test_where_no_step_fits_one_knob_is_lowered_for_another():
    space = Units((1, 1), lambda p: 10 * p[0] + 7 * p[1])
    assert trimmed(space, (5, 6), 97, 0.02, (0, 1)) == (4, 8)  # 92, one step of 10 down and two of 7 up
    for target in range(60, 200):
        cost = space.cost(trimmed(space, (3, 4), target, 0.02, (0, 1)))
        assert min(0.98 * target, target - 2) <= cost <= target


# ------------------------------------------------------------------ real networks


@pytest.fixture(scope="module")
def tiny():
    return cw.read("zoo:resnet20", "3x16x16", widths=(8, 12, 16), depths=(1, 2, 1))


def times(arch, factor, **others):
    return Limits({"macs": int(arch.profile().macs * factor), **others})


def told(search, worth, fails=()):
    """Answer everything that a search asks; return what was asked."""
    asked = []
    while batch := search.ask():
        for candidate in batch:
            number = len(asked)
            asked.append(candidate)
            status = "failed" if number in fails else "done"
            score = math.nan if status == "failed" else worth(candidate)
            costs = {"macs": 0, "params": 0}
            search.tell(Evidence(candidate, number, score, 0.0, costs, status=status, message="as asked"))
    return asked


def liking(*targets):
    """Score plans by how much they do to some targets."""

    def worth(candidate):
        return sum(
            getattr(e, "size", 0) / 1000 + getattr(e, "copies", 0)
            for e in candidate.plan.edits
            if getattr(e, "target", "resolution").startswith(targets)
        )

    return worth


def built_costs(arch, plan):
    found = cw.apply(plan, arch.model, arch.example_input, verify=False).profile()
    return {"macs": found.macs, "params": found.params}


def test_a_run_keeps_its_budgets_and_its_predictions(tiny):
    limits = times(tiny, 2.0)
    search = GreedyEnlarging(tiny, limits, steps=4, tolerance=0.06, width_growth=2.0, depth_growth=2.0)
    asked = told(search, liking("layer2", "resolution"))
    assert asked[-1].role == "baseline"
    assert all(c.weights == "fresh" for c in asked)
    family = search.family
    costs = [member.costs["macs"] for member in family]
    assert costs == sorted(set(costs))
    for before, after in itertools.pairwise(family):
        assert all(a <= b for a, b in zip(before.widths + before.depths, after.widths + after.depths, strict=True))
        assert before.resolution <= after.resolution
    final = asked[-2].plan
    assert search.best().trial == len(asked) - 2
    built = built_costs(tiny, final)
    assert 0.98 * limits.limits["macs"] <= built["macs"] <= limits.limits["macs"]
    assert built_costs(tiny, family[-1].plan) == family[-1].costs
    texts = [c.plan.to_json() for c in asked[:-2]]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("weights", ["fresh", "inherit"])
@pytest.mark.parametrize("steps", [2, 5])
def test_a_course_of_one_coarse_knob_ends_within_the_limit(tiny, weights, steps):
    # Widths that never grew cannot be lowered, so the last budget must not be exceeded by the resolution.
    for factor in (1.6, 2.3):
        limits = times(tiny, factor)
        search = GreedyEnlarging(tiny, limits, steps=steps, weights=weights, resolution_step=1)
        asked = told(search, liking("resolution"))
        assert any(isinstance(e, cw.Resolution) for e in asked[-2].plan.edits)
        last = search.decisions[-1].reason
        assert 94 <= float(last.partition("(")[2].partition("%")[0]) <= 100, last


def test_a_run_is_resumed_by_replay_and_repeats_itself(tiny):
    def made():
        return GreedyEnlarging(tiny, times(tiny, 1.6), steps=3, beam=2, seed=7)

    worth = liking("layer1", "layer3")
    asked = told(made(), worth)
    assert [c.to_dict() for c in told(made(), worth)] == [c.to_dict() for c in asked]
    resumed = made()
    for number, candidate in enumerate(asked[: len(asked) // 2]):
        read_again = Candidate.from_dict(candidate.to_dict())
        resumed.tell(Evidence(read_again, number, worth(candidate), 0.0, {"macs": 0, "params": 0}))
    rest = []
    while batch := resumed.ask():
        for candidate in batch:
            number = len(asked) // 2 + len(rest)
            rest.append(candidate)
            resumed.tell(Evidence(candidate, number, worth(candidate), 0.0, {"macs": 0, "params": 0}))
    assert [c.to_dict() for c in rest] == [c.to_dict() for c in asked[len(asked) // 2 :]]


def test_failed_candidates_are_passed_over(tiny):
    search = GreedyEnlarging(tiny, times(tiny, 1.5), steps=2)
    first = len(search.ask())
    told(search, liking("layer"), fails=range(first))
    assert "all candidates failed" in search.log[-3] or "carried over" in " ".join(search.log)
    assert "as asked" in " ".join(search.log)


def test_inherited_weights_go_from_parent_to_child(tiny):
    search = GreedyEnlarging(tiny, times(tiny, 1.9), steps=3, weights="inherit", epochs=0, tune_epochs=2)
    asked = told(search, liking("layer2", "layer3", "resolution"))
    assert asked[0].role == "base"
    for candidate in asked[1:]:
        parent = asked[candidate.parent]
        if candidate.weights == "inherit":
            assert candidate.plan.edits[: len(parent.plan.edits)] == parent.plan.edits
        else:
            assert candidate.weights == "net2wider"
            check_widths_only(parent.plan, candidate.plan)
    assert {c.weights for c in asked} == {"inherit", "net2wider"}
    lengths = [c.epochs for c in asked]
    assert lengths[-1] == 3 + 2  # as long as the three steps and the final training together
    assert built_costs(tiny, asked[-2].plan)["macs"] <= search.limits.limits["macs"]


def test_parameters_as_the_budget(tiny):
    limits = Limits({"params": 2 * tiny.profile().params, "macs": 3 * tiny.profile().macs})
    search = GreedyEnlarging(tiny, limits, objective="params", steps=3)
    assert search.dropped["resolution"] == "it costs no parameters"
    asked = told(search, liking("layer3"))
    for candidate in asked[:-2]:
        widths = {e.target: e.size for e in candidate.plan.edits if isinstance(e, cw.Width)}
        assert tiny.cost_model().macs(widths) <= limits.limits["macs"]


def test_latency_grows_by_widths_alone(tiny):
    model = tiny.cost_model()
    estimate = lambda widths: int(model.macs(dict(widths))) // 10  # noqa: E731
    limits = Limits({"latency": int(tiny.profile().macs * 0.15)}, {"latency": estimate})
    search = GreedyEnlarging(tiny, limits, steps=2)
    assert {k.kind for k in search.space.knobs} == {"width"}
    assert "estimated" in search.dropped["depth of stage2"]
    told(search, liking("layer3"))
    assert search.family


def test_a_fixed_resolution_is_dropped_and_named():
    from torch import nn

    block = lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())  # noqa: E731
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Sequential(block(), block()), nn.Flatten(), nn.Linear(8 * 9 * 9, 3)
    )
    arch = cw.read(model, "1x1x9x9")
    search = GreedyEnlarging(arch, times(arch, 1.8), steps=2)
    assert "does not take inputs of 17x17" in search.dropped["resolution"]
    assert "resolution" in search.log[0]


class Halves(torch.nn.Module):
    """Takes apart rows in pairs, as the code says: inputs must be even."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = torch.nn.Sequential(
            *(torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1), torch.nn.ReLU()) for _ in "ab")
        )
        self.fc = torch.nn.Linear(8, 3)

    def forward(self, x):
        x = self.blocks(self.stem(x))
        n, c, h, w = x.shape
        return self.fc(x.view(n, c, h // 2, 2, w).sum(3).mean((2, 3)))


def test_resolutions_that_the_network_does_not_take_are_no_candidates():
    arch = cw.read(Halves(), "1x1x8x8")
    search = GreedyEnlarging(arch, times(arch, 2.0), steps=3, resolution_step=3)
    told(search, liking("resolution"))
    assert all(member.resolution % 2 == 0 for member in search.family)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limits": None}, "give one above its present cost"),
        ({"factor": 0.9}, "nothing to enlarge"),
        ({"limits": Limits({"activations": 10**9})}, "cannot follow a limit on activations"),
        ({"limits": Limits({"latency": 10**9})}, "needs an estimate"),
        ({"objective": "params"}, "does not limit params"),
        ({"weights": "svd"}, "weights='svd'"),
        ({"steps": 0}, "steps=0"),
        ({"beam": 0}, "beam=0"),
        ({"tolerance": 1.5}, "tolerance"),
        ({"schedule": "linear"}, "schedule"),
        ({"quantum": 6, "divisor": 4}, "quantum=6 is no multiple of divisor=4"),
        ({"width_growth": 1.0}, "width_growth"),
        ({"trial_epochs": 0}, "trial_epochs"),
    ],
)
def test_what_is_wrong_is_said(tiny, options, message):
    given = {**options}
    limits = given.pop("limits", times(tiny, given.pop("factor", 2.0)))
    with pytest.raises((BudgetError, ConvwrightError), match=message):
        GreedyEnlarging(tiny, limits, **given)


def test_stages_say_what_they_cannot():
    arch = cw.read(
        "zoo:mobilenet-v2", "3x16x16", widths=(8, 12, 16, 20, 24, 28, 36), depths=(1, 2, 1, 1, 1, 1, 1), divisor=4
    )
    stages = Stages.of(arch)
    assert [k.name for k in stages.knobs if k.template] == ["stage2"]
    assert "changes the shape" in stages.knobs[0].reasons["depth"]
    with pytest.raises(BudgetError, match="stage1 cannot be deeper"):
        stages.copies((2, *stages.depths[1:]))
    with pytest.raises(BudgetError, match="takes positive multiples"):
        stages.sizes((stages.widths[0] + 1, *stages.widths[1:]))
    # An inverted residual widens what enters it: the first block of a stage follows the stage before.
    assert stages.drivers["stage2.0.branch.expand.conv"] == 0
    assert stages.drivers["stage2.1.branch.expand.conv"] == 1
    assert stages.drivers["stem.conv"] == -1


# ------------------------------------------------------------------ one step of 20 %, entry by entry

GHOST = [
    [("depth", 7, 171.3), ("width", 28, 168.8)], [("depth", 6, 168.3), ("width", 44, 168.3)],
    [("depth", 9, 171.5), ("width", 80, 170.2)], [("depth", 12, 168.3), ("width", 128, 168.4)],
    [("depth", 4, 172.2), ("width", 160, 169.9)], [("depth", 9, 173.0), ("width", 208, 169.4)],
]  # fmt: skip


class Table:
    """Stage widths and depths and the resolution as a space, from any first point."""

    def __init__(self, stages, depths, quantum):
        self.stages, n = stages, len(depths)
        self.start = (*stages.widths, *depths, stages.resolution)
        self.knobs = (*[Knob("w", quantum=quantum)] * n, *[Knob("d")] * n, Knob("r", quantum=8))

    def cost(self, point):
        n = len(self.stages.knobs)
        return self.stages.costs(point[:n], point[n : 2 * n], point[-1])["macs"]

    def best(self, knob, budget):
        return nearest(self, self.start, knob, budget)


@pytest.fixture(scope="module")
def ghost():
    return cw.read("zoo:ghostnet-large")


def test_one_step_of_ghostnet(ghost):
    stages = Stages.of(ghost)
    space = Table(stages, stages.depths, 4)
    assert space.cost(space.start) == 141_184_432
    for stage, entries in enumerate(GHOST):
        for kind, value, millions in entries:
            knob = stage + 6 * (kind == "depth")
            point = space.best(knob, 169.42e6)
            assert (point[knob], round(space.cost(point) / 1e6, 1)) == (value, millions)
    point = space.best(12, 169.42e6)
    assert (point[-1], round(space.cost(point) / 1e6, 1)) == (240, 168.4)


def test_one_step_of_efficientnet_b0():
    # Stages 1 and 7 have one block, which changes the shape: what a second one would cost is read where there are two.
    arch = cw.read("zoo:efficientnet-b0", depths=(2, 2, 2, 3, 3, 4, 2))
    stages = Stages.of(arch, quantum=8)
    depths = (1, 2, 2, 3, 3, 4, 1)
    space = Table(stages, depths, 8)
    assert space.cost(space.start) == 385_814_752
    found = [space.best(knob, 462.98e6) for knob in range(14)]
    # The last one is often given as 952 channels, which is 461.1M: 968 is nearer to the budget.
    assert [p[knob] for knob, p in enumerate(found[:7])] == [32, 40, 80, 136, 152, 264, 968]
    assert round(space.cost((*space.start[:6], 952, *space.start[7:])) / 1e6, 1) == 461.1
    assert round(space.cost(found[6]) / 1e6, 1) == 463.0
    assert [p[7 + i] for i, p in enumerate(found[7:])] == [16, 5, 6, 8, 5, 7, 2]
    assert round(space.cost(found[13]) / 1e6, 1) == 447.2


def test_the_whole_run_of_ghostnet_is_planned_fast(ghost):
    begun = time.process_time()
    search = GreedyEnlarging(ghost, Limits({"macs": 600_000_000}), steps=15)
    asked = told(search, lambda c: zlib.crc32(c.plan.to_json().encode()) / 2**32)
    assert time.process_time() - begun < 10
    assert len(asked) > 150


# ------------------------------------------------------------------ stage widths, stage depths, resolution


def counted_by_torch(model, side):
    macs = count_by_torch(model, torch.empty(1, 3, side, side))
    return {"macs": macs, "params": sum(p.numel() for p in model.parameters())}


@pytest.mark.parametrize(
    ("widths", "depths", "side"),
    [((36, 28, 44, 92, 124, 196), (3, 2, 1, 5, 2, 7), 248), ((16, 60, 40, 100, 116, 160), (1, 3, 2, 4, 1, 5), 233)],
)
def test_ghostnet_costs_what_its_generator_builds(ghost, widths, depths, side):
    with torch.device("meta"):
        model = zoo.create("ghostnet-large", widths=widths, depths=depths)
    assert Stages.of(ghost).costs(widths, depths, side) == counted_by_torch(model, side)


@pytest.mark.slow
def test_a_released_network_is_a_plan_from_the_base(ghost):
    with torch.device("meta"):
        model = zoo.create("s-ghostnet-b4")
    found = Stages.of(ghost).costs((36, 60, 108, 168, 232, 336), (3, 5, 5, 12, 6, 14), 384)
    assert found == counted_by_torch(model, 384)


@pytest.mark.parametrize("seed", range(2))
def test_random_settings_are_built_as_costed(tiny, seed):
    stages, random = Stages.of(tiny), np.random.default_rng(seed)
    widths = tuple(int(k.quantum * random.integers(1, 12)) for k in stages.knobs)
    depths = tuple(int(random.integers(max(1, k.depth - len(k.removable)), 5)) for k in stages.knobs)
    depths = tuple(d if k.template else min(d, k.depth) for k, d in zip(stages.knobs, depths, strict=True))
    side, ends = int(random.integers(9, 40)), float(random.uniform(0.5, 2))
    edits = [e for e in stages.edits(widths, depths, side, ends) if not isinstance(e, cw.Resolution)]
    built = tiny.apply(*edits, importance="first", verify=False)
    assert stages.costs(widths, depths, side, ends) == counted_by_torch(built.model, side)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet-v2", "ghostnet", "efficientnet-b0", "vgg16-bn", "resnet50_cifar"])
@pytest.mark.parametrize("merged", [False, True])
def test_random_settings_of_the_zoo(name, merged):
    arch = cw.read(f"zoo:{name}", "3x32x32")
    stages, random = Stages.of(arch, merge_equal_resolution=merged), np.random.default_rng(len(name))
    widths = tuple(
        int(k.quantum * max(1, round(k.width * random.uniform(0.5, 1.5) / k.quantum))) if k.quantum else k.width
        for k in stages.knobs
    )
    depths = tuple(k.depth + int(random.integers(0, 3)) * bool(k.template) for k in stages.knobs)
    edits = [e for e in stages.edits(widths, depths, 48) if not isinstance(e, cw.Resolution)]
    built = arch.apply(*edits, importance="first", verify=False)
    assert stages.costs(widths, depths, 48) == counted_by_torch(built.model, 48)


# ------------------------------------------------------------------ scores of several seeds


def noisy(search, truth, sigma, seed):
    """Answer a search with accuracies that depend on the plan and, a little, on the seed of the training."""
    rng = np.random.default_rng(seed)
    asked = []
    while batch := search.ask():
        for candidate in batch:
            score = truth(candidate) + sigma * rng.standard_normal()
            search.tell(Evidence(candidate, len(asked), score, 0.005, {"macs": 0, "params": 0}))
            asked.append(candidate)
    return asked


def test_a_mean_is_not_beaten_by_a_lucky_draw():
    def step(place, value, times):
        return Step((place,), 1, 100, (place,), None, Score(value, 0.005, times))

    judged = [step(0, 0.700, 1), step(1, 0.690, 3), step(2, 0.692, 3), step(3, 0.60, 1)]
    assert [s.point[0] for s in ranked(judged, "score")] == [2, 1, 0, 3]
    assert [s.point[0] for s in ranked(judged)] == [1, 2, 0, 3]  # equal within errors: the earlier knob


@pytest.mark.parametrize("weights", ["fresh", "inherit"])
def test_ties_are_trained_again_with_the_same_further_seeds(tiny, weights):
    options = {
        "steps": 2,
        "seed": 5,
        "tolerance": 0.2,
        "trial_steps": 11,
        "rescore": 2,
        "contenders": 3,
        "weights": weights,
    }
    search = GreedyEnlarging(tiny, times(tiny, 1.7), ties="score", **options)
    asked = noisy(search, lambda c: 0.5, 0.001, 1)  # all are equal, so three of each level come again
    trials = [c for c in asked if c.role == "candidate"][:-1]
    assert all(c.recipe == {"max_steps": 11} for c in trials)
    by_seed = {seed: [c for c in trials if c.seed == seed] for seed in (5, 6, 7)}
    levels = search.history[1:-1]
    often = [[c["score"] for c in level["candidates"] if c["times"] == 3] for level in levels]
    wanted = [min(3, len(level["candidates"])) for level in levels]
    assert [len(scores) for scores in often] == [count if count > 1 else 0 for count in wanted]
    again = sum(map(len, often))
    assert again > 1
    assert len(by_seed[6]) == len(by_seed[7]) == again
    assert all(level["score"] == max(scores) for level, scores in zip(levels, often, strict=True) if scores)
    assert "(3 seeds)" in " ".join(search.log)
    for candidate in by_seed[6]:
        assert any(c.plan == candidate.plan and c.parent == candidate.parent for c in by_seed[5])


def test_a_run_with_further_seeds_is_replayed(tiny):
    def made():
        return GreedyEnlarging(tiny, times(tiny, 1.7), steps=2, rescore=1, ties="score")

    assert noisy(made(), lambda c: 0.5, 0.002, 3) == noisy(made(), lambda c: 0.5, 0.002, 3)


def test_the_history_tells_the_course(tiny):
    search = GreedyEnlarging(tiny, times(tiny, 2.0), steps=3)
    told(search, liking("layer2"))
    first, *levels, last = search.history
    assert (tuple(first["stage_widths"]), tuple(first["depths"]), first["resolution"]) == ((8, 12, 16), (1, 2, 1), 16)
    known = [(tuple(level["stage_widths"]), tuple(level["depths"]), level["resolution"]) for level in levels]
    assert all((m.widths, m.depths, m.resolution) in known for m in search.family)
    assert 0.98 * search.limits.limits["macs"] <= last["cost"] <= search.limits.limits["macs"]
    assert last["turned"] == "trimmed"


@pytest.mark.parametrize("wrong", [{"rescore": -1}, {"contenders": 1}, {"trial_steps": 0}, {"ties": "coin"}])
def test_options_of_repeated_scores_are_checked(tiny, wrong):
    with pytest.raises(ConvwrightError, match=next(iter(wrong))):
        GreedyEnlarging(tiny, times(tiny, 2.0), **wrong)

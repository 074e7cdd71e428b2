"""The stage-level organizer: the traces that were computed by hand, and laws over many networks."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import convwright as cw
from convwright.cost import parse_budget
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods import Rule, organize
from convwright.methods.receptive_field.stage_units import UnitCost, find_units
from convwright.methods.receptive_field.unit_moves import Desk
from convwright.metrics.receptive_field.analysis import FieldMeasure

FREE = {"macs_tolerance": math.inf, "params_tolerance": math.inf}
ORGANIZED = {
    "zoo:mobilenet-v1": ((1, 2, 2, 6, 2), (1, 2, 5, 3, 2), 2.264, 3.072, 2_617_418),
    "zoo:vgg16-bn": ((2, 2, 3, 3, 3), (1, 5, 4, 2, 1), 2.888, 3.481, 8_642_826),
    "zoo:resnet18-cifar": ((2, 2, 2, 2), (1, 4, 2, 1), 2.217, 2.631, 6_970_186),
    "zoo:resnet34-cifar": ((3, 4, 6, 3), (7, 4, 3, 2), 3.158, 3.877, 13_315_402),
}
NAMES = sorted(ORGANIZED)


def read(name, shape=None, **options):
    return cw.read(name, *([shape] if shape else []), **options)


@pytest.fixture(scope="module")
def nets():
    return {name: read(name) for name in NAMES}


@pytest.fixture(scope="module")
def mobilenet(nets):
    return nets["zoo:mobilenet-v1"]


class Unit(nn.Module):
    """A residual unit of a width without common divisors."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


def stage(before, width, units, stride):
    first = nn.Sequential(nn.Conv2d(before, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(first, *(Unit(width) for _ in range(units)))


class Stages(nn.Module):
    def __init__(self, depths, widths=(5, 7, 11)):
        super().__init__()
        parts = zip((3, *widths), widths, depths, strict=False)
        self.body = nn.Sequential(*(stage(b, w, d, 1 + (i > 0)) for i, (b, w, d) in enumerate(parts)))
        self.head = nn.Linear(widths[len(depths) - 1], 3)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def check(arch, found, score="sum"):
    """Predictions are what the applied network has; units and limits are kept."""
    new = arch.apply(*found.edits, verify=False) if found.edits else arch
    profile, field = new.profile(), cw.receptive_field(new)
    assert (profile.macs, profile.params) == (found.cost_after.macs, found.cost_after.params)
    assert field.score(score) == pytest.approx(found.score_after, abs=1e-12)
    assert cw.receptive_field(arch).score(score) == pytest.approx(found.score_before, abs=1e-12)
    units = {stage.name: stage for stage in find_units(arch).stages}
    counts = dict(zip(found.stages, found.after, strict=True))
    for seen in field.stages:
        if seen.name in counts:
            assert seen.share == pytest.approx(units[seen.name].share(counts[seen.name]), abs=1e-12)
    assert min(found.after) >= 1
    return new


# ------------------------------------------------------------------ computed by hand


@pytest.mark.few(2)
@pytest.mark.parametrize("name", NAMES)
def test_distributions_scores_and_parameters(nets, name):
    before, after, q_before, q_after, params = ORGANIZED[name]
    found = organize(nets[name])
    assert (found.before, found.after) == (before, after)
    assert (found.score_before, found.score_after) == pytest.approx((q_before, q_after), abs=6e-4)
    assert found.cost_after.params == params
    assert found.cost_after.macs <= 1.2 * found.cost_before.macs
    check(nets[name], found)


def moves(found):
    return [(m.donor, m.receiver, round(m.gain - m.loss, 4)) for m in found.moves]


def test_the_moves_of_mobilenet(mobilenet):
    assert moves(organize(mobilenet)) == [
        ("stage4", "stage3", 0.2812),
        ("stage4", "stage3", 0.4062),
        ("stage4", "stage3", 0.1211),
    ]


def test_the_moves_of_vgg16(nets):
    found = organize(nets["zoo:vgg16-bn"])
    assert moves(found) == [
        ("stage4", "stage3", 0.2344),
        ("stage5", "stage2", 0.0938),
        ("stage5", "stage2", 0.1250),
        ("stage1", "stage2", 0.1406),
    ]
    assert (found.moves[-1].gain, found.moves[-1].loss) == pytest.approx((0.15625, 0.015625))


def test_the_shares_of_mobilenet(mobilenet):
    stages = find_units(mobilenet).stages
    assert [s.share(s.count) for s in stages] == pytest.approx([0.0244, 0.0479, 0.1914, 1, 1], abs=6e-5)
    last = [s.share(s.count) - s.share(s.count - 1) for s in stages[2:]]
    after = [s.share(s.count + 1) - s.share(s.count) for s in stages[2:]]
    assert last == pytest.approx([0.1562, 0, 0.4375], abs=6e-5)
    assert after == pytest.approx([0.2812, 0, 0], abs=6e-5)


def test_conservative_gives_away_only_what_sees_nothing_new(nets):
    assert organize(nets["zoo:vgg16-bn"], Rule(conservative=True)).after == (2, 4, 4, 2, 1)
    still = organize(nets["zoo:resnet18-cifar"], Rule(conservative=True))
    assert (still.after, still.edits, still.moves) == ((2, 2, 2, 2), (), ())
    assert all(move.loss == 0 for move in organize(nets["zoo:mobilenet-v1"], Rule(conservative=True)).moves)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_finds_the_best_distribution(nets, name):
    """Of all distributions of as many units within the rule's tolerances, none has a higher Q."""
    arch = nets[name]
    units, profile = find_units(arch), arch.profile()
    base, total = UnitCost(profile.macs, profile.params), sum(units.counts)
    desk = Desk(units, Rule(), base, {"macs": math.floor(1.2 * base.macs), "params": base.params})
    counts = ([n for n in range(s.least, total + 1) if s.allows(n)] for s in units.stages)
    fitting = (each for each in itertools.product(*counts) if sum(each) == total and desk.fits(each))
    assert max(map(desk.q, fitting)) == pytest.approx(ORGANIZED[name][3], abs=6e-4)


# ------------------------------------------------------------------ laws


@pytest.mark.parametrize(
    "rule", [Rule(), Rule(score="log"), Rule(score="mean"), Rule(score="positions"), Rule(per_cost=True), Rule(**FREE)]
)
@pytest.mark.parametrize("name", ["zoo:mobilenet-v1", "zoo:resnet18-cifar"])
def test_every_move_raises_the_score_and_keeps_the_units(nets, name, rule):
    found = organize(nets[name], rule)
    score, counts = found.score_before, found.before
    for move in found.moves:
        assert move.before == counts
        assert sum(move.after) == sum(counts)
        assert move.score - score == pytest.approx(move.gain - move.loss, abs=1e-9)
        assert move.score > score
        score, counts = move.score, move.after
    assert (score, counts) == (pytest.approx(found.score_after), found.after)


def test_a_second_run_is_a_no_op(mobilenet):
    new = mobilenet.apply(*organize(mobilenet).edits, verify=False)
    again = organize(new, Rule(params_tolerance=0.0, macs_tolerance=0.0))
    assert (again.edits, again.before) == ((), (1, 2, 5, 3, 2))


def test_weights_are_not_read():
    one, two = read("zoo:resnet20"), read("zoo:resnet20")
    with torch.no_grad():
        for parameter in two.model.parameters():
            parameter.fill_(float("nan"))
    assert organize(one) == organize(two)


@settings(max_examples=5, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=3),
    st.sampled_from([13, 16, 29]),
)
def test_predictions_hold_for_drawn_depths(depths, size):
    arch = cw.read(Stages(depths), f"3x{size}x{size}")
    found = organize(arch)
    assert sum(found.after) == sum(found.before)
    assert found.score_after >= found.score_before
    check(arch, found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision:mobilenet_v2", "3x64x64"),
        ("torchvision:resnet50", "3x64x64"),
        ("torchvision:efficientnet_b0", "3x64x64"),
        ("torchvision:densenet121", "3x32x32"),
        ("timm:convnext_atto", "3x64x64"),
    ],
)
def test_predictions_hold_for_published_networks(name, shape):
    arch = read(name, shape)
    found = organize(arch)
    check(arch, found)
    assert set(found.skipped) >= {s.name for s in find_units(arch).stages if s.least == s.count and not s.repeatable}


def test_effective_fields_are_saturated_later(nets):
    vgg = nets["zoo:vgg16-bn"]
    usual, effective = (find_units(vgg, sight).stages for sight in (FieldMeasure(), FieldMeasure(effective=True)))
    assert all(e.share(n) <= u.share(n) for u, e in zip(usual, effective, strict=True) for n in range(1, 8))
    assert organize(vgg, sight=FieldMeasure(effective=True)).after != organize(vgg).after


# ------------------------------------------------------------------ up to a budget


@pytest.mark.parametrize(
    "budget",
    [
        "macs<=60%",
        "params<=50% and macs<=150%",
        *(pytest.param(text, marks=pytest.mark.breadth) for text in ("macs<=120%", "params<=40%", "macs<=200%")),
    ],
)
def test_spend_keeps_the_limits_and_leaves_no_room_for_another_unit(mobilenet, budget):
    limits = parse_budget(budget).resolve(mobilenet.profile())
    found = organize(mobilenet, Rule("spend"), limits)
    costs = {"macs": found.cost_after.macs, "params": found.cost_after.params}
    assert limits.met(costs)
    check(mobilenet, found)
    for unit, n in zip(find_units(mobilenet).stages, found.after, strict=True):
        if unit.allows(n + 1) and unit.share(n + 1) > unit.share(n) + 1e-9:
            more, now = unit.cost_of(n + 1), unit.cost_of(n)
            with_it = {m: costs[m] + getattr(more, m) - getattr(now, m) for m in costs}
            assert not limits.met(with_it)
    assert not any(
        u.allows(n - 1) and u.share(n - 1) >= u.share(n)
        for u, n in zip(find_units(mobilenet).stages, found.after, strict=True)
    )


@pytest.mark.parametrize("score", ["sum", "positions", pytest.param("log", marks=pytest.mark.breadth)])
def test_spend_leaves_no_move_that_gains(mobilenet, score):
    limits = parse_budget("macs<=100%").resolve(mobilenet.profile())
    found = organize(mobilenet, Rule("spend", score=score), limits)
    check(mobilenet, found, score)
    units = find_units(mobilenet)
    desk = Desk(units, Rule("spend", score=score), found.cost_before, limits.limits)
    for donor, receiver in itertools.permutations(range(len(units.stages)), 2):
        after = [n - (i == donor) + (i == receiver) for i, n in enumerate(found.after)]
        allowed = all(unit.allows(n) for unit, n in zip(units.stages, after, strict=True))
        if allowed and desk.fits(tuple(after)):
            assert desk.q(tuple(after)) <= found.score_after + 1e-9


def test_by_positions_early_stages_get_the_units(mobilenet):
    limits = parse_budget("macs<=100%").resolve(mobilenet.profile())
    found = organize(mobilenet, Rule("spend", score="positions"), limits)
    assert found.after == (1, 7, 2, 1, 1)
    assert found.cost_after.params < 0.35 * found.cost_before.params


def test_a_budget_that_cannot_be_met_says_what_is_nearest(mobilenet):
    limits = parse_budget("params<=5%").resolve(mobilenet.profile())
    with pytest.raises(BudgetError, match=r"nearest that it reaches is \[1, 1, 1, 1, 1\] units per stage with params"):
        organize(mobilenet, Rule("spend"), limits)
    with pytest.raises(BudgetError, match=r"no single move .* Use mode 'spend'"):
        organize(mobilenet, Rule("greedy"), limits)
    with pytest.raises(BudgetError, match="'spend' needs a budget"):
        organize(mobilenet, Rule("spend"))


@pytest.mark.parametrize("budget", ["activations<=50%", "activations<=50% and macs<=50%"])
def test_other_budgets_are_refused(mobilenet, budget):
    limits = parse_budget(budget).resolve(mobilenet.profile())
    with pytest.raises(BudgetError, match="budgets of macs and params, not of activations"):
        organize(mobilenet, limits=limits)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "best"}, "mode is one of"),
        ({"score": "product"}, "score is one of"),
        ({"macs_tolerance": -0.1}, "macs_tolerance is a number from 0 on, not -0.1"),
        ({"params_tolerance": math.nan}, "params_tolerance is a number from 0 on, not nan"),
        ({"macs_tolerance": "20%"}, "macs_tolerance is a number from 0 on, not '20%'"),
    ],
)
def test_rules_that_make_no_sense(options, message):
    with pytest.raises(ConvwrightError, match=message):
        Rule(**options)


def test_a_network_without_stages_or_blocks_is_refused():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    with pytest.raises(ConvwrightError, match="has no units to move between stages"):
        organize(cw.read(flat, "3x8x8"))


def test_one_unit_stays_and_it_is_said(mobilenet):
    found = organize(mobilenet)
    assert any(line.startswith("stage1: it has one unit, which stays") for line in found.log())
    assert all(n >= 1 for n in found.after)


def test_a_map_smaller_than_the_strides():
    arch = read("zoo:mobilenet-v1", "3x2x2")
    check(arch, organize(arch))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"), [("torchvision:swin_t", "3x64x64"), ("timm:coatnet_pico_rw_224", "3x64x64")]
)
def test_attention_is_said_to_be_left_out(name, shape):
    options = {"img_size": 64} if name.startswith("timm") else {}
    arch = read(name, shape, **options)
    found = organize(arch)
    assert any("attention (" in line and "sees everything" in line for line in found.log())
    new = arch.apply(*found.edits, verify=False) if found.edits else arch
    assert (new.profile().macs, new.profile().params) == (found.cost_after.macs, found.cost_after.params)


# ------------------------------------------------------------------ as a method


def test_the_mode_follows_the_limits_unless_it_is_said(mobilenet):
    limits = parse_budget("macs<=100%").resolve(mobilenet.profile())
    method = cw.methods.ReceptiveFieldOrganizer
    assert method(mobilenet).organization.after == (1, 2, 5, 3, 2)
    spent = method(mobilenet, limits).organization
    assert sum(spent.after) != sum(spent.before)
    for said in ({"rule": Rule("greedy")}, {"mode": "greedy"}, {"mode": "greedy", "rule": Rule("spend")}):
        assert method(mobilenet, limits, **said).organization.reason.startswith("No other move of one unit")


def test_the_decision_is_recorded(mobilenet):
    method = cw.methods.ReceptiveFieldOrganizer(mobilenet)
    (decision,) = method.decisions
    assert decision.kept == 2
    assert "units per stage [1, 2, 2, 6, 2] -> [1, 2, 5, 3, 2]" in decision.reason
    assert [c.role for batch in method.batches for c in batch] == ["base", "baseline", "candidate"]


def test_nothing_to_move_within_a_budget_is_refused_before_training():
    arch = cw.read(Stages((3, 1)), "3x5x5")
    organized = arch.apply(*organize(arch, Rule("spend"), parse_budget("macs<=100%").resolve(arch.profile())).edits)
    with pytest.raises(BudgetError, match=r"nothing to move within .*It ends there since"):
        cw.methods.ReceptiveFieldOrganizer(organized, parse_budget("macs<=100%").resolve(organized.profile()))

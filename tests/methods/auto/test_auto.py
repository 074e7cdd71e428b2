"""`Auto` in made-up worlds, where accuracy is a known function of the plan."""

import itertools
import math
import random
import zlib
from dataclasses import replace

import pytest
from auto_worlds import (
    Block,
    World,
    auto,
    deep_is_best,
    depth,
    late_is_best,
    residual,
    shallow_is_best,
    share_benches,
    small_is_best,
)
from channel_worlds import chain, limits_of, small
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convwright.architecture import read
from convwright.errors import BudgetError, ConvwrightError
from convwright.methods import METHODS, Auto
from convwright.methods.auto.designs import DesignBuilder, inner, inner_groups, ranked, tapered, together, weighed
from convwright.methods.auto.proposals import combinations, neighbours, proposals, qualities, structure_of
from convwright.methods.phased.moves import Scene
from convwright.methods.shared.halving import Scored, ranking, rungs, survivors, tied
from convwright.methods.shared.width_surface import Surface


@pytest.fixture(autouse=True)
def _shared_benches(monkeypatch):
    share_benches(monkeypatch)


# ------------------------------------------------------------------ the race


@pytest.mark.parametrize(
    ("budget", "truth"),
    [
        ("macs<=50%", shallow_is_best),
        pytest.param("macs<=50%", deep_is_best, marks=pytest.mark.slow),
        pytest.param("macs<=50%", small_is_best, marks=pytest.mark.slow),
        pytest.param("macs<=50%", late_is_best, marks=pytest.mark.breadth),
        pytest.param("params<=43%", shallow_is_best, marks=pytest.mark.breadth),
        pytest.param("macs<=173%", deep_is_best, marks=pytest.mark.breadth),
    ],
)
def test_the_best_of_all_proposals_is_found(truth, budget):
    arch = residual()
    method = auto(arch, budget, search_epochs=80)
    world = World(arch, truth).play(method)
    best = max(truth(world.after((), d.edits).arch) for d in proposals(method.bench, structure_of(arch)))
    assert truth(world.built(method.best().candidate).arch) >= best - 1e-4
    assert method.limits.met(method.best().costs)
    assert all(method.limits.met(e.costs) for e in world.evidence if e.candidate.role == "candidate")


def test_the_course_in_trials():
    arch = residual()
    method = auto(arch, search_epochs=24, epochs=4, tune_epochs=3, seed=5)
    world = World(arch, shallow_is_best).play(method)
    base, first, *_, last = world.batches
    assert [(c.role, c.parent, c.epochs, c.seed) for c in base] == [("base", None, 4, 5)]
    assert all(c.epochs == first[0].epochs and c.seed == 6 for c in first)
    assert [(c.parent, c.weights) for c in first[:3]] == [(0, "inherit"), (None, "fresh"), (0, "inherit")]
    assert first[1].plan == first[2].plan
    assert all((c.parent, c.weights) == (0, "inherit") for c in first[2:])
    *finals, baseline = last
    assert baseline.role == "baseline"
    assert all(c.epochs == 3 for c in finals)
    # The untouched network has as many epochs behind it as the result, and the search keeps to its own.
    assert world.trained(baseline) == world.trained(finals[0])
    searched = sum(c.epochs for batch in world.batches[1:-1] for c in batch)
    assert searched <= 24
    assert method.best().candidate in finals
    assert method.ask() == ()


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32), noise=st.sampled_from([0.0, 0.01, 0.1]), spent=st.integers(1, 40))
def test_any_noise_any_failures_any_budget(seed, noise, spent):
    """Under noise and failures: limits hold, epochs are kept to, the result is the last training of a survivor."""
    arch = residual()

    def fails(number, candidate):
        return candidate.role == "candidate" and zlib.crc32(f"{seed}{number}".encode()) % 4 == 0

    method = auto(arch, search_epochs=spent, rounds=1)
    world = World(arch, late_is_best, noise, fails, seed).play(method)
    assert sum(c.epochs for batch in world.batches[1:-1] for c in batch) <= spent
    best = method.best()
    if best is not None:
        assert best.usable
        assert method.limits.met(best.costs)
    assert len(method.log) == len(method.decisions)
    replayed = auto(arch, search_epochs=spent, rounds=1)
    told = iter(world.evidence)
    while batch := replayed.ask():
        for candidate in batch:
            evidence = next(told)
            assert evidence.candidate == candidate
            replayed.tell(evidence)
    assert replayed.log == method.log
    assert replayed.best() == best


def test_less_than_the_standard_error_is_no_reason_to_leave_the_present_network():
    arch = residual()
    method = auto(arch, search_epochs=30)
    World(arch, lambda built: late_is_best(built) / 100, stderr=0.02).play(method)
    found = [d for d in method.decisions if d.phase.startswith("neighbours")]
    assert found
    assert all(min(d.trials) == d.kept for d in found)


@pytest.mark.parametrize(("worth", "kept"), [(-0.05, "inherit"), (0.0, "fresh"), (0.05, "fresh")])
def test_new_weights_that_are_as_good_with_less_training_are_kept(worth, kept):
    """The expected best enters twice; after the first training it must be better to be worth its start."""

    class Fresh(World):
        def answer(self, candidate):
            found = super().answer(candidate)
            return replace(found, score=0.5 + worth * (candidate.weights == "fresh"))

    method = auto(residual(), search_epochs=6, rounds=0, tune_epochs=3)
    world = Fresh(residual(), late_is_best, stderr=0.01).play(method)
    *finals, baseline = world.batches[-1]
    trial = world.evidence[finals[0].parent]
    assert trial.candidate.weights == kept
    assert all(c.weights == "inherit" for c in (*finals, baseline))
    told = " ".join(d.reason for d in method.decisions if d.phase.startswith("rung"))
    assert told.startswith("kept")
    assert ("from new weights" in told.split(", against")[0]) == (kept == "fresh")


@pytest.mark.parametrize(("tune_epochs", "weights"), [(3, "inherit"), (4, "fresh"), (40, "fresh")])
def test_after_a_few_epochs_a_long_training_begins_anew(tune_epochs, weights):
    class Fresh(World):
        def answer(self, candidate):
            return replace(super().answer(candidate), score=0.5 + 0.1 * (candidate.weights == "fresh"))

    method = auto(residual(), search_epochs=6, rounds=0, tune_epochs=tune_epochs)
    world = Fresh(residual(), late_is_best, stderr=0.01).play(method)
    *finals, baseline = world.batches[-1]
    assert [c.weights for c in finals] == [weights]
    assert (finals[0].parent is None) == (weights == "fresh")
    assert finals[0].seed != next(c.seed for batch in world.batches[:-1] for c in batch if c.weights == "fresh")
    assert baseline.parent == 0
    assert world.trained(baseline) >= world.trained(finals[0])


def test_the_shortest_search_begins_from_its_weights():
    method = auto(residual(), rounds=0, search_epochs=2)
    world = World(residual(), late_is_best).play(method)
    assert all(c.weights == "inherit" for batch in world.batches for c in batch)


def test_two_that_cannot_be_told_apart_are_both_trained():
    arch = residual()
    method = auto(arch, search_epochs=40, rounds=0, techniques=())
    world = World(arch, lambda built: 0.5).play(method)
    *finals, _ = world.batches[-1]
    assert len(finals) == 2
    assert method.best().candidate in finals


@pytest.mark.breadth
def test_neighbours_improve_on_all_proposals():
    """The optimum lies beyond the tapers that are proposed: small steps lead towards it."""
    arch = residual()
    plain, further = auto(arch, search_epochs=90, rounds=0), auto(arch, search_epochs=120, rounds=2)
    first, second = World(arch, late_is_best).play(plain), World(arch, late_is_best).play(further)
    gains = [late_is_best(w.built(m.best().candidate).arch) for w, m in ((first, plain), (second, further))]
    assert gains[1] > gains[0] + 1e-3


def shallow_and_late_is_best(arch):
    return late_is_best(arch) - 0.03 * depth(arch)


def test_what_proves_good_alone_is_combined():
    """No proposal changes depth and the division of widths at once; what is found does."""
    arch = residual()
    method = auto(arch, search_epochs=64, rounds=1)
    world = World(arch, shallow_and_late_is_best).play(method)
    alone = max(
        shallow_and_late_is_best(world.after((), d.edits).arch) for d in proposals(method.bench, structure_of(arch))
    )
    best = shallow_and_late_is_best(world.built(method.best().candidate).arch)
    assert best > alone + 1e-3
    assert any(d.phase.startswith("combinations") for d in method.decisions)


def test_what_did_worse_than_uniform_widths_is_not_combined():
    arch = residual()
    method = auto(arch, search_epochs=64, rounds=1)
    World(arch, lambda built: 0.5 if built is not None else 0.0).play(method)  # all alike: nothing is better
    assert not any(d.phase.startswith("combinations") for d in method.decisions)


def test_a_search_too_short_for_halving_gives_all_one_training():
    arch = residual()
    method = auto(arch, search_epochs=16)
    world = World(arch, shallow_is_best).play(method)
    first = world.batches[1]
    assert len(first) == 8
    assert {c.epochs for c in first} == {1}
    assert len(world.batches[2]) <= 4
    assert all(c.parent != 0 for c in world.batches[2])  # none goes back to the untouched network


@pytest.mark.breadth
def test_combinations_change_each_thing_once():
    arch = residual()
    bench = DesignBuilder(arch, limits_of(arch, "macs<=50%"))
    found = {d.words.partition(" (")[0]: d for d in proposals(bench, structure_of(arch))}
    present = found["fewer blocks"]
    others = [found[w] for w in ("fewest blocks", "wider on small maps", "wider on large maps", "12 pixels")]
    after = Scene(arch, bench.limits).after(present.edits)
    joined = combinations(DesignBuilder(after.arch, bench.limits), present, others, 9)
    words = [d.words.removeprefix(present.words).strip("; ") for d in joined]
    assert words == ["wider on small maps", "wider on small maps; 12 pixels", "12 pixels"]
    assert [d.words for d in combinations(DesignBuilder(after.arch, bench.limits), present, others, 1)] == [
        joined[0].words
    ]
    for design in joined:
        built = after.after(design.edits)
        assert built.costs["macs"] <= bench.limits.limits["macs"]
        assert depth(built.arch) == depth(after.arch)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32), percent=st.sampled_from([23, 47, 71]))
def test_ranked_widths_are_those_above_one_bar(seed, percent):
    """Of all channels of the network those above a bar are left: the lowest one that the budget allows."""
    arch, draw = residual(), random.Random(seed)
    surface = Surface(arch, limits_of(arch, f"macs<={percent}%"))
    norms = {
        f.name: sorted((draw.lognormvariate(0, 0.5) for _ in range(f.size)), reverse=True) for f in surface.families
    }
    widths = ranked(norms)(surface)
    assert surface.use({n: int(w) for n, w in widths.items()}) <= 1
    gone = [norms[n][int(w) :] for n, w in widths.items()]
    bar = max(v for values in gone for v in values)
    for name, values in norms.items():
        assert widths[name] == max(1, sum(v > bar for v in values))
    least = min(v for n, w in widths.items() for v in norms[n][: int(w)] if v > bar)
    higher = {n: max(1, sum(v >= bar for v in values)) for n, values in norms.items()}
    assert surface.use(higher) > 1 or least <= bar


def test_widths_by_channel_norms_are_proposed_after_the_first_training():
    arch = residual()
    bench = DesignBuilder(arch, limits_of(arch, "macs<=50%"))
    norms = {g.name: tuple(1 + 0.1 * i for i in reversed(range(g.size))) for g in arch.free_groups}
    found = proposals(bench, replace(structure_of(arch), norms=norms))
    assert [d.factor for d in found if d.words == "widths by channel norms"] == ["norms"]
    asked = auto(arch).ask()[0]
    assert "channel-norms" in asked.probes


@pytest.mark.breadth
def test_what_leads_away_from_tiny_maps_is_expected_to_be_best_where_most_work_is_done_there():
    arch = read("zoo:resnet20", (1, 8, 8), widths=[13, 17, 29], depths=[2, 2, 2], in_channels=1, num_classes=3)
    bench = DesignBuilder(arch, limits_of(arch, "macs<=50%"))
    _, best, *others = proposals(bench, structure_of(arch))
    assert best.words.startswith("12 pixels, fewer blocks, much wider on large maps (3 removed")
    assert best.factor == "resolution+depth+maps"
    usual = next(design for design in others if design.words == "wider on large maps")

    def slope(design):
        built = bench.scene(design.edits).arch
        return built.group("conv1").size / built.group("layer3.0.conv2").size

    assert slope(best) > 1.2 * slope(usual) > 1.2 * 13 / 29
    larger = read("zoo:resnet20", (1, 32, 32), widths=[13, 17, 29], depths=[2, 2, 2], in_channels=1, num_classes=3)
    _, best, *_ = proposals(DesignBuilder(larger, limits_of(larger, "macs<=50%")), structure_of(larger))
    assert best.words.startswith("fewer blocks, wider on small maps")


def test_shapes_together_multiply():
    surface = Surface(residual(), limits_of(residual(), "macs<=50%"))
    one, two = tapered(0.3), weighed({"stem": 2.0})
    both, plain = together([one, two])(surface), one(surface)
    assert both["stem"] == pytest.approx(2 * plain["stem"])
    assert {n: v for n, v in both.items() if n != "stem"} == pytest.approx(
        {n: v for n, v in plain.items() if n != "stem"}
    )


def width_of(built):
    last = dict(built.model.named_modules()).get("two.1")
    return last.a.out_channels if isinstance(last, Block) else 0


@pytest.mark.breadth
def test_channel_quality_sets_proportions():
    """Groups of high quality get more of the budget than uniform widths give them, in a proposal that wins."""
    arch = residual()

    def quality(layer):
        return 0.9 if layer == "two.1.a" else 0.3

    def truth(built):
        return 0.3 + width_of(built) / 100

    method = auto(arch, "macs<=47%", search_epochs=30)
    world = World(arch, truth, quality=quality).play(method)
    assert method.findings.quality["two.1.a"] > 1
    assert any("widths by channel quality" in d.reason for d in method.decisions)
    uniform = width_of(world.built(world.batches[1][0]).arch)
    assert width_of(world.built(method.best().candidate).arch) > 1.2 * uniform


# ------------------------------------------------------------------ what does not work


def test_without_a_first_training_there_is_nothing():
    arch = residual()
    method = auto(arch)
    World(arch, shallow_is_best, fails=lambda number, candidate: True).play(method)
    assert method.best() is None
    assert method.log == ("network: there is nothing to begin with, it broke",)


def test_all_proposals_fail():
    arch = residual()
    method = auto(arch)
    world = World(arch, shallow_is_best, fails=lambda number, candidate: candidate.role == "candidate").play(method)
    assert len(world.batches) == 2
    assert method.best() is None
    assert "all" in method.log[-2]
    assert "failed: it broke" in method.log[-2]
    assert method.log[-1] == "end: no final network: no proposal could be trained"


@pytest.mark.breadth
def test_failures_of_some_are_told_and_do_not_win():
    arch = residual()
    method = auto(arch, search_epochs=40)
    world = World(arch, deep_is_best, fails=lambda number, candidate: number == 1).play(method)
    assert not world.evidence[1].usable
    assert any("uniform widths failed (it broke)" in line for line in method.log)
    assert method.best().usable


def test_a_budget_that_no_proposal_reaches_ends_before_any_training():
    with pytest.raises(BudgetError, match=r"no proposal meets macs <= 5 .*Raise the budget"):
        Auto(residual(), limits_of(residual(), "macs<=5"), epochs=1, tune_epochs=1)


def test_a_network_with_nothing_to_change():
    model = nn.Sequential(nn.Flatten(), nn.Linear(49, 3))
    arch = read(model, (1, 1, 7, 7))
    with pytest.raises(ConvwrightError, match="has nothing that method auto could change within macs"):
        Auto(arch, limits_of(arch, "macs<=100%"), epochs=1, tune_epochs=1)
    with pytest.raises(BudgetError, match="no proposal meets macs"):
        Auto(arch, limits_of(arch, "macs<=50%"), epochs=1, tune_epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search_epochs": 0}, "search_epochs=0 .*greater than or equal to 1"),
        ({"proposals": True}, "proposals=True .*valid integer"),
        ({"eta": 1}, "eta=1 .*greater than or equal to 2"),
        ({"rounds": -1}, "rounds=-1 .*greater than or equal to 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConvwrightError, match=message):
        auto(small("chain"), **options)


def test_without_a_budget():
    with pytest.raises(BudgetError, match="give one, such as"):
        Auto(small("chain"), None, epochs=1, tune_epochs=1)


MORE_WITHOUT_BLOCKS = [("mobile", "macs<=37%"), ("shuffle", "macs<=53%"), ("chain", "macs<=150%")]


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("concat", "params<=61%"),
        *(pytest.param(*each, marks=pytest.mark.breadth) for each in MORE_WITHOUT_BLOCKS),
    ],
)
def test_networks_without_blocks_too(name, budget):
    arch = small(name)
    method = auto(arch, budget, search_epochs=12)
    world = World(arch, lambda built: 0.5).play(method)
    assert method.limits.met(method.best().costs)
    assert all(method.limits.met(e.costs) for e in world.evidence if e.candidate.role == "candidate")


def test_estimated_latency_changes_widths_only():
    arch = residual()
    limits = limits_of(arch, "macs<=60%")
    slow = type(limits)({"latency": 1000}, {"latency": lambda widths: int(20 * sum(widths.values()))})
    bench = DesignBuilder(arch, slow)
    found = proposals(bench, structure_of(arch))
    assert len(found) >= 3
    assert {edit.kind for design in found for edit in design.edits} == {"width"}


def test_auto_is_the_method_of_that_name():
    assert METHODS["auto"] is Auto


# ------------------------------------------------------------------ designs


def test_designs_are_distinct_use_the_budget_and_begin_with_uniform():
    arch = residual()
    bench = DesignBuilder(arch, limits_of(arch, "macs<=50%"))
    found = proposals(bench, structure_of(arch))
    assert found[0].words == "uniform widths"
    assert len({frozenset(map(str, d.edits)) for d in found}) == len(found) >= 8
    for design in found[::4]:
        costs = Scene(arch, bench.limits).after(design.edits).costs
        assert 0.9 <= costs["macs"] / bench.limits.limits["macs"] <= 1


def test_shapes_say_what_they_do():
    arch = residual()
    bench = DesignBuilder(arch, limits_of(arch, "macs<=50%"))
    shapes = {"usual": None, "late": tapered(0.3), "early": tapered(-0.3)}
    usual, late, early = (bench.design(words, shape=shape) for words, shape in shapes.items())
    size = {n: {e.target: e.size for e in d.edits} for n, d in (("usual", usual), ("late", late), ("early", early))}
    assert size["late"]["stem"] < size["usual"]["stem"] < size["early"]["stem"]
    assert size["late"].get("down", 23) > size["usual"]["down"] > size["early"]["down"]
    assert inner_groups(arch) == {"one.0.a", "one.1.a", "one.2.a", "two.0.a", "two.1.a"}
    wide = {e.target: e.size for e in bench.design("inner", shape=inner(1.5)).edits}
    assert wide["stem"] < size["usual"]["stem"]
    assert wide.get("two.1.a", 29) > size["usual"]["two.1.a"]
    named = {e.target: e.size for e in bench.design("named", shape=weighed({"stem": 2.0})).edits}
    assert named.get("stem", 13) > size["usual"]["stem"]


def test_what_cannot_be_made_says_why():
    arch = read(nn.Sequential(*chain(23, 29)[:-3], nn.Flatten(), nn.Linear(29 * 256, 3)), (1, 1, 16, 16))
    bench = DesignBuilder(arch, limits_of(arch, "macs<=50%"))
    assert proposals(bench, structure_of(arch))
    assert "flatten" in bench.dropped["12 pixels"]


def test_neighbours_come_after_the_design_and_keep_the_budget():
    arch = residual()
    bench = DesignBuilder(arch, limits_of(arch, "macs<=50%"))
    design = proposals(bench, structure_of(arch))[1]
    after = Scene(arch, bench.limits).after(design.edits)
    found = neighbours(DesignBuilder(after.arch, bench.limits), design, {"stem": 1.5})
    assert len(found) >= 5
    for near in found:
        assert after.after(near.edits).costs["macs"] <= bench.limits.limits["macs"]


def test_qualities_of_noise_say_nothing():
    assert qualities({}) == {}
    assert qualities({"a": 0.0, "b": 0.0}) == {}
    assert qualities({"a": 1.0, "b": 3.0}) == {"a": 0.5, "b": 1.5}


# ------------------------------------------------------------------ halving


@given(count=st.integers(1, 60), budget=st.integers(1, 500), eta=st.integers(2, 5), last=st.integers(1, 4))
def test_rungs_keep_the_budget_and_narrow(count, budget, eta, last):
    found = rungs(count, budget, eta, last)
    assert sum(r.cost for r in found) <= budget
    assert found[0].count <= count
    assert found[-1].count <= last
    for before, after in itertools.pairwise(found):
        assert (after.count, after.epochs) == (math.ceil(before.count / eta), before.epochs * eta)
    if found[0].count < count:  # one more would not be paid for
        more = rungs(found[0].count + 1, 10**6, eta, last)
        assert sum(r.cost for r in more) / more[0].epochs > budget


@pytest.mark.parametrize("given_", [(0, 5, 3, 3), (5, 0, 3, 3), (5, 5, 1, 3), (5, 5, 3, 0)])
def test_rungs_refuse(given_):
    with pytest.raises(ConvwrightError, match="give at least 1 of each"):
        rungs(*given_)


_SCORES = st.lists(st.one_of(st.just(math.nan), st.floats(0, 1)), max_size=12)


@given(scores=_SCORES, keep=st.integers(0, 13), more=st.integers(0, 5), stderr=st.floats(0, 0.3))
def test_survivors_are_the_best_and_those_equal_to_the_last(scores, keep, more, stderr):
    scored = [Scored(s, stderr) for s in scores]
    kept = survivors(scored, keep, keep + more)
    usable = [i for i, s in enumerate(scored) if s.usable]
    assert min(keep, len(usable)) <= len(kept) <= keep + more
    assert len(set(kept)) == len(kept)
    assert set(kept) <= set(usable)
    assert list(kept) == list(ranking(scored)[: len(kept)])
    for extra in kept[keep:]:
        assert tied(scored[extra], scored[kept[keep - 1]])
    assert survivors(scored, keep) == kept[: min(keep, len(usable))]

"""The last step of `Auto`: techniques on the best network."""

import pytest
from auto_worlds import World, auto, late_is_best, residual, share_benches

from convwright.errors import ConvwrightError
from convwright.methods import Trying
from convwright.methods.auto.auto import default_recipe, recipe_course, reserved

SMOOTH = Trying("smooth", {"label_smoothing": 0.1})
MIXUP = Trying("mixup", {"techniques": {"mixup": {"alpha": 0.2}}})
SAM = Trying("sam", {"techniques": {"sam": {"rho": 0.05}}})
THREE = (SMOOTH, MIXUP, SAM)


@pytest.fixture(autouse=True)
def _shared_benches(monkeypatch):
    share_benches(monkeypatch)


def gains(**points):
    """A recipe's worth: what its techniques are worth together."""

    def worth(changes):
        named = {*changes, *changes.get("techniques", {})} - {"techniques"}
        return sum(points.get(name, 0.0) for name in named)

    return worth


def played(points, techniques=THREE, stderr=0.01, search_epochs=60, fails=lambda number, candidate: False):
    method = auto(residual(), search_epochs=search_epochs, rounds=0, techniques=techniques)
    world = World(residual(), late_is_best, stderr=stderr, recipe=gains(**points), fails=fails).play(method)
    decided = [d for d in method.decisions if d.phase.startswith("recipe")]
    return method, world, decided


@pytest.mark.parametrize(
    ("points", "kept"),
    [
        ({}, {}),
        ({"mixup": 0.02}, {}),  # more than one standard error, 0.0141, but not more than two
        ({"mixup": 0.05, "sam": -0.05}, MIXUP.recipe),
        ({"mixup": 0.05, "label_smoothing": 0.04}, {**SMOOTH.recipe, **MIXUP.recipe}),
        ({"mixup": 0.05, "sam": 0.06}, {"techniques": {**MIXUP.recipe["techniques"], **SAM.recipe["techniques"]}}),
    ],
    ids=["nothing", "by chance", "one", "two", "two techniques"],
)
def test_what_clearly_gains_is_kept_and_the_baseline_gets_it_too(points, kept):
    method, world, (decision,) = played(points)
    *finals, baseline = world.batches[-1]
    assert len(finals) == 1
    assert baseline.role == "baseline"
    assert dict(method.best().candidate.recipe) == dict(baseline.recipe) == kept
    assert world.trained(baseline) == world.trained(method.best().candidate)
    assert decision.kept == finals[0].parent
    assert "beside none for" in decision.phase


def test_techniques_that_hurt_each_other_are_not_joined():
    worth = gains(mixup=0.05, sam=0.04)

    def together_worse(changes):
        return worth(changes) - 0.1 * (len(changes.get("techniques", {})) > 1)

    method = auto(residual(), search_epochs=60, rounds=0, techniques=THREE)
    World(residual(), late_is_best, stderr=0.01, recipe=together_worse).play(method)
    assert dict(method.best().candidate.recipe) == MIXUP.recipe


def test_the_recipe_gets_a_quarter_of_the_search_and_all_keep_to_their_epochs():
    method, world, (decision,) = played({"mixup": 0.05})
    first = min(decision.trials)
    spent = [c.epochs for batch in world.batches[1:-1] for c in batch]
    before = sum(e.candidate.epochs for e in world.evidence[1:first])
    assert sum(spent) <= 60
    assert before <= 45
    assert {world.evidence[number].candidate.epochs for number in decision.trials} == {3}
    assert len({world.evidence[number].candidate.parent for number in decision.trials}) == 1
    assert method.left >= 0


def test_a_short_search_leaves_the_recipe_alone():
    method, world, decided = played({"mixup": 0.5}, search_epochs=35)
    assert decided == []
    assert all(not c.recipe for batch in world.batches for c in batch)
    assert played({"mixup": 0.5}, techniques=())[2] == []
    assert dict(method.best().candidate.recipe) == {}


def test_where_the_control_fails_the_recipe_stays():
    made = played({"mixup": 0.05})
    control = min(made[2][0].trials)
    method, world, (decision,) = played({"mixup": 0.05}, fails=lambda number, candidate: number == control)
    assert decision.kept is None
    assert "stays as it was" in decision.reason
    *finals, _ = world.batches[-1]
    assert dict(finals[0].recipe) == {}
    assert method.best().candidate == finals[0]


def test_an_operator_needs_room():
    """The widths use the budget up to about one per cent: attention fits in there, more work in a layer does not."""
    attention, blur = Trying("attention", operator="squeeze_excite"), Trying("blur", operator="blurpool")
    method, world, (decision,) = played({}, techniques=(attention, blur))
    assert "blur is not tried, the budget has no room" in decision.phase
    tried = [world.evidence[number].candidate.plan.edits for number in decision.trials]
    assert sum(any(edit.kind == "replace" for edit in edits) for edits in tried) == 1
    assert all(method.limits.met(world.evidence[number].costs) for number in decision.trials)


def test_the_default_begins_with_what_is_no_operator():
    found = default_recipe(residual())
    operators = [bool(tried.operator) for tried in found]
    assert operators == sorted(operators)
    assert {tried.name for tried in found} >= {"mixup", "sam", "label_smoothing", "squeeze_excite"}


@pytest.mark.parametrize("techniques", [1, 2, 7])
@pytest.mark.parametrize("epochs", [0, 11, 35, 36, 47, 48, 120, 1009])
def test_the_course_keeps_to_the_epochs(epochs, techniques):
    share = reserved(epochs, techniques)
    assert share <= epochs // 4
    if share:
        count, each = recipe_course(share, techniques)
        assert 1 <= count <= techniques
        assert each >= 3
        assert (count + 2) * each <= share


@pytest.mark.parametrize("given", ["sam, mixup", ["sam", "mixup"], [SAM, "mixup"]])
def test_techniques_by_name(given):
    assert [tried.name for tried in auto(residual(), techniques=given).techniques] == ["sam", "mixup"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mixop", "did you mean 'mixup'|unknown"),
        ([3], r"techniques=\[3\] of method auto"),
        (7, "techniques=7 of method auto"),
        ("", "unknown"),
    ],
)
def test_what_is_no_technique(given, message):
    with pytest.raises(ConvwrightError, match=message):
        auto(residual(), techniques=given)

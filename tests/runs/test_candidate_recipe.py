"""Candidates that change the recipe."""

import pytest

from convwright.errors import RecipeError
from convwright.methods import METHODS, Candidate, Method, Trying, Uniform
from convwright.runs import optimize
from convwright.runs.candidate_recipe import changed_recipe, leave_out_known_techniques
from convwright.training import Recipe

# ------------------------------------------------------------------ the recipe of a candidate


def test_changes_join_the_techniques_of_the_run():
    recipe = Recipe(techniques={"mixup": {"alpha": 0.5}}, lr=0.3)
    assert changed_recipe(recipe, {}) is recipe
    changed = changed_recipe(recipe, {"cutout": 3, "techniques": {"sam": {"rho": 0.1}}})
    assert (changed.cutout, changed.lr) == (3, 0.3)
    assert (changed.techniques["mixup"].alpha, changed.techniques["sam"].rho) == (0.5, 0.1)
    assert "mixup" not in changed_recipe(recipe, {"techniques": {"mixup": False}}).techniques


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1}, "lr"),
        ({"smoothing": 0.1}, "smoothing"),
        ({"techniques": {"no-such": {}}}, "no-such"),
        ({"epochs": 3}, "epochs is the same for all trials"),
        ({"precision": "bf16"}, "precision is the same for all trials"),
    ],
)
def test_impossible_changes_are_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        changed_recipe(Recipe(), changes)


def test_techniques_that_the_recipe_has_are_not_tried():
    class Asks(Method):
        def ask(self):
            return ()

        def tell(self, evidence):
            pass

        def best(self):
            return None

    class Tries(Asks):
        techniques = (
            Trying("label_smoothing", {"label_smoothing": 0.1}),
            Trying("mixup", {"techniques": {"mixup": {"alpha": 0.2}}}),
            Trying("cutout", {"cutout": 7}),
            Trying("blurpool", operator="blurpool"),
        )

    method = Tries()
    leave_out_known_techniques(method, Recipe(label_smoothing=0.1, techniques={"mixup": {"alpha": 0.5}}))
    assert [tried.name for tried in method.techniques] == ["mixup", "cutout", "blurpool"]
    leave_out_known_techniques(method, Recipe(cutout=7, techniques={"mixup": {"alpha": 0.2}}))
    assert [tried.name for tried in method.techniques] == ["blurpool"]
    untouched = Asks()
    leave_out_known_techniques(untouched, Recipe())
    assert untouched.techniques == ()


def test_a_bad_change_fails_its_trial_and_not_the_run(tiny, pictures, plain, tmp_path, monkeypatch):
    class Odd(Uniform):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            plan = self.batches[1][1].plan
            bad = Candidate(plan, 0, 1, 5, recipe={"lr": -1})
            good = Candidate(plan, 0, 1, 5, recipe={"label_smoothing": 0.2, "techniques": {"mixup": {"alpha": 0.2}}})
            self.batches = (*self.batches, (bad, good))

        def best(self):
            return self.results.get(4)

    monkeypatch.setitem(METHODS, "odd", Odd)
    result = optimize(tiny, pictures, "macs<=50%", "odd", tmp_path / "run", recipe=plain, tune_epochs=1, progress=False)
    assert [t.status for t in result.trials] == ["done", "done", "done", "failed", "done"]
    assert "lr" in result.trials[3].message
    assert result.data["trained_with"]["label_smoothing"] == 0.2
    assert result.data["trained_with"]["techniques"]["mixup"]["alpha"] == 0.2
    assert result.data["baseline_trained_with"]["techniques"] == {}
    assert [t["recipe"] for t in result.data["trials"]][3] == {"lr": -1}

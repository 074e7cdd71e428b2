"""A search ends in good order when its time is used up, by recorded seconds."""

import pytest

from convwright.edits import Plan, Width
from convwright.errors import ConvwrightError, RunError
from convwright.methods import Candidate, Evidence
from convwright.runs import optimize
from convwright.runs.time_budget import TimeBudget, baseline_of, epoch_seconds, length

PLAN = Plan((), "zoo:x", (1, 3, 8, 8), 100, 1000)


def trained(number, candidate, seconds):
    return Evidence(candidate, number, 0.5, 0.0, {}, seconds=seconds)


def plain_candidate(epochs, parent=None, **more):
    return Candidate(PLAN, parent, epochs, 0, **more)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172_800), (" 1h 5s ", 3605)]
)
def test_lengths_are_read(text, seconds):
    assert TimeBudget.parse(text).seconds == seconds


@pytest.mark.parametrize("text", ["", "0s", "30", "m", "-5m", "1.5h", "5m3h", "soon"])
def test_what_is_no_length(text):
    with pytest.raises(ConvwrightError, match="not a length of time; write it like 90s, 30m"):
        TimeBudget.parse(text)


@pytest.mark.parametrize("seconds", [0.2, 7, 119.5, 121, 3601, 7199, 7201, 100_000])
def test_a_length_that_is_told_is_enough_when_it_is_given(seconds):
    assert seconds <= TimeBudget.parse(length(seconds)).seconds <= max(1, 1.02 * seconds + 60)


@pytest.mark.parametrize(
    ("epochs", "begun"), [((1,), 1), ((2,), 1), ((1, 1, 1), 2), ((1, 2), 1), ((3, 1), 0), ((0, 2, 0, 1), 3), ((), 0)]
)
def test_as_many_are_begun_as_would_end_in_time(epochs, begun):
    """10 s per epoch so far, 60 s used of 80."""
    time = TimeBudget.parse("80s")
    found = [trained(0, plain_candidate(4), 45), trained(1, plain_candidate(2, 0), 15)]
    batch = [plain_candidate(n) for n in epochs]
    assert time.fits(found, batch) == begun
    assert "60s of 80s are used" in time.ended(found, batch)


def test_one_is_begun_where_no_epoch_is_known_and_none_after_the_end():
    time = TimeBudget.parse("10s")
    assert time.fits([], [plain_candidate(1000)] * 3) == 1
    assert time.fits([trained(0, plain_candidate(0), 3)], [plain_candidate(7)] * 3) == 1
    assert time.fits([trained(0, plain_candidate(0), 10)], [plain_candidate(0)]) == 0


def test_a_time_shorter_than_one_epoch_says_what_is_needed():
    TimeBudget.parse("12s").check(12.0, 3, 2)
    with pytest.raises(RunError, match=r"--time 11s: shorter than one epoch .* 12s here; .* about 84s: give"):
        TimeBudget.parse("11s").check(12.0, 3, 2)


def test_an_untouched_network_is_trained_as_long_as_the_best():
    plan = PLAN.with_edits(Width("a", 3))
    base = trained(0, plain_candidate(5, role="base"), 1)
    first = trained(1, Candidate(plan, 0, 2, 0), 1)
    second = trained(2, Candidate(plan, 1, 3, 7), 1)
    asked = baseline_of(second, [base, first, second])
    assert asked == Candidate(PLAN, 0, 5, 7, role="baseline")
    fresh = trained(3, Candidate(plan, None, 4, 9, weights="fresh"), 1)
    assert baseline_of(fresh, [base, first, second, fresh]) == Candidate(
        PLAN, None, 4, 9, role="baseline", weights="fresh"
    )
    there = trained(4, plain_candidate(3, 0, role="baseline"), 1)
    assert baseline_of(second, [base, first, second, fresh, there]) is None


# ------------------------------------------------------------------ whole runs


@pytest.fixture
def go(tiny, pictures, plain, monkeypatch):
    """Optimize with trials that are recorded as 10 s each; returns the result and what was said."""
    import convwright.runs.evaluate as module

    monkeypatch.setattr(module, "_since", lambda start: 10.0)

    def run(out, **changes):
        said = []
        usual = {"budget": "macs<=60%", "recipe": plain.updated(max_steps=4), "method": "random", "progress": False}
        options = {**usual, "epochs": 1, "tune_epochs": 1, "options": {"trials": 6, "trial_epochs": 1}, **changes}
        return optimize(tiny, pictures, out=out, say=said.append, **options), said

    return run


def test_a_search_ends_with_its_best_so_far_and_a_baseline(go, tmp_path):
    result, said = go(tmp_path / "run", time="45s")
    assert any("the search ends: 40s of 45s are used" in line for line in said)
    assert [t.candidate.role for t in result.trials].count("baseline") == 1
    assert result.trials[-1].candidate.role == "baseline"
    assert result.baseline.candidate.epochs >= result.best.candidate.epochs
    assert result.data["budget_met"]["macs"]["met"]
    assert result.data["time"] == "45s"
    more, said = go(tmp_path / "run", time="65s", resume=True)
    assert len(more.trials) == len(result.trials) + 2
    assert sum("done earlier" in line for line in said) >= 4


def test_a_search_that_ends_with_nothing_says_how_to_go_on(go, tmp_path):
    with pytest.raises(RunError, match=r"--time 15s: used up before any trial met the budget.*--resume.*--time \d+s"):
        go(tmp_path / "run", time="15s", method="uniform", options={})
    result, _ = go(tmp_path / "run", time="5m", method="uniform", options={}, resume=True)
    assert result.data["budget_met"]["macs"]["met"]


def test_an_epoch_is_measured_and_the_network_stays_as_it_is(tiny, pictures, plain, go, tmp_path):
    from convwright.runs.load import load_model_and_data

    opened = load_model_and_data(tiny, pictures)
    before = {name: tensor.clone() for name, tensor in opened.arch.model.state_dict().items()}
    assert 0 < epoch_seconds(opened.arch.model, opened.data, plain) < 60
    assert all(tensor.equal(before[name]) for name, tensor in opened.arch.model.state_dict().items())

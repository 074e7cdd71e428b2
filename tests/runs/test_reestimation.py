"""Batch norm re-estimated in a run: when, how it is recorded, the switch, and runs without a baseline."""

import pytest
import torch
from small_pictures import Tiny, picture_data, trained_tiny

import convwright as cw
from convwright.edits import Kernel, Plan, Width
from convwright.errors import RunError
from convwright.methods import Candidate
from convwright.runs import Evaluator, Study
from convwright.runs.directory.files import load_weights
from convwright.runs.evaluate import reshaped
from convwright.training import Recipe, evaluate, train
from convwright.training.statistics import reestimate

NARROW = (Width("stem", 5), Width("a", 6))


@pytest.fixture(scope="module")
def data():
    return picture_data()


@pytest.fixture(scope="module")
def arch(data):
    return cw.read(trained_tiny(data), (1, 8, 8))


@pytest.fixture
def evaluator(arch, data, plain, tmp_path):
    with Study(tmp_path / "run", {"model": "own", "seed": 0}) as study:
        yield Evaluator(arch, data, plain, study, progress=False)


def trained(evaluator, arch, number, plan):
    network = reshaped(arch, plan)
    load_weights(network.model, evaluator.study.weights(number))
    return network.model.eval()


def state(model):
    return {name: value for name, value in model.state_dict().items() if "running" in name}


def test_what_an_edit_cut_is_judged_with_statistics_of_its_own(arch, evaluator, data):
    plan = Plan.empty(arch).with_edits(*NARROW)
    found = evaluator(0, Candidate(plan, None, 0, 0), {})
    assert found.reestimated == 90
    model = trained(evaluator, arch, 0, plan)
    assert evaluate(model, data.val).accuracy == found.score
    again = arch.apply(*NARROW, importance="first", verify=False).model
    reestimate(again, data.train)
    torch.testing.assert_close(state(model), state(again))


def test_what_keeps_the_function_is_judged_as_it_is(arch, evaluator):
    untouched = evaluator(0, Candidate(Plan.empty(arch), None, 0, 0), {})
    grown = Candidate(Plan.empty(arch).with_edits(Kernel("a", 5)), 0, 0, 0)
    found = evaluator(1, grown, {0: untouched.candidate})
    assert (untouched.reestimated, found.reestimated) == (0, 0)
    assert found.score == untouched.score
    assert state(trained(evaluator, arch, 0, Plan.empty(arch)))["bn.running_mean"].equal(arch.model.bn.running_mean)


def test_accuracy_before_training_is_told_and_recorded(arch, evaluator, data):
    lines = []
    object.__setattr__(evaluator, "say", lines.append)
    evaluator(0, Candidate(Plan.empty(arch), None, 0, 0), {})
    plan = Plan.empty(arch).with_edits(*NARROW)
    base = {0: Candidate(Plan.empty(arch), None, 0, 0)}
    judged = evaluator(1, Candidate(plan, 0, 0, 0), base)
    found = evaluator(2, Candidate(plan, 0, 1, 0), base)
    assert found.before_training == judged.score
    assert judged.before_training is None
    assert lines == [f"trial 2: {judged.score:.2%} right after the edits"]
    assert found.to_dict()["before_training"] == judged.score
    assert type(found).from_dict(found.to_dict(), found.candidate) == found
    fresh = evaluator(3, Candidate(plan, None, 1, 0, weights="fresh"), {})
    further = evaluator(4, Candidate(Plan.empty(arch), 0, 1, 0), base)
    assert fresh.before_training is further.before_training is None


@pytest.mark.parametrize("epochs", [1, 20])
def test_a_training_too_short_for_its_momentum(data, epochs):
    """90 images in batches of 32 are 3 steps an epoch; statistics forget what was before in 44."""
    model, fixed = Tiny(), {"precision": "fp32", "memory_format": "contiguous"}
    result = train(model, data, Recipe(epochs=epochs, batch_size=32, **fixed), progress=False)
    assert result.reestimated == (90 if epochs == 1 else 0)
    assert result.val == evaluate(model, data.val)
    assert result.history[-1].val_acc == result.val.accuracy
    assert result.test == evaluate(model, data.test)
    before = {name: value.clone() for name, value in state(model).items()}
    reestimate(model, data.train)
    same = all(torch.equal(before[name], value) for name, value in state(model).items())
    assert same is (epochs == 1)


def test_the_switch_and_the_training_itself(data):
    """Weights are the same with and without: only what they are judged with differs."""
    models = [Tiny(), Tiny()]
    models[1].load_state_dict(models[0].state_dict())
    recipe = Recipe(epochs=2, batch_size=32, precision="fp32", memory_format="contiguous")
    results = [train(m, data, recipe, progress=False, reestimate=r) for m, r in zip(models, (True, False), strict=True)]
    assert [result.reestimated for result in results] == [90, 0]
    for name, value in models[0].named_parameters():
        assert torch.equal(value, models[1].get_parameter(name))
    assert not torch.equal(models[0].bn.running_mean, models[1].bn.running_mean)


def test_a_short_training_that_is_resumed_equals_one_that_is_not(data, tmp_path):
    recipe = Recipe(epochs=4, batch_size=32, precision="fp32", memory_format="contiguous")
    whole, parts = Tiny(), Tiny()
    parts.load_state_dict(whole.state_dict())
    first = {name: value.clone() for name, value in whole.state_dict().items()}
    wanted = train(whole, data, recipe, progress=False)
    train(parts, data, recipe, progress=False, out=tmp_path, on_epoch=lambda record: record.epoch == 2)
    parts.load_state_dict(first)
    found = train(parts, data, recipe, progress=False, out=tmp_path, resume=True)
    assert (found.val, found.test, found.reestimated) == (wanted.val, wanted.test, wanted.reestimated)
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


class Frozen(Tiny):
    """One batch norm is frozen as it is in fine-tuning: `train` leaves it in eval mode."""

    def train(self, mode=True):
        super().train(mode)
        self.bn.eval()
        return self


@pytest.mark.parametrize("techniques", [{}, {"ema": {"decay": 0.1}}])
def test_a_training_leaves_a_frozen_batch_norm_as_it_was_trained_with(data, techniques):
    model = Frozen()
    model.bn.running_mean.fill_(0.25)
    result = train(model, data, Recipe(epochs=1, batch_size=16, techniques=techniques), progress=False)
    assert result.val == evaluate(model, data.val)
    assert torch.equal(model.bn.running_mean, torch.full((12,), 0.25))
    assert int(model.bn_a.num_batches_tracked) == (6 if techniques else 1)  # this one was estimated anew
    assert reestimate(model, data.train) == 90  # as after an edit
    assert not torch.equal(model.bn.running_mean, torch.full((12,), 0.25))


# ------------------------------------------------------------------ whole runs


@pytest.fixture
def go(tiny, pictures, plain, tmp_path):
    def run(name, **changes):
        usual = {"model": tiny, "data": pictures, "budget": "macs<=50%", "method": "uniform", "recipe": plain}
        return cw.optimize(**{**usual, "progress": False, "out": tmp_path / name, "tune_epochs": 1, **changes})

    return run


def test_a_run_records_what_was_reestimated_and_can_do_without(go, tmp_path):
    result = go("with")
    trials = result.data["trials"]
    assert "reestimate" not in result.data
    assert trials[2]["before_training"] is not None
    assert trials[2]["reestimated"] == trials[0]["reestimated"] == 179  # of 200, without the validation part
    assert f"{trials[2]['before_training']:.2%} right after the edits" in result.report().markdown()
    assert "trained by the same recipe for as long" in result.report().html()
    without = go("without", reestimate=False)
    assert without.data["reestimate"] is False
    assert not any("reestimated" in trial for trial in without.data["trials"])
    with pytest.raises(RunError, match="reestimate"):
        go("without", resume=True)


@pytest.mark.breadth
def test_workers_do_as_the_run_was_asked(go):
    alone = go("alone", reestimate=False)
    spread = go("spread", reestimate=False, placement=cw.runs.executors.Placement(jobs=2))
    assert [t.score for t in spread.trials] == [t.score for t in alone.trials]
    assert not any(t.reestimated for t in spread.trials)


def test_without_a_baseline_the_network_is_compared_as_it_is(go):
    lines = []
    result = go("run", baseline=False, say=lines.append)
    first, baseline = result.trials[0], result.baseline
    assert baseline.candidate.epochs == 0
    assert baseline.score == first.score
    assert result.data["baseline_trained"] is False
    assert "it was not trained further" in result.report().html()
    assert any("the untouched network as it is, from trial 0, only judged" in line for line in lines)
    assert go("run", baseline=False, resume=True).data == result.data
    with pytest.raises(RunError, match="baseline_trained"):
        go("run", resume=True)


def test_a_method_that_trains_all_from_new_weights_needs_a_baseline_or_weights(go, tmp_path):
    options = {"trials": 1, "trial_epochs": 1}
    with pytest.raises(RunError, match="method random trains every network from new weights"):
        go("run", method="random", baseline=False, options=options)
    weights = go("first").folder / "initial.safetensors"
    result = go("given", method="random", baseline=False, options=options, weights=weights)
    assert result.baseline.candidate.epochs == 0

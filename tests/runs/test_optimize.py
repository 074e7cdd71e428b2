import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from convwright.architecture import read
from convwright.cost import count_by_torch, profile
from convwright.edits import Plan, apply
from convwright.errors import BudgetError, ConvwrightError, DataError, ReadError, RecipeError, RunError
from convwright.runs import BrokenBudgetError, Evaluator, optimize
from convwright.runs.directory.files import load_weights
from convwright.runs.load import load_model_and_data
from convwright.training import load_data


@pytest.fixture
def go(tiny, pictures, plain):
    """Optimize the tiny network; keyword arguments replace the usual ones."""

    def run(out, **changes):
        usual = {"model": tiny, "data": pictures, "budget": "macs<=50%", "method": "uniform", "recipe": plain}
        return optimize(**{**usual, "progress": False, "out": out, "tune_epochs": 1, **changes})

    return run


def numbers(result):
    """Everything in result.json that must not depend on when and how often the run was stopped."""
    data = json.loads((result.folder / "result.json").read_text())
    trials = [{k: v for k, v in t.items() if k != "seconds"} for t in data["trials"]]
    return {k: v for k, v in data.items() if k not in ("seconds", "command")} | {"trials": trials}


def interrupt_at(monkeypatch, number):
    """Raise Ctrl-C when trial `number` begins."""
    honest = Evaluator.__call__

    def evaluate(self, n, candidate, parents):
        if n == number:
            raise KeyboardInterrupt
        return honest(self, n, candidate, parents)

    monkeypatch.setattr(Evaluator, "__call__", evaluate)


# ------------------------------------------------------------------ from end to end


def test_a_network_is_halved_and_proved(go, tiny, tmp_path):
    result = go(tmp_path / "run")
    data = json.loads((tmp_path / "run" / "result.json").read_text())
    assert data["budget_met"]["macs"]["met"]
    before, after = data["baseline"]["counts"]["macs"], data["result"]["counts"]["macs"]
    assert before["convwright"] == before["torch"]
    assert after["convwright"] == after["torch"] <= before["torch"] / 2
    assert {"validation", "test"} <= set(data["result"])
    assert data["result"]["test"]["samples"] == 60
    assert data["result"]["test"]["accuracy"] > 0.5
    assert [t.candidate.role for t in result.trials] == ["base", "baseline", "candidate"]
    assert result.best.trial == 2
    assert result.baseline.trial == 1
    assert result.best in result.pareto
    assert "budget" in str(result.report())
    assert {"seconds", "versions", "machine", "command", "recipe"} <= set(data)
    assert data["judgement"] == json.loads((tmp_path / "run" / "run.json").read_text())["judgement"] == 2

    plan = Plan.load(tmp_path / "run" / "plan.json")
    built = apply(plan, tiny)
    load_weights(built.model, tmp_path / "run" / "model.safetensors")
    assert profile(built).macs == count_by_torch(built.model, built.example_input) == after["torch"]


def test_the_result_has_inherited_weights(go, tmp_path):
    """The narrowed network starts from channels of the trained one: most of them look alike still."""
    go(tmp_path / "run")
    base = load_file(tmp_path / "run" / "trials" / "0000" / "model.safetensors")["conv1.weight"]
    narrowed = load_file(tmp_path / "run" / "model.safetensors")["conv1.weight"]
    alike = torch.cosine_similarity(narrowed.flatten(1)[:, None], base.flatten(1)[None], dim=-1).max(1).values
    assert alike.min() > 0.8


def test_several_limits_and_growing(go, tmp_path):
    small = go(tmp_path / "a", budget=["macs<=60%", "params<=50%"], epochs=1)
    assert small.data["result"]["costs"]["params"] <= small.data["baseline"]["costs"]["params"] / 2
    large = go(tmp_path / "b", budget="macs<=200%", epochs=1)
    assert large.data["result"]["costs"]["macs"] > 1.7 * large.data["baseline"]["costs"]["macs"]


def test_a_trained_network_needs_no_first_training(go, tiny, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = read(tiny, "1x8x8").model
    torch.save(model.state_dict(), tmp_path / "trained.pt")
    result = go(tmp_path / "run", weights=tmp_path / "trained.pt")
    assert result.trials[0].candidate.epochs == 0
    state = load_state_of(tmp_path / "run", 0)
    assert torch.equal(state["conv1.weight"], model.state_dict()["conv1.weight"])


def load_state_of(folder, trial):
    return load_file(folder / "trials" / f"{trial:04d}" / "model.safetensors")


def test_a_module_from_python_stays_as_it_is(go, tiny, tmp_path):
    model = read(tiny, "1x8x8").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = go(tmp_path / "run", model=model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert result.data["model"] == "Tiny"


# ------------------------------------------------------------------ stopped and continued


@pytest.mark.parametrize("number", [1, *(pytest.param(n, marks=pytest.mark.breadth) for n in (0, 2))])
def test_a_resumed_run_equals_an_uninterrupted_one(go, tmp_path, monkeypatch, number):
    whole = go(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, number)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "parts")
    assert not (tmp_path / "parts" / "result.json").exists()
    assert numbers(go(tmp_path / "parts", resume=True)) == numbers(whole)


def test_a_run_stopped_within_a_training_continues_its_checkpoint(go, tmp_path, monkeypatch):
    import convwright.training.run as trainer

    whole = go(tmp_path / "whole")
    honest, calls = trainer.write_checkpoint, []

    def stop_after_one(folder, content):
        honest(folder, content)
        calls.append(folder)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_checkpoint", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "parts")
    assert (tmp_path / "parts" / "trials" / "0000" / "checkpoint.pt").is_file()
    assert numbers(go(tmp_path / "parts", resume=True)) == numbers(whole)
    assert not list((tmp_path / "parts" / "trials").rglob("checkpoint*"))


def test_killed_and_resumed(go, tiny, pictures, plain, tmp_path):
    whole = go(tmp_path / "whole", command="x")
    plain.save(tmp_path / "plain.yaml")
    words = ["optimize", tiny, "--data", pictures, "--budget", "macs<=50%", "--recipe", "plain.yaml"]
    words += ["--tune-epochs", "1", "--method", "uniform", "--out", "killed"]
    start = "import torch; torch.set_num_threads(1); from convwright.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", start, *words], stderr=subprocess.DEVNULL, cwd=tmp_path)
    first = tmp_path / "killed" / "trials" / "0000" / "checkpoint.pt"
    deadline = time.monotonic() + 60
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "killed" / "run.json").is_file()
    result = go(tmp_path / "killed", resume=True, recipe=plain)
    assert numbers(result) == numbers(whole)


def test_a_finished_run_is_only_read(go, tmp_path, monkeypatch):
    whole = go(tmp_path / "run")
    stamp = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    monkeypatch.setattr(Evaluator, "judge", None)
    again = go(tmp_path / "run", resume=True)
    assert again.data == whole.data
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == stamp


def test_other_settings_do_not_resume(go, tmp_path):
    go(tmp_path / "run")
    with pytest.raises(RunError, match=r"started with seed=0, not 1"):
        go(tmp_path / "run", resume=True, seed=1)
    with pytest.raises(RunError, match=r"started with divisor=auto, not 2"):
        go(tmp_path / "run", resume=True, budget="macs<=40%", divisor=2)
    with pytest.raises(RunError, match=r"started with constraints=null, not "):
        go(tmp_path / "run", resume=True, constraints={"keep": "conv1"})


@pytest.mark.breadth
def test_another_budget_on_resume_keeps_what_was_tried(go, tmp_path, monkeypatch):
    alone = numbers(go(tmp_path / "alone", budget="macs<=40%"))
    go(tmp_path / "run")
    begun = []
    honest = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", lambda self, n, c, p: (begun.append(n), honest(self, n, c, p))[1])
    again = go(tmp_path / "run", budget="macs<=40%", resume=True)
    assert begun == [2]  # base and baseline are the same for every budget
    assert numbers(again) == alone
    assert json.loads((tmp_path / "run" / "earlier" / "0" / "result.json").read_text())["budget"] == ["macs<=50%"]


# ------------------------------------------------------------------ honesty


def test_the_test_part_is_read_once_at_the_end(go, pictures, tmp_path, monkeypatch):
    from convwright.training import ImageData

    order = []
    honest, evaluate = ImageData.test.func, Evaluator.__call__
    reads = type(ImageData.test)(lambda self: order.append("test") or honest(self))
    reads.__set_name__(ImageData, "test")
    monkeypatch.setattr(ImageData, "test", reads)
    monkeypatch.setattr(Evaluator, "__call__", lambda self, n, c, p: (order.append(n), evaluate(self, n, c, p))[1])
    go(tmp_path / "run")
    assert order == [0, 1, 2, "test"]


def test_counts_that_differ_are_not_handed_back(go, tmp_path, monkeypatch):
    monkeypatch.setattr("convwright.runs.prove.count_by_torch", lambda model, example: 7)
    with pytest.raises(BrokenBudgetError, match="by convwright's count and 7 by torch's"):
        go(tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "plan.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_broken_budget_is_not_handed_back(go, tmp_path, monkeypatch):
    from convwright.methods import Uniform

    monkeypatch.setattr(Uniform, "best", lambda self: self.results.get(1))  # a method that lies
    with pytest.raises(BrokenBudgetError, match=r"breaks the budget: macs are .* of .*; no result was written"):
        go(tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


# ------------------------------------------------------------------ what does not work


def test_an_infeasible_budget_ends_before_any_training(go, tmp_path):
    with pytest.raises(BudgetError, match="cannot be met"):
        go(tmp_path / "run", budget="params<=3")
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_no_trial_could_be_trained_by_ends_before_any_training(go, plain, tmp_path):
    wrong = {"mean": [0.5] * 3, "std": [0.5] * 3}
    for change, message in (
        ({"batch_size": 200}, r"^trials of 1 epoch: .* a smaller batch_size"),
        ({"normalisation": wrong}, "is for 3 channels"),
    ):
        with pytest.raises(RecipeError, match=message):
            go(tmp_path / "run", recipe=plain.updated(**change))
        assert not (tmp_path / "run").exists()


def test_a_race_that_begins_with_too_few_steps_ends_before_any_training(go, plain, tmp_path):
    with pytest.raises(RecipeError, match=r"^trials of 1 epoch: "):
        go(tmp_path / "run", recipe=plain.updated(batch_size=200, epochs=9), method="auto", tune_epochs=4)
    assert not (tmp_path / "run").exists()


def test_a_training_that_breaks_down(go, plain, tmp_path):
    wild = plain.updated(lr=1e30, optimizer="sgd", schedule="constant", warmup=0.0)
    with pytest.raises(RunError, match=r"found nothing: trial 0: training broke down in epoch 1"):
        go(tmp_path / "run", recipe=wild)
    with pytest.raises(RunError, match="found nothing"):
        go(tmp_path / "run", recipe=wild, resume=True)


@pytest.mark.parametrize("change", [{"epochs": -1}, {"tune_epochs": 0}, {"divisor": 0}, {"seed": -1}, {"method": "x"}])
def test_impossible_numbers_and_names(go, tmp_path, change):
    with pytest.raises(ConvwrightError):
        go(tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_no_validation_part(go, plain, tmp_path):
    with pytest.raises(DataError, match="no validation images"):
        go(tmp_path / "run", recipe=plain.updated(val_fraction=0.0))


# ------------------------------------------------------------------ network and data together


@pytest.mark.parametrize(
    ("model", "shape", "options"),
    [
        ("zoo:mnist-b", "1x28x28", {"num_classes": 3, "in_channels": 1}),
        ("timm:resnet10t", "3x32x32", {"num_classes": 3, "in_chans": 3}),
        ("torchvision:shufflenet_v2_x0_5", None, {"num_classes": 3}),
        ("net.py:Tiny", None, {"num_classes": 3, "in_channels": 1}),
    ],
)
def test_named_networks_are_made_to_fit(tiny, pictures, model, shape, options):
    opened = load_model_and_data(model, pictures, input_shape=shape)
    assert opened.options == options
    assert opened.arch.example_input.shape[1:] == opened.data.shape


def test_grey_images_are_repeated_for_a_colour_network(pictures):
    opened = load_model_and_data(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), pictures
    )
    assert opened.data.shape == (3, 8, 8)


def test_colour_images_and_a_grey_network(tmp_path):
    rng = np.random.default_rng(0)
    np.savez("c.npz", x_train=rng.integers(0, 255, (20, 8, 8, 3), dtype=np.uint8), y_train=np.arange(20) % 2)
    grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(DataError, match="only grey images can be turned into colour"):
        load_model_and_data(grey, "npz:c.npz")


def test_too_few_outputs(pictures):
    small = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(DataError, match="3 classes and the network has 2 outputs"):
        load_model_and_data(small, load_data(pictures))


def test_a_network_that_is_no_classifier(pictures):
    with pytest.raises(ReadError, match=r"must return \(batch, classes\)"):
        load_model_and_data(nn.Sequential(nn.Conv2d(1, 3, 3)), pictures)


def test_an_image_too_small_for_the_network(pictures):
    with pytest.raises(ReadError, match="give a larger --input"):
        load_model_and_data("zoo:mnist-base", pictures)


def test_initial_weights_follow_the_seed(tiny, pictures):
    one, two, other = (load_model_and_data(tiny, pictures, seed=s).arch.model.conv1.weight for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)

"""Latency budgets from end to end, on a made-up clock: each run of these tests decides alike."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from latency_world import PER_NETWORK
from torch import nn

from convwright.architecture import read
from convwright.cli import main
from convwright.cost import Comparison
from convwright.cost.budget import Limits
from convwright.cost.latency import spread
from convwright.cost.runtimes import Target
from convwright.edits import Plan, Width
from convwright.errors import BudgetError, ConvwrightError, RunError
from convwright.methods import Candidate, Evidence, Uniform
from convwright.runs import BrokenBudgetError, Evaluator, optimize
from convwright.runs.evaluate import reshaped
from convwright.runs.latency import MARGIN, PROOFS, RunLatency, latency_of, measured_latency
from convwright.runs.rewriting import FinalsInTime
from convwright.runs.verdict import lost


@pytest.fixture
def go(world, tiny, pictures, plain):
    """Optimize the tiny network; keyword arguments replace the usual ones."""

    def run(out, **changes):
        usual = {"model": tiny, "data": pictures, "budget": "latency<=60%", "recipe": plain, "progress": False}
        return optimize(**{**usual, "method": "uniform", "out": out, "epochs": 1, "tune_epochs": 1, **changes})

    return run


def numbers(result):
    """Everything in result.json that must not depend on when and how often the run was stopped."""
    data = json.loads((result.folder / "result.json").read_text())
    trials = [{k: v for k, v in t.items() if k != "seconds"} for t in data["trials"]]
    return {k: v for k, v in data.items() if k not in ("seconds", "command")} | {"trials": trials}


# ------------------------------------------------------------------ what a run does


def test_a_share_of_the_latency_is_met_and_recorded(go, tmp_path):
    result = go(tmp_path / "run")
    data = json.loads((tmp_path / "run" / "result.json").read_text())
    met = data["budget_met"]["latency"]
    assert met["met"]
    assert met["measured"] <= met["limit"] == int(0.6 * met["before"])
    assert met["measured"] > 0.8 * met["limit"]  # the budget is used
    assert met["interval"][0] <= met["measured"] <= met["interval"][1]
    assert met["ratio"] == pytest.approx(met["measured"] / met["before"])
    for side, key in (("baseline", "before"), ("result", "measured")):
        assert round(1e9 * data[side]["latency"]["median"]) == met[key]
        assert {"lower", "upper", "repeats", "threads", "device", "dtype"} <= set(data[side]["latency"])
    assert data["result"]["counts"]["macs"]["torch"] < data["baseline"]["counts"]["macs"]["torch"]
    assert data["latency"]["rounds"]
    assert result.best.costs["latency"] <= (1 - MARGIN) * data["limits"]["latency"]
    assert result.best in result.pareto
    assert "latency, measured in turns" in str(result.report())
    assert "latency <= " in str(result.report())


@pytest.mark.parametrize("budget", [["latency<=60%", "macs<=30%"], "latency<=90% and params<=50%", "latency<=200%"])
def test_several_limits_and_growing(go, tmp_path, budget):
    data = go(tmp_path / "run", budget=budget).data
    assert all(met["met"] for met in data["budget_met"].values())
    assert "latency" in data["budget_met"]


def test_an_absolute_limit(go, world, tiny, tmp_path):
    arch = read(tiny, "1x8x8")
    limit = 0.7 * world.seconds(arch.model, arch.example_input)
    data = go(tmp_path / "run", budget=f"latency<={limit * 1e3:.6f}ms").data
    assert data["budget_met"]["latency"]["limit"] == data["limits"]["latency"] == pytest.approx(1e9 * limit, abs=2)
    assert data["budget_met"]["latency"]["measured"] <= data["limits"]["latency"]


def test_the_estimate_is_corrected_by_measuring_what_it_chose(go, world, tmp_path):
    """Where much of the time does not shrink with widths, the first choice is too slow."""
    world.overhead = 50 * PER_NETWORK
    said = []
    data = go(tmp_path / "run", budget="latency<=85%", say=said.append).data
    rounds = data["latency"]["rounds"]
    assert 1 < len(rounds) <= 4
    assert rounds[0]["measured"] > rounds[0]["estimate"]
    assert abs(rounds[-1]["measured"] / rounds[-1]["estimate"] - 1) < 0.05
    assert data["budget_met"]["latency"]["met"]
    lines = "\n".join(said)
    assert "feasible latency: from about" in lines
    assert f"latency, calibration {len(rounds)}: " in lines


def test_operators_are_measured_once(go, world, tmp_path):
    go(tmp_path / "run")
    assert len(world.asked) == len(set(world.asked))


# ------------------------------------------------------------------ stopped and continued


@pytest.mark.parametrize("number", [1, *(pytest.param(n, marks=pytest.mark.breadth) for n in (0, 2))])
def test_a_resumed_run_decides_as_it_did(go, world, tmp_path, monkeypatch, number):
    whole = go(tmp_path / "whole")
    honest = Evaluator.__call__

    def evaluate(self, n, candidate, parents):
        if n == number:
            raise KeyboardInterrupt
        return honest(self, n, candidate, parents)

    monkeypatch.setattr(Evaluator, "__call__", evaluate)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run")
    monkeypatch.setattr(Evaluator, "__call__", honest)
    # Now another machine: other times, no cache. What was measured is in the run directory.
    world.folder, world.asked, world.turns = tmp_path / "elsewhere", [], 0
    resumed = go(tmp_path / "run", resume=True)
    assert world.asked == []
    assert world.turns == 1 + (number == 0)  # the proof, and the final network where it was not asked for before
    assert numbers(resumed) == numbers(whole)


@pytest.mark.breadth
def test_a_finished_run_is_not_measured_again(go, world, tmp_path):
    first = go(tmp_path / "run")
    world.speed, world.turns = 7.0, 0
    again = go(tmp_path / "run", resume=True)
    assert world.turns == 0
    assert again.data == first.data


@pytest.mark.parametrize(
    "damage",
    [{"whole": 3}, *(pytest.param(each, marks=pytest.mark.breadth) for each in ({}, None, {"operators": {"x": [1]}}))],
)
def test_damaged_latencies_are_named(go, tmp_path, damage):
    go(tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    content = json.loads(path.read_text())
    content["settled"]["latency"] = damage
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="damaged, its latencies cannot be read"):
        go(tmp_path / "run", resume=True)


def test_another_budget_on_resume_is_named(go, tmp_path):
    go(tmp_path / "run", budget="macs<=50%")
    with pytest.raises(RunError, match="a budget on latency cannot be changed when a run is resumed"):
        go(tmp_path / "run", budget="latency<=50%", resume=True)


def test_without_a_limit_on_latency_nothing_is_measured(go, world, tmp_path):
    data = go(tmp_path / "run", budget="macs<=50%").data
    assert (world.asked, world.turns) == ([], 0)
    assert "latency" not in data
    assert "latency" not in data["result"]


# ------------------------------------------------------------------ promises


@pytest.fixture
def disturbed(world, tmp_path, monkeypatch):
    """Other work on the machine: so many measurements of the result show no gain. A list of one number."""
    measured, left = world.compare, [0]

    def compare(models, backend=None):
        found = measured(models)
        if left[0] and (tmp_path / "run" / "trials" / "0002").exists():
            left[0] -= 1
            same = {name: spread([1.0] * 6) for name in found.ratios}
            return Comparison({**found.latencies, "after": found.latencies["before"]}, same)
        return found

    monkeypatch.setattr("convwright.runs.latency.compare_latency", compare)
    return left


def test_a_slower_result_breaks_its_promise_and_is_kept(go, world, disturbed, tmp_path, monkeypatch):
    """Fewer MACs, but no less time: both numbers are said, what was trained is kept, and --resume measures again."""
    disturbed[0] = 2 * PROOFS
    said = (
        r"breaks its promise: latency is [\d.]+[mu]s of [\d.]+[mu]s \(the untouched network: [\d.]+[mu]s\); "
        r"measure it again with --resume\. It is kept in .*run"
    )
    with pytest.raises(BrokenBudgetError, match=said) as broken:
        go(tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "result.json").read_text())
    assert broken.value.result.data == kept
    assert not kept["budget_met"]["latency"]["met"]
    assert kept["budget_met"]["latency"]["measurements"] == PROOFS
    assert broken.value.result.report().status.startswith("Budget broken")
    with pytest.raises(BrokenBudgetError, match=said):
        go(tmp_path / "run", resume=True)
    # Now the machine is quiet: nothing is trained, and the test images are not read, again.
    monkeypatch.setattr("convwright.runs.evaluate.Evaluator.judge", None)
    again = go(tmp_path / "run", resume=True)
    assert again.data["budget_met"]["latency"]["met"]
    assert again.data == json.loads((tmp_path / "run" / "result.json").read_text())
    assert again.data["result"]["test"] == kept["result"]["test"]
    world.turns = 0
    go(tmp_path / "run", resume=True)
    assert world.turns == 0


def test_a_disturbed_measurement_is_repeated_before_the_result_is_refused(go, disturbed, tmp_path):
    disturbed[0] = PROOFS - 1
    met = go(tmp_path / "run").data["budget_met"]["latency"]
    assert met["met"]
    assert met["measurements"] == PROOFS


@pytest.fixture
def slow_finals(world, monkeypatch):
    """After the calibration all networks but the untouched one take 20 % longer than any estimate says."""
    measured, ready, factor = world.compare, RunLatency.ready, [1.0]

    def compare(models, backend=None):
        found = measured(models)
        before, after = found.latencies["before"], found.latencies["after"]
        if after.median == before.median:
            return found
        after = replace(after, median=after.median * factor[0])
        ratio = spread([after.median / before.median] * 6)
        return Comparison({"before": before, "after": after}, {**found.ratios, "after": ratio})

    def calibrated(self, *arguments):
        found = ready(self, *arguments)
        factor[0] = 1.2
        return found

    monkeypatch.setattr("convwright.runs.latency.compare_latency", compare)
    monkeypatch.setattr(RunLatency, "ready", calibrated)
    return factor


@pytest.mark.breadth
def test_a_final_network_that_takes_too_long_loses_channels_before_it_is_trained(
    go, slow_finals, tmp_path, monkeypatch
):
    said = []
    usual = {"method": "random", "options": {"trials": 2, "trial_epochs": 1}, "budget": "latency<=75%"}
    result = go(tmp_path / "run", say=said.append, **usual)
    assert result.data["budget_met"]["latency"]["met"]
    asked = [trial for trial in result.trials if trial.candidate.role == "candidate"]
    assert len(asked) == 3  # two, and the final one: trained once
    assert result.best.costs["macs"] < max(trial.costs["macs"] for trial in asked[:2])
    assert any("groups lose channels before training" in line for line in said)
    # Stopped before the final training and continued, it is the same network.
    slow_finals[0] = 1.0
    honest = Evaluator.__call__

    def evaluate(self, n, candidate, parents):
        if n == 2:
            raise KeyboardInterrupt
        return honest(self, n, candidate, parents)

    monkeypatch.setattr(Evaluator, "__call__", evaluate)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "other", **usual)
    monkeypatch.setattr(Evaluator, "__call__", honest)
    resumed = go(tmp_path / "other", resume=True, **usual)
    assert resumed.best.candidate.plan == result.best.candidate.plan


@pytest.mark.usefixtures("slow_finals")
@pytest.mark.parametrize("kept", [0, 1])
def test_what_a_final_network_inherits_stays_in_its_plan(world, tiny, kept):
    arch = read(tiny, "1x8x8")
    latency = measured_latency(arch, lambda line: None)
    world.overhead = 0.0
    limits = Limits({"latency": round(0.55 * latency.present)})
    plan = Plan.empty(arch).with_edits(Width("conv1", 7), Width("conv2", 11))
    finals = FinalsInTime(None, latency, limits, 1)
    repaired = finals.repaired(plan, kept)
    assert repaired.edits[:kept] == plan.edits[:kept]
    parent = reshaped(arch, replace(plan, edits=plan.edits[:kept]))
    network = parent.apply(*repaired.edits[kept:])  # as an evaluator inherits: no target may come twice
    assert latency.ratio(network) * latency.present <= limits.limits["latency"]
    assert finals.repaired(repaired, kept) == repaired


def test_a_final_network_that_is_kept_without_its_training_is_the_narrowed_one(tiny, monkeypatch):
    plan = Plan.empty(read(tiny, "1x8x8")).with_edits(Width("conv1", 7))
    base = Candidate(replace(plan, edits=()), None, 0, 0, role="base")
    asked, narrower = Candidate(plan, 0, 3, 0), replace(plan, edits=(Width("conv1", 5),))
    batches = iter([(base,), (replace(base, parent=0, role="baseline"), asked), (replace(asked, epochs=0),)])
    method = SimpleNamespace(ask=lambda: next(batches), tell=lambda evidence: None)
    finals = FinalsInTime(method, None, None, 1)
    monkeypatch.setattr(finals, "repaired", lambda plan, kept: narrower)
    for first in (0, 1):
        for number, candidate in enumerate(finals.ask(), start=first):
            finals.tell(Evidence(candidate, number, 0.5, 0.1, {}))
    assert finals.ask() == (Candidate(narrower, 0, 0, 0),)


@pytest.mark.breadth
def test_a_share_refers_to_the_original_measured_in_the_same_turns(go, world, tmp_path, monkeypatch):
    """A machine that has become three times slower by the time of the proof breaks no promise about a share."""
    honest = Uniform.best

    def later(self):
        world.speed = 3.0
        return honest(self)

    monkeypatch.setattr(Uniform, "best", later)
    data = go(tmp_path / "run").data
    assert data["budget_met"]["latency"]["met"]
    assert data["budget_met"]["latency"]["before"] > 2 * data["limits"]["latency"] / 0.6


def test_an_infeasible_latency_ends_before_any_training(go, tmp_path):
    with pytest.raises(BudgetError, match=r"latency<=.* cannot be met: by width alone .* goes from .*s to .*s\."):
        go(tmp_path / "run", budget="latency<=1ns")
    with pytest.raises(BudgetError, match="cannot be met"):
        go(tmp_path / "run", budget="latency<=1%")
    assert not (tmp_path / "run").exists()


def test_a_network_from_python(go, tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    assert go(tmp_path / "run", model=model).data["budget_met"]["latency"]["met"]


# ------------------------------------------------------------------ analyze


@pytest.fixture
def times(world, monkeypatch):
    """The made-up clock for `analyze`, too."""
    monkeypatch.setattr("convwright.cost.latency_model.LatencyTable", world.table)
    monkeypatch.setattr("convwright.cost.latency_model.measure_latency", world.measure)


def analyzed(capsys, *words):
    with pytest.raises(SystemExit) as leave:
        main(["analyze", *words])
    assert leave.value.code == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("times")
def test_analyze_shows_layers_sum_whole_and_ratio(tiny, capsys):
    out = analyzed(capsys, tiny, "--input", "1x8x8", "--latency")
    assert "of the sum" in out
    assert "layers together" in out
    assert "the whole network" in out
    assert "of the whole" in out
    assert "of the sum" not in analyzed(capsys, tiny, "--input", "1x8x8")


@pytest.mark.usefixtures("times")
def test_analyze_json_has_the_same(tiny, capsys):
    found = json.loads(analyzed(capsys, tiny, "--input", "1x8x8", "--latency", "--json"))
    latency = found["latency"]
    assert [layer["name"] for layer in latency["layers"]] == [layer["name"] for layer in found["layers"]]
    assert latency["sum"] == pytest.approx(sum(layer["median"] for layer in latency["layers"]) + latency["other"])
    assert latency["ratio"] == pytest.approx(latency["sum"] / latency["whole"]["median"])
    assert "latency" not in json.loads(analyzed(capsys, tiny, "--input", "1x8x8", "--json"))


# ------------------------------------------------------------------ runtimes


def test_the_runtime_that_the_budget_names_measures(go, world, tmp_path, monkeypatch):
    asked = []
    honest = world.compare
    monkeypatch.setattr(
        "convwright.runs.latency.compare_latency", lambda models, backend: (asked.append(backend), honest(models))[1]
    )
    data = go(tmp_path / "run", budget="latency[eager,threads=1]<=60%").data
    assert set(asked) == {Target("eager", threads=1)}
    assert data["budget_met"]["latency"]["met"]


def test_the_fastest_runtime_is_taken_and_named(go, world, tiny, tmp_path, monkeypatch):
    speeds = {"openvino": None, "onnxruntime": 0.5, "eager": 1.0}

    def measure(model, example, backend):
        if speeds[backend.runtime] is None:
            raise ConvwrightError("OpenVINO does not run net")
        found = world.measure(model, example)
        return replace(found, median=found.median * speeds[backend.runtime], backend=str(backend))

    monkeypatch.setattr("convwright.runs.latency.installed", lambda device: tuple(map(Target, speeds)))
    monkeypatch.setattr("convwright.runs.latency.measure_latency", measure)
    monkeypatch.setattr("convwright.runs.latency.ready", lambda name, model, *_: model)
    said = []
    data = go(tmp_path / "run", say=said.append).data
    assert data["latency"]["whole"]["backend"] == "onnxruntime"
    lines = "\n".join(said)
    assert "latency: not on openvino: OpenVINO does not run net" in lines
    assert "onnxruntime is the fastest runtime installed (others: eager " in lines
    assert latency_of(read(tiny, "1x8x8"), tmp_path / "run", print).target == Target("onnxruntime")  # as it was chosen


def test_a_command_is_for_a_budget_on_it(go, tmp_path):
    with pytest.raises(BudgetError, match="measures a budget on the runtime command"):
        go(tmp_path / "run", device_command="bench {onnx}")
    with pytest.raises(ConvwrightError, match="needs --device-command with"):
        go(tmp_path / "run", budget="latency[command]<=4ms", device_command="bench")
    assert not (tmp_path / "run").exists()


def test_a_budget_on_int8_judges_both_networks_in_int8(go, tmp_path, monkeypatch):
    monkeypatch.setattr("convwright.runs.config.runtime_named", lambda name: SimpleNamespace(check=lambda target: None))
    monkeypatch.setattr("convwright.runs.latency.ready", lambda name, model, *_: model)
    monkeypatch.setattr(
        "convwright.runs.quantized.program", lambda name, model, *_: SimpleNamespace(outputs=lambda x: [model(x)])
    )
    result = go(tmp_path / "run", budget="latency[onnxruntime,int8]<=60%", max_drop=100)
    data = result.data
    for side in ("baseline", "result"):  # nothing is lost: this int8 is float32
        assert data[side]["int8"]["accuracy"] == data[side]["test"]["accuracy"]
        assert data[side]["int8"]["samples"] == data[side]["test"]["samples"]
    assert "test accuracy, in int8" in str(result.report())
    damaged = {**data, "result": {**data["result"], "int8": {"accuracy": 0.0, "stderr": 0.0, "samples": 20}}}
    assert lost(damaged) == pytest.approx(100 * data["baseline"]["test"]["accuracy"])

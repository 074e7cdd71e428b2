"""Exports in int8: judged beside the network on the run's own data, with a warning where they lose too much."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from convwright.cli import main
from convwright.cost.latency import Spread
from convwright.errors import ConvwrightError
from convwright.export import ExportError, export_run, quantize
from convwright.export.programs import onnx_runner
from convwright.ranking import Metric
from convwright.runs.directory.files import write_json
from convwright.runs.train import train_named
from convwright.training import ArrayImages, Recipe, load_data


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "trained"
    recipe = Recipe(epochs=1, max_steps=60, batch_size=64, lr=0.05, precision="fp32", memory_format="contiguous")
    train_named("zoo:mnist-b", "fashion-mini", None, recipe.model_dump(), out=folder)
    return folder


@pytest.fixture(scope="module")
def exported(trained):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    return export_run(trained, "onnx", int8=True)


def test_the_int8_file_runs_and_its_accuracy_is_told(trained, exported):
    assert [file.name for file in exported.files] == ["model.onnx", "model.int8.onnx", "README.md"]
    found, record = exported.int8, json.loads((trained / "training.json").read_text())
    assert (found.part, found.samples, found.calibrated_on) == ("test", record["test"]["samples"], 128)
    assert found.scores[0] == record["test"]["accuracy"] > 0.3
    assert found.snr > 20
    assert found.file_bytes == tuple(file.stat().st_size for file in exported.files[:2])
    test, numbers = load_data("fashion-mini").test, record["normalisation"]
    assert isinstance(test, ArrayImages)
    (scores,) = onnx_runner(str(exported.files[1]))((test.images / 255 - numbers["mean"][0]) / numbers["std"][0])
    assert abs(float((scores.argmax(1) == test.labels).double().mean()) - found.scores[1]) < 0.002
    kinds = {node.op_type for node in pytest.importorskip("onnx").load(exported.files[1]).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    card = (exported.files[2]).read_text()
    assert "## In int8" in card
    assert f"| test accuracy (2000 samples) | {found.scores[0]:.2%} | {found.scores[1]:.2%} |" in card


def test_what_int8_loses_is_said_loudly(trained, exported, tmp_path, monkeypatch, capsys):
    found = replace(exported.int8, scores=(0.9, 0.892), ratio=Spread(0.5, 0.4, 0.6, 9))
    assert found.warnings == ()
    slower = replace(found, ratio=Spread(1.5, 1.4, 1.6, 9))
    assert slower.warnings == ("int8 takes 1.50 times as long as float32 on this machine",)
    assert replace(found, scores=(0.9, 0.85)).warnings == (
        "int8 changes the test accuracy by -5.00 points, more than 1% of its value",
    )
    error = Metric("mae", higher_is_better=False, unit="px")
    assert replace(found, metric=error, scores=(-0.5, -0.6)).warnings
    monkeypatch.setattr(quantize, "TOLERANCE", -1)
    with pytest.raises(SystemExit):
        main(["export", str(trained), "--to", "onnx", "--int8", "--json", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert "convwright: warning: int8 changes the test accuracy" in printed.err
    document = json.loads(printed.out)
    assert "int8 changes" in document["int8"]["warnings"][0]
    assert set(document["int8"]["latency"][1]) == {"median", "lower", "upper", "repeats"}
    assert "> **Warning:** int8 changes" in (tmp_path / "out" / "README.md").read_text()


def test_int8_says_what_it_needs(trained, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match="--int8 writes ONNX files, not python"):
        export_run(trained, "python", int8=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConvwrightError, match=r"pip install 'convwright\[int8\]'"):
        export_run(trained, "onnx", int8=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    folder = shutil.copytree(trained, tmp_path / "run")
    record = json.loads((folder / "training.json").read_text())
    write_json(folder / "training.json", record | {"data": "npz:gone.npz"})
    with pytest.raises(ExportError, match=r"int8 is calibrated on training images; name them with --data \(.*gone"):
        export_run(folder, "onnx", tmp_path / "out", int8=True)
    with pytest.raises(ConvwrightError, match="nowhere"):
        export_run(folder, "onnx", tmp_path / "out", int8=True, data="npz:nowhere.npz")
    found = load_data("fashion-mini")
    with pytest.raises(ConvwrightError, match="11 classes and the network has 10 outputs"):
        export_run(folder, "onnx", tmp_path / "out", int8=True, data=replace(found, class_names=("more",) * 11))
    assert not (tmp_path / "out").exists()

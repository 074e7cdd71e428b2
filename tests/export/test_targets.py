"""Runs are exported to every target, checked, and refused by name where they cannot be."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convwright.architecture import read
from convwright.cli import main
from convwright.cost import profile
from convwright.cost.runtimes.onnxruntime import OnnxRuntime
from convwright.edits import Plan, Width
from convwright.errors import RunError
from convwright.export import ExportError, export_run, open_run
from convwright.export.card import card
from convwright.runs.directory.files import save_weights, weights_note, write_json, write_text
from convwright.runs.train import train_named
from convwright.training import ArrayImages, Recipe, load_data

NETWORK = """
from torch import nn


class Tiny(nn.Sequential):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(
            nn.Conv2d(in_channels, 7, 3, padding=1),
            nn.BatchNorm2d(7),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(7, num_classes),
        )
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    return "net.py:Tiny"


@pytest.fixture
def training(source: str, tmp_path: Path) -> Path:
    """The directory of a training that changed a width."""
    torch.manual_seed(0)
    arch = read(source, (1, 11, 13), num_classes=3).apply(Width("0", 5))
    folder = tmp_path / "run"
    save_weights(arch.model, folder / "model.safetensors")
    write_text(folder / "plan.json", arch.plan.to_json())
    judged = {"accuracy": 0.75, "stderr": 0.01, "samples": 97}
    content = {"format": "convwright training", "version": 1, "model": source, "options": {"num_classes": 3}}
    more = {"data": "synthetic", "recipe": {"epochs": 2, "seed": 5}, "validation": judged, "test": judged}
    write_json(folder / "training.json", content | more | {"versions": {"torch": torch.__version__}})
    return folder


def test_python_runs_without_convwright(training: Path) -> None:
    done = export_run(training, "python")
    assert done.difference is not None
    assert done.difference <= 1e-6
    folder = training / "export" / "python"
    assert {file.name for file in done.files} == {"model.py", "weights.pt", "README.md"}
    code = "import sys, torch, model; print(tuple(model.load()(torch.zeros(3, 1, 11, 13)).shape)); "
    code += "print([m for m in ('convwright', 'timm', 'torchvision') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["(3, 3)", "[]"]


@pytest.fixture
def trained(source: str, tmp_path: Path) -> Path:
    """The directory of a short training, on images whose mean is far from zero."""
    recipe = Recipe(epochs=1, max_steps=30, batch_size=64, lr=0.05, precision="fp32", memory_format="contiguous")
    train_named(source, "fashion-mini", None, recipe.model_dump(), out=tmp_path / "trained")
    return tmp_path / "trained"


def accuracy(scores_of: Callable[[Tensor], Tensor]) -> float:
    """Return the accuracy on the test part for a function of bytes (n, c, h, w)."""
    test = load_data("fashion-mini").test
    assert isinstance(test, ArrayImages)
    return float((scores_of(test.images).argmax(1) == test.labels).double().mean())


def test_who_follows_the_export_gets_the_accuracy_of_the_record(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = json.loads((trained / "training.json").read_text())["test"]["accuracy"]
    for target in ("python", "safetensors", "pt2"):
        export_run(trained, target)
    folder = trained / "export" / "python"
    names = load_data("fashion-mini").class_names
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "model", raising=False)
    program = importlib.import_module("model")
    monkeypatch.delitem(sys.modules, "model")
    assert names == program.CLASS_NAMES
    with torch.no_grad():
        model = program.load()
        assert accuracy(lambda x: model(program.preprocess(x))) == recorded
        assert accuracy(lambda x: model(program.preprocess(x / 255))) == recorded
        assert accuracy(lambda x: model(x / 255)) < recorded - 0.05
        for target in ("python", "safetensors", "pt2"):  # what each card says to do
            card = (trained / "export" / target / "README.md").read_text()
            scope = {"torch": torch, "images": torch.zeros(0, 1, 28, 28)}
            for block in card.split("```python\n")[1:3]:
                exec(block.split("```")[0], scope)
            mean, std = scope["MEAN"], scope["STD"]
            assert isinstance(mean, Tensor)
            assert accuracy(lambda x, mean=mean, std=std: model((x / 255 - mean) / std)) == recorded
            assert scope["CLASS_NAMES"] == names
    told = {"mean": "", "std": "", "class_names": "", "input_shape": ""}
    torch.export.load(trained / "export" / "pt2" / "model.pt2", extra_files=told)
    assert json.loads(told["mean"]) == list(program.MEAN)
    assert json.loads(told["input_shape"]) == list(program.INPUT_SHAPE) == [1, 28, 28]
    note = weights_note(trained / "export" / "safetensors" / "model.safetensors")
    usage = {"normalisation": {"mean": [*program.MEAN], "std": [*program.STD]}, "class_names": [*names]}
    assert note == usage | {"input_shape": [1, 28, 28]}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_card_reads_a_photograph_as_the_training_did(training: Path, tmp_path: Path, channels: int) -> None:
    rng, exif = np.random.default_rng(0), Image.Exif()
    exif[0x112] = 6  # lies on its side
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        pixels = rng.integers(0, 256, (61, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / label / "photo.jpg", exif=exif)
    read_by_us = load_data(f"folder:{tmp_path / 'photos'}", input_shape=(channels, 11, 13), val_fraction=0.0).train
    assert isinstance(read_by_us, ArrayImages)
    loss = {"what": "test accuracy is 20.0%", "cause": "a strong cut", "remedy": "cut less"}
    usage = {"normalisation": {"mean": [0.5] * channels, "std": [0.2] * channels}, "class_names": ["a", "b"]}
    run = open_run(training)
    arch = run.arch if channels == 1 else read(nn.Conv2d(3, 3, 3), (3, 11, 13))
    record = {**usage, "data": "folder:photos (1 training image)", "warnings": [loss], "budget": []}
    text = card(replace(run, arch=arch, record=record))
    assert text.splitlines()[2].startswith("> **Warning:** test accuracy is 20.0%. Likely cause: a strong cut.")
    block = next(each for each in text.split("```python\n") if "ImageOps.fit" in each).split("```")[0]
    scope: dict[str, Any] = {"torch": torch}
    exec(block.replace("photo.jpg", str(tmp_path / "photos" / "a" / "photo.jpg")), scope)
    assert torch.equal((scope["images"] * 255).round().byte(), read_by_us.images[:1])


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="the extra onnx is not installed")
def test_an_onnx_file_says_how_images_are_normalised(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = json.loads((trained / "training.json").read_text())["test"]["accuracy"]
    export_run(trained, "onnx")
    card = (trained / "export" / "onnx" / "README.md").read_text()
    code = next(block for block in card.split("```python\n") if "InferenceSession" in block).split("```")[0]
    monkeypatch.chdir(trained / "export" / "onnx")

    def scores(images: Tensor) -> Tensor:
        scope = {"images": (images / 255).numpy()}
        exec(code, scope)
        return torch.from_numpy(scope["scores"])

    assert accuracy(scores) == pytest.approx(recorded, abs=1e-3)
    session = importlib.import_module("onnxruntime").InferenceSession("model.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["input_shape"]) == [1, 28, 28]


def test_names_of_classes_are_data_and_no_code(training: Path) -> None:
    names = ['a"b', "c'd\\", "e\nimport os", 3 * "'", 3 * '"', "\ud800"]
    record = json.loads((training / "training.json").read_text())
    usage = {"normalisation": {"mean": [0.5], "std": [0.25]}, "class_names": names}
    write_json(training / "training.json", record | usage)
    export_run(training, "python")
    scope: dict[str, Any] = {"__name__": "model"}
    exec((training / "export" / "python" / "model.py").read_text(), scope)
    assert scope["CLASS_NAMES"] == tuple(names)
    write_json(training / "training.json", record | usage | {"normalisation": {"mean": "x"}})
    with pytest.raises(RunError, match="the recorded normalisation is damaged"):
        export_run(training, "python")


def test_safetensors_has_a_card(training: Path) -> None:
    done = export_run(training, "safetensors")
    assert done.difference == 0.0
    folder = training / "export" / "safetensors"
    card = (folder / "README.md").read_text()
    arch = open_run(training).arch
    for words in (
        f"{profile(arch).params:,}",
        f"{arch.plan.params:,}",
        "75.00%",
        "synthetic",
        "not counted",
        "seed `5`",
    ):
        assert words in card
    assert Plan.load(folder / "plan.json").edits == arch.plan.edits


def test_pt2_is_loaded_again(training: Path) -> None:
    done = export_run(training, "pt2")
    assert done.difference is not None
    assert done.difference <= 1e-6
    loaded = torch.export.load(done.files[0]).module()
    assert tuple(loaded(torch.zeros(5, 1, 11, 13)).shape) == (5, 3)


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="the extra onnx is not installed")
def test_onnx_takes_any_batch(training: Path) -> None:
    done = export_run(training, "onnx")
    assert done.difference is not None
    assert done.difference <= 1e-4


def test_onnx_says_which_extra(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "needs", ("a_package_that_is_not_there",))
    with pytest.raises(ExportError, match=r"convwright\[onnx\]"):
        export_run(training, "onnx")
    assert not (training / "export" / "onnx" / "model.onnx").exists()


def test_unknown_targets_name_the_known(training: Path) -> None:
    with pytest.raises(ExportError, match=r"pyhton.*Did you mean python.*onnx, pt2, python, safetensors"):
        export_run(training, "pyhton")


def test_no_run_and_nothing_trained(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        export_run(tmp_path / "none", "python")
    with pytest.raises(RunError, match="holds no run"):
        export_run(tmp_path, "python")
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(RunError, match="--resume"):
        export_run(tmp_path, "python")


def test_a_network_without_a_name_is_asked_for(training: Path, source: str) -> None:
    for file in ("plan.json", "training.json"):
        content = json.loads((training / file).read_text())
        (training / file).write_text(json.dumps({**content, "model": "Tiny"}))
    with pytest.raises(RunError, match="--model"):
        export_run(training, "python")
    assert export_run(training, "python", model=source).difference == 0.0


def unfinished(folder: Path, source: str, scores: list[float | None]) -> None:
    """Write what a search that was killed leaves."""
    import optuna

    arch = read(source, (1, 11, 13), num_classes=3)
    settings = {"model": source, "options": {"num_classes": 3}, "data": "synthetic", "budget": ["macs<=50%"]}
    write_json(folder / "run.json", {"format": "convwright run", "version": 1, "settings": settings, "settled": {}})
    study = optuna.create_study(study_name="run", storage=f"sqlite:///{folder / 'run.db'}", direction="maximize")
    for number, score in enumerate(scores):
        changed = arch.apply(Width("0", 3 + number))
        candidate = {"plan": changed.plan.to_json(), "parent": None, "epochs": 1, "seed": 0, "stop": None}
        trial = study.ask()
        trial.set_user_attr("candidate", {**candidate, "role": "candidate", "probes": []})
        if score is not None:
            known = {"trial": number, "score": score, "stderr": 0.0, "costs": {}, "probes": {}}
            trial.set_user_attr("evidence", {**known, "status": "done", "seconds": 1.0, "message": ""})
            save_weights(changed.model, folder / "trials" / f"{number:04d}" / "model.safetensors")


def test_the_best_trial_of_an_unfinished_search_is_marked(source: str, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    folder.mkdir()
    unfinished(folder, source, [0.25, 0.75, 0.5, None])
    run = open_run(folder)
    assert (run.kind, run.trial, run.trial_score) == ("unfinished", 1, 0.75)
    conv = run.arch.model[0]
    assert isinstance(conv, nn.Conv2d)
    assert conv.out_channels == 4
    done = export_run(folder, "python")
    assert "unfinished" in (folder / "export" / "python" / "model.py").read_text()
    assert any("trial 1" in note for note in done.notes)
    export_run(folder, "safetensors")
    assert "not finished" in (folder / "export" / "safetensors" / "README.md").read_text()


def test_an_unfinished_search_without_weights_is_refused(source: str, tmp_path: Path) -> None:
    folder = tmp_path / "search"
    folder.mkdir()
    unfinished(folder, source, [None])
    with pytest.raises(RunError, match="no trial has weights"):
        export_run(folder, "python")


def test_command_line(training: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", str(training), "--to", "python", "--json"])
    assert left.value.code == 0
    content = json.loads(capsys.readouterr().out)
    assert content["max_difference"] <= 1e-6
    shutil.rmtree(training / "export")
    with pytest.raises(SystemExit) as left:
        main(["export", str(training), "--to", "tflite"])
    assert left.value.code == 2
    assert "unknown export target" in capsys.readouterr().err

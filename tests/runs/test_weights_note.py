"""Images are normalised as the weights were trained, wherever those are used again."""

import json

import pytest
import torch

from convwright.architecture import create
from convwright.errors import RunError
from convwright.runs.directory.files import save_weights, weights_note
from convwright.runs.load import load_model_and_data
from convwright.runs.optimize import optimize
from convwright.runs.train import train_named
from convwright.training import Recipe

OWN = {"mean": [0.7], "std": [0.05]}


def test_weights_say_how_they_are_to_be_used(tiny, pictures, plain, tmp_path, capsys):
    trained = train_named(tiny, pictures, plain.updated(normalisation=OWN), {}, out=tmp_path / "first")
    weights = tmp_path / "first" / "model.safetensors"
    assert trained["normalisation"] == OWN
    assert weights_note(weights) == {"normalisation": OWN, "class_names": ["0", "1", "2"]}
    said = []
    out = tmp_path / "second"
    asked = {"method": "uniform", "out": out, "recipe": plain, "tune_epochs": 1, "weights": weights}
    result = optimize(tiny, pictures, "macs<=80%", say=said.append, **asked)
    assert any("images are normalised as" in line and "mean 0.7; std 0.05" in line for line in said)
    first = result.trials[0]
    assert first.candidate.role == "base"
    assert first.score == trained["validation"]["accuracy"]
    run, content = (json.loads((out / name).read_text()) for name in ("run.json", "result.json"))
    for record in (run["settled"], content, content["trained_with"], weights_note(out / "model.safetensors")):
        assert record["normalisation"] == OWN
    assert weights_note(out / "trials" / "0000" / "model.safetensors")["normalisation"] == OWN
    # Continued, though the weights and what they say are gone.
    (out / "result.json").unlink()
    again = optimize(tiny, pictures, "macs<=80%", resume=True, progress=False, **asked)
    assert again.data["result"] == content["result"]


def test_weights_that_do_not_say_it(tiny, pictures, tmp_path):
    file = tmp_path / "w.pt"
    torch.save(create(tiny)[0].state_dict(), file)
    opened = load_model_and_data(tiny, pictures, weights=file)
    assert opened.trained
    assert opened.recipe == Recipe()
    assert opened.remarks == (
        f"{file}: took 9 of 9 tensors",
        f"{file}: does not say how its images were normalised; used is normalisation=data of the recipe "
        "(timm or imagenet for weights of theirs; your own numbers as normalisation: {mean: [...], std: [...]})",
    )
    said = load_model_and_data(create(tiny)[0], pictures, trained=True).remarks
    assert [line.partition(";")[0] for line in said] == ["Tiny: does not say how its images were normalised"]
    save_weights(torch.nn.Linear(1, 1), tmp_path / "x.safetensors", {"normalisation": {"mean": "?"}})
    with pytest.raises(RunError, match=r"x\.safetensors: the recorded normalisation is damaged"):
        load_model_and_data(tiny, pictures, weights=tmp_path / "x.safetensors")


def test_a_run_from_before_the_field_is_continued(tiny, pictures, plain, tmp_path):
    out = tmp_path / "run"
    options = {"method": "uniform", "out": out, "recipe": plain, "tune_epochs": 1, "progress": False}
    whole = optimize(tiny, pictures, "macs<=80%", **options)
    run = json.loads((out / "run.json").read_text())
    del run["settings"]["recipe"]["normalisation"], run["settled"]["normalisation"], run["settled"]["class_names"]
    (out / "run.json").write_text(json.dumps(run))
    (out / "result.json").unlink()
    again = optimize(tiny, pictures, "macs<=80%", **options, resume=True)
    assert again.data["result"] == whole.data["result"]
    assert again.data["normalisation"] == whole.data["normalisation"]

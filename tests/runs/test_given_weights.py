"""Weights that a user brings, in whole runs: what counts as trained, and how images are fed."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from convwright.architecture import create
from convwright.errors import ReadError
from convwright.runs.config import RunConfig
from convwright.runs.directory.files import weights_note
from convwright.runs.load import load_model_and_data
from convwright.runs.optimize import optimize
from convwright.runs.train import train_named
from convwright.training import Recipe
from convwright.training.data.folders import Resize
from convwright.training.data.normalisation import Normalisation

SMALL = "timm:test_resnet"
HALF = Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{number}.png")
    return "folder:photos"


@pytest.fixture
def small(tmp_path):
    """A file of weights for timm's small network, with its 1000 classes."""
    torch.save({"state_dict": create(SMALL)[0].state_dict()}, tmp_path / "small.pth")
    return tmp_path / "small.pth"


def test_a_network_with_a_new_head_is_trained_first(tiny, pictures, plain, tmp_path):
    file = tmp_path / "w.pth"
    other = create(tiny, num_classes=5)[0]
    torch.save({"state_dict": other.state_dict(), "epoch": 3}, file)
    said = []
    asked = {"method": "uniform", "out": tmp_path / "run", "recipe": plain, "tune_epochs": 1, "weights": file}
    found = optimize(tiny, pictures, "macs<=80%", say=said.append, **asked)
    assert (
        f"{file} [state_dict]: took 7 of 9 tensors; drawn anew: fc.weight, fc.bias (5 -> 3 classes); ignored: epoch"
        in said
    )
    assert "what is drawn anew is untrained: the untouched network is trained for 2 epochs first" in said
    assert found.trials[0].candidate.epochs == 2
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["settings"]["epochs"] == 2
    assert "drawn anew: fc.weight" in run["settled"]["weights_taken"]
    start = load_file(tmp_path / "run" / "initial.safetensors")
    assert torch.equal(start["conv1.weight"], other.conv1.weight)
    assert torch.equal(start["fc.weight"], load_model_and_data(tiny, pictures, weights=file).arch.model.fc.weight)


def test_a_new_head_is_drawn_small_whatever_the_network_draws(tmp_path):
    other = create("timm:tf_efficientnet_lite0", num_classes=5)[0]
    torch.save(other.state_dict(), tmp_path / "w.pth")
    images = np.zeros((20, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "x.npz", x_train=images, y_train=np.arange(20) % 10)
    data = f"npz:{tmp_path / 'x.npz'}"
    head = load_model_and_data("timm:tf_efficientnet_lite0", data, weights=tmp_path / "w.pth").arch.model.classifier
    assert head.out_features == 10
    assert float(head.weight.detach().abs().max()) <= 1280**-0.5
    assert float(create("timm:tf_efficientnet_lite0", num_classes=10)[0].classifier.weight.detach().abs().max()) > 0.2


def test_what_counts_as_trained(tiny, pictures, plain, tmp_path):
    config = RunConfig(tiny, pictures, "macs<=80%", recipe=plain)
    for classes, trained, epochs in ((3, True, 0), (5, False, 2)):
        torch.save(create(tiny, num_classes=classes)[0].state_dict(), tmp_path / "w.pth")
        opened = load_model_and_data(tiny, pictures, weights=tmp_path / "w.pth")
        assert opened.trained is trained
        assert config.base_epochs(opened.trained) == epochs
    assert not load_model_and_data(tiny, pictures).trained


@pytest.mark.parametrize(
    ("recipe", "normalisation", "crop_pct", "said"),
    [
        (Recipe(), HALF, 0.95, "as the pretrained timm:test_resnet was trained: mean 0.5, 0.5, 0.5; std 0.5"),
        (Recipe(normalisation="imagenet", resize={"crop_pct": 1}), "imagenet", 1, "used is normalisation=imagenet of"),
    ],
)  # fmt: skip
def test_images_are_fed_as_to_the_pretrained_network_unless_a_recipe_says_else(
    recipe, normalisation, crop_pct, said, photographs, small
):
    opened = load_model_and_data(SMALL, photographs, input_shape="3x32x32", recipe=recipe, weights=small)
    resize = Resize(crop_pct=crop_pct, interpolation="bilinear")
    assert (opened.recipe.normalisation, opened.recipe.resize, opened.data.resize) == (normalisation, resize, resize)
    assert opened.taken.classes == (1000, 2)
    assert said in opened.remarks[1]


def test_weights_say_how_photographs_were_resized(photographs, small, plain, tmp_path):
    sizes = {"input_shape": "3x32x32"}
    recipe = plain.updated(epochs=1, batch_size=4, schedule="constant")
    content = train_named(SMALL, photographs, recipe, {}, out=tmp_path / "t", weights=small, **sizes)
    assert content["resize"] == {"crop_pct": 0.95, "interpolation": "bilinear"}
    assert content["recipe"]["resize"] == content["resize"]
    mine = tmp_path / "t" / "model.safetensors"
    assert weights_note(mine)["resize"] == content["resize"]
    opened = load_model_and_data(SMALL, photographs, weights=mine, recipe=Recipe(resize={"crop_pct": 0.5}), **sizes)
    assert opened.trained
    assert opened.data.resize == Resize(**content["resize"])
    assert "0.95 of the shorter side is shown, bilinear" in opened.remarks[1]


@pytest.mark.breadth
def test_a_pretrained_network_is_optimised_and_the_run_continued(photographs, small, plain, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(small))
    said, recipe = [], plain.updated(epochs=1, batch_size=4, schedule="constant")
    asked = {"method": "uniform", "out": tmp_path / "run", "recipe": recipe, "input_shape": "3x32x32"}
    result = optimize(SMALL, photographs, "macs<=80%", pretrained=True, say=said.append, **asked)
    took = re.compile(
        "pretrained weights of timm:test_resnet: took .*; drawn anew: fc.weight, fc.bias .1000 -> 2 classes"
    )
    assert any(map(took.match, said))
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["settings"]["pretrained"], run["settings"]["epochs"], run["settings"]["weights"]) == (True, 1, None)
    assert run["settled"]["resize"] == {"crop_pct": 0.95, "interpolation": "bilinear"}
    (tmp_path / "run" / "result.json").unlink()
    again = optimize(SMALL, photographs, "macs<=80%", pretrained=True, resume=True, progress=False, **asked)
    assert again.data["result"] == result.data["result"]
    assert again.data["resize"] == run["settled"]["resize"]


def test_weights_are_given_once(tmp_path):
    with pytest.raises(ReadError, match="the weights are given twice"):
        optimize(
            "timm:resnet18", "fashion-mini", "macs<=50%", pretrained=True, weights=tmp_path / "w.pt", progress=False
        )

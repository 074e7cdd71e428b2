"""A result comes back onto the original network's class, with what it was judged by and what its inputs are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convwright as cw
from convwright.edits import Plan
from convwright.errors import RunError
from convwright.export import Exportable, ExportError, export_network
from convwright.runs.directory.files import save_weights, weights_note, write_json, write_text

USAGE = {"normalisation": {"mean": [0.5, 0.25], "std": [0.5, 2.0]}, "class_names": ["cat", "dog"]}
MAE: dict[str, Any] = {"metric": {"name": "mae", "higher_is_better": False, "unit": "px"}, "class_names": []}


class Tiny(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(1, 5, 3)
        self.head = nn.Linear(11, 2)

    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        found: Tensor = self.head(torch.cat([self.one(image).mean((2, 3)), self.two(depth).mean((2, 3))], 1))
        return found


def written(folder: Path, arch: cw.Architecture, **facts: Any) -> Path:
    """Write what a training leaves of a network."""
    save_weights(arch.model, folder / "model.safetensors")
    write_text(folder / "plan.json", arch.plan.to_json())
    judged = {"accuracy": -0.5, "stderr": 0.01, "samples": 97}
    content = {"format": "convwright training", "version": 1, "model": "Tiny", "data": "own", "recipe": {"epochs": 2}}
    costs = {"macs": 1, "params": 2}
    write_json(folder / "training.json", content | costs | {"validation": judged, "test": None} | facts)
    return folder


@pytest.mark.parametrize("given", [Tiny, Tiny(), lambda: Tiny()])
def test_plan_and_weights_go_onto_a_class(tmp_path: Path, given: Any) -> None:
    arch = cw.read(Tiny(), (2, 9, 9)).apply(cw.Width("0", 4), verify=False)
    found = cw.load(written(tmp_path, arch, **USAGE), given)
    images = torch.randint(0, 256, (3, 2, 9, 9), dtype=torch.uint8)
    expected = (images / 255 - torch.tensor([0.5, 0.25]).view(-1, 1, 1)) / torch.tensor([0.5, 2.0]).view(-1, 1, 1)
    assert torch.equal(found.preprocess(images), expected)
    assert torch.equal(found.preprocess(images / 255), expected)
    assert torch.equal(found.model(expected), arch.model.eval()(expected))
    assert type(found.model) is Tiny
    assert (found.class_names, found.input_shape, found.plan) == (
        ("cat", "dog"),
        (2, 9, 9),
        Plan.load(tmp_path / "plan.json"),
    )


def test_a_network_without_a_name_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="or model= in Python"):
        cw.load(written(tmp_path, cw.read(Tiny(), (2, 9, 9))))


def test_values_of_another_metric_and_inputs_that_a_task_made(tmp_path: Path) -> None:
    found = cw.load(written(tmp_path, cw.read(Tiny(), (2, 9, 9)), **MAE), Tiny)
    assert found.metrics == {"macs": 1, "params": 2, "validation": 0.5}
    images = torch.randn(2, 2, 9, 9)
    assert torch.equal(found.preprocess(images), images)
    export_network(found, "python")
    program = (tmp_path / "export" / "python" / "model.py").read_text()
    assert "INPUT_SHAPE = (2, 9, 9)" in program
    card = (tmp_path / "export" / "python" / "README.md").read_text()
    assert "| validation mae |  | 0.5 ± 0.01 px |" in card
    assert "one per class" not in card
    old = cw.load(written(tmp_path, cw.read(Tiny(), (2, 9, 9))), Tiny)
    with pytest.raises(RunError, match="does not say how its inputs were made"):
        old.preprocess(images)


def test_several_inputs_are_known_by_the_plan(tmp_path: Path) -> None:
    arch = cw.read(Two(), {"image": (3, 8, 8), "depth": (1, 8, 8)}).apply(cw.Width("one", 4), verify=False)
    assert Plan.from_json(arch.plan.to_json()).inputs == "image=1x3x8x8,depth=1x1x8x8"
    found = cw.load(written(tmp_path, arch, **MAE), Two())
    inputs = torch.randn(2, 3, 8, 8), torch.randn(2, 1, 8, 8)
    assert torch.equal(found.model(*inputs), arch.model.eval()(*inputs))
    assert export_network(found, "safetensors").difference == 0.0
    assert weights_note(tmp_path / "export" / "safetensors" / "model.safetensors")["input_shape"] == [3, 8, 8]
    with pytest.raises(ExportError, match="takes several inputs"):
        export_network(Exportable(found.arch, found.plan, tmp_path, found.record), "onnx")


class Facts(torch.nn.Module):
    """An image and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(5, 4)

    def forward(self, image: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(image).mean((2, 3)), self.two(facts)], 1)


def test_a_vector_keeps_its_batch(tmp_path: Path) -> None:
    inputs = {"image": torch.zeros(1, 3, 8, 8), "facts": torch.zeros(1, 5)}
    arch = cw.read(Facts(), inputs)
    found = cw.load(written(tmp_path, arch, **MAE), Facts)  # facts were given as 1x1x5
    assert torch.equal(found.model(**inputs), arch.model.eval()(**inputs))
    assert len(repr(found)) < 300


def test_a_class_that_needs_arguments_is_one_line(tmp_path):
    with pytest.raises(RunError, match="cannot be called without arguments"):
        cw.load(tmp_path, torch.nn.Linear)

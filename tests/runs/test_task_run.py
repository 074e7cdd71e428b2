"""A task of the user's own from compress to files: everything that is shown is its metric, in its unit."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import convwright as cw
from convwright.diagnose.tables import result_table, trials_table
from convwright.runs import BrokenBudgetError, Result
from convwright.runs.prove import check_promises
from convwright.training import Metric, Task


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 16, 3), nn.Conv2d(16, 8, 3)
        self.head = nn.Linear(8, 1)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.head(self.two(self.one(image).relu()).relu().mean((2, 3)))
        return found


class Means(Task):
    metric = Metric("mae", higher_is_better=False, unit="px")

    def batches(self, part: str) -> Iterable[Any]:
        images = torch.randn(24, 2, 8, 8, generator=torch.Generator().manual_seed(len(part)))
        return [(images[i : i + 8], 9 * images[i : i + 8].mean((1, 2, 3))[:, None]) for i in range(0, 24, 8)]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.smooth_l1_loss(self.forward(model, batch[0]), batch[1])

    def metrics(self, model: nn.Module, part: str) -> dict[str, float]:
        errors = torch.cat([(self.forward(model, x) - y).abs() for x, y in self.on_device(model, part)])
        return {"mae": float(errors.mean()), "mae_stderr": float(errors.std() / len(errors) ** 0.5)}


def broken(result: Result) -> Result:
    """Return a result that is worse than its baseline by 0.75 px."""
    value = result.data["result"]["validation"]
    better = {"accuracy": value["accuracy"] + 0.75, "stderr": 0.0}
    return replace(result, data={**result.data, "baseline": {**result.data["baseline"], "validation": better}})


def test_all_that_is_shown_is_the_metric_in_its_unit(tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = cw.Recipe(epochs=1, lr=0.01, batch_size=8, precision="fp32", memory_format="contiguous")
    how: dict[str, Any] = {"options": {"rounds": 1}, "merge": False, "refit": False, "progress": False}
    how |= {"recipe": recipe, "tune_epochs": 1, "say": lines.append}
    result = cw.compress(Net(), Means(), "macs<=60%", out=tmp_path / "run", **how)
    value = result.data["result"]["validation"]
    assert result.metrics["validation"] == -value["accuracy"] > 0
    assert any(f"validation mae {result.best.shown} in" in line for line in lines)
    result.export("safetensors")
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(result_table(result.data), trials_table(result.data))
    card = (tmp_path / "run" / "export" / "safetensors" / "README.md").read_text()
    report = result.report()
    texts = [str(report), report.markdown(), report.html().partition("<script")[0], card, console.export_text()]
    for text in texts:
        assert Means.metric.shown(value["accuracy"], value["stderr"]) in text
    assert not [text for text in (*lines, *texts) if "accuracy" in text]
    found, image = cw.load(tmp_path / "run", Net), torch.randn(2, 2, 8, 8)
    assert torch.equal(found.model(image), result.model(image))
    assert found.metrics == result.metrics
    check_promises(broken(result), 0.8)
    with pytest.raises(
        BrokenBudgetError, match=r"validation mae is 0.75 px above the baseline, and --max-drop allows 0.7"
    ):
        check_promises(broken(result), 0.7)

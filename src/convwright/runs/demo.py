"""The demonstration: halve a residual network on embedded data, and show it beside its baseline."""

from __future__ import annotations

import shlex
from itertools import count
from pathlib import Path

from convwright.runs.config import OptimizeOptions
from convwright.runs.directory.result import Result
from convwright.runs.loop import Say
from convwright.runs.optimize import optimize

MODEL, DATA, BUDGET, RECIPE = "zoo:resnet20", "fashion-mini", "macs<=50%", "fast-cpu"
EPOCHS, TUNE_EPOCHS = 3, 3


def demo(folder: Path, seed: int, say: Say) -> Result:
    """Run the demonstration.

    Args:
        folder: Run directory.
        seed: Of weights and trainings.
        say: Called with lines for a person.
    """
    command = command_line(folder, seed)
    say(f"This is the same as: {command}")
    options: OptimizeOptions = {"epochs": EPOCHS, "tune_epochs": TUNE_EPOCHS, "say": say, "command": command}
    return optimize(MODEL, DATA, BUDGET, "uniform", folder, seed, RECIPE, **options)


def command_line(folder: Path, seed: int) -> str:
    """Return the command that does the same, and with ``--resume`` continues it."""
    words = ["convwright", "optimize", MODEL, "--data", DATA, "--budget", BUDGET, "--method", "uniform"]
    words += ["--recipe", RECIPE, "--epochs", str(EPOCHS), "--tune-epochs", str(TUNE_EPOCHS)]
    return shlex.join([*words, "--seed", str(seed), "--out", str(folder)])


def free_folder() -> Path:
    """Return the first of ``runs/demo``, ``runs/demo-2``, ... that is not there."""
    names = (Path("runs") / ("demo" if n == 1 else f"demo-{n}") for n in count(1))
    return next(folder for folder in names if not folder.exists())

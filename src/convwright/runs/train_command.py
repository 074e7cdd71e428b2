"""``convwright search``: a search whose trainings are a shell command; the last line that it prints is the score."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from convwright.architecture.weights import read_checkpoint, take
from convwright.errors import ConvwrightError, RunError
from convwright.runs.directory.files import load_weights, save_weights, there, write_text
from convwright.runs.directory.result import Result
from convwright.runs.directory.study import WEIGHTS
from convwright.runs.load import read_named
from convwright.runs.own_loop import Search, Trial, number_of

_GIVEN, _SAID, _ERRORS = "inherited.safetensors", "output.txt", "errors.txt"  # in a trial's folder
_LOOK = 1.0  # seconds between two looks at whether the trial is still ours
_ENOUGH = 5.0  # seconds in which a command that is to end ends by itself
_TAIL = 10_000  # bytes in which the last line of an output is looked for


def search_by_command(
    model: str,
    budget: list[str],
    train_command: str,
    *,
    input_shape: str | None = None,
    num_classes: int | None = None,
    weights: Path | None = None,
    seed: int = 0,
    **options: Any,
) -> Result:
    """Search with a shell command that trains each candidate, and leaves its weights in ``{out}/model.safetensors``.

    Args:
        model: As for `read`; its weights are drawn from `seed`.
        budget: As for `Search`.
        train_command: Has ``{plan}``, ``{out}``, ``{weights}``, ``{epochs}``, ``{seed}`` and ``{trial}`` for values.
        input_shape: As on the command line.
        num_classes: Outputs of a named network; None: its own.
        weights: A file of trained weights.
        seed: Of all choices and trainings.
        options: As for `Search`.

    Raises:
        ConvwrightError: Wrong network, weights or budget, or the command has no place for the plan.
    """
    if "{plan}" not in train_command:
        raise ConvwrightError(
            "--train-command has no {plan}, the file that says which network to train: give it a place, as in "
            "'python train.py --plan {plan} --weights {weights} --out {out}'"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        arch = read_named(model, input_shape, num_classes)
    if weights is not None:
        take(arch.model, read_checkpoint(weights))
    search = Search(arch, budget, seed=seed, **options)
    while trial := search.ask():
        command = _prepared(train_command, trial)
        try:
            score = _score(_carried_out(command, trial), trial)
        except RunError as error:
            if trial.lease.held:
                search.fail(trial, str(error))
            else:
                search.say(str(error))
        else:
            search.tell(trial, score)
    return search.result()


def _prepared(command: str, trial: Trial) -> str:
    """Write what the command reads, and return it with the trial's values."""
    folder = trial.folder.resolve()
    write_text(folder / "plan.json", trial.plan.to_json())
    save_weights(trial.model(), folder / _GIVEN)
    (folder / WEIGHTS).unlink(missing_ok=True)  # of a process that was lost
    values: dict[str, object] = {"plan": folder / "plan.json", "out": folder, "weights": folder / _GIVEN}
    values |= {"epochs": trial.epochs, "seed": trial.seed, "trial": trial.number}
    return re.sub(rf"{{({'|'.join(values)})}}", lambda found: shlex.quote(str(values[found[1]])), command)


def _carried_out(command: str, trial: Trial) -> int:
    """Return the exit code of a command in the shell; it does not outlive this call, which Ctrl-C ends, too."""
    with (trial.folder / _SAID).open("wb") as out, (trial.folder / _ERRORS).open("wb") as errors:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": errors}
        process = subprocess.Popen(command, shell=True, start_new_session=True, **streams)
        try:
            while not _ended(process, _LOOK):
                trial.heartbeat()
        finally:
            for how in (signal.SIGTERM, signal.SIGKILL):
                if process.poll() is None:
                    os.killpg(process.pid, how)  # with all that it has started
                    _ended(process, _ENOUGH)
    return process.returncode


def _ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.poll() is not None


def _score(code: int, trial: Trial) -> float:
    """Return the score that a command printed, and take its weights.

    Raises:
        RunError: It ended with another code than 0, printed no score, or left no weights that fit.
    """
    if code:
        raise RunError(f"the command ended with code {code}: {_last_line(trial.folder / _ERRORS)}")
    score = number_of(_last_line(trial.folder / _SAID), "the last line that the command printed")
    if there(file := trial.folder / WEIGHTS):
        load_weights(trial.model(), file)
    elif trial.epochs:
        raise RunError(f"the command left no {file}: save the trained weights there with safetensors.torch.save_model")
    return score


def _last_line(file: Path) -> str:
    lines = file.read_bytes()[-_TAIL:].decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"

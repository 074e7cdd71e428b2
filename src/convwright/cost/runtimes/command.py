"""A command of the user's that measures an ONNX file, for instance on a phone, and prints milliseconds."""

from __future__ import annotations

import re
import shlex
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from convwright.architecture.capture.pytrees import Inputs
from convwright.cost.runtimes.onnx_files import PACKAGES, exported_onnx
from convwright.cost.runtimes.registry import RunnableProgram, Runtime, Target, Timer
from convwright.errors import ConvwrightError

_SECONDS = 600  # one measurement may take
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, eq=False)
class CommandProgram(RunnableProgram):
    """An ONNX file, measured by a command.

    Attributes:
        content: the file.
        command: with ``{onnx}`` for its path.
    """

    content: bytes
    command: str
    remote: ClassVar[bool] = True

    def run(self) -> object:
        """Measure once."""
        return self._milliseconds()

    def time(self, calls: int, timer: Timer) -> float:
        """Return what the command says, in seconds; its own time is not asked for."""
        return statistics.fmean(self._milliseconds() for _ in range(calls)) / 1e3

    def outputs(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Raise: a command only measures.

        Raises:
            ConvwrightError: always.
        """
        raise ConvwrightError("the runtime command measures latency; it returns no outputs.")

    def _milliseconds(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(self.content)
            words = [word.replace("{onnx}", str(path)) for word in shlex.split(self.command)]
            try:
                done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise ConvwrightError(f"the device command {words[0]!r} does not run: {error}") from error
        numbers = _NUMBER.findall(done.stdout)
        if done.returncode or not numbers or float(numbers[-1]) <= 0:
            told = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing"]
            raise ConvwrightError(
                f"the device command ended with {done.returncode} and printed no milliseconds as its last number; "
                f"it said: {told[0][:200]}"
            )
        return float(numbers[-1])


class Command(Runtime):
    """A device behind a command."""

    name: ClassVar[str] = "command"
    needs: ClassVar[tuple[str, ...]] = PACKAGES
    extra: ClassVar[str] = "onnx"

    def check(self, target: Target) -> None:
        """As `Runtime.check`; the command must be given, with the place of the file."""
        if "{onnx}" not in target.command:
            raise ConvwrightError(
                "the runtime command needs --device-command with {onnx} for the file, such as "
                '"adb shell bench {onnx}"; its last number is read as milliseconds.'
            )
        super().check(target)

    def convert(
        self, name: str, model: nn.Module, inputs: Inputs, target: Target, calibration: Sequence[Inputs] = ()
    ) -> RunnableProgram:
        """Export a network to ONNX; as `Runtime.convert`."""
        return CommandProgram(exported_onnx(name, model, inputs), target.command)

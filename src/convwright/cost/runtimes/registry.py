"""Runtimes: what runs a network on a device, behind one small interface, and how a person names one.

``onnxruntime``, ``openvino,int8`` or ``onnxruntime,threads=4,batch=8`` is a *target*. A further runtime is one file
with a `Runtime` and one line in ``RUNTIMES``; it is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from convwright.architecture.capture.pytrees import Inputs, joined, rows_of
from convwright.cost.deployed import reparametrised
from convwright.errors import BudgetError, ConvwrightError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

Timer = Callable[[Callable[[], object], int], float]  # (function, calls) -> seconds per call
RUNTIMES = {  # name -> where its `Runtime` lies
    "eager": "eager:Eager",
    "compile": "compiled:Compiled",
    "onnxruntime": "onnxruntime:OnnxRuntime",
    "openvino": "openvino:OpenVino",
    "executorch": "executorch:ExecuTorch",
    "command": "command:Command",
}
_COUNTS = ("threads", "batch")


@dataclass(frozen=True)
class Target:
    """Where and how a latency is measured.

    Attributes:
        runtime: a name of ``RUNTIMES``.
        int8: whether weights and activations are quantized to 8 bits by the runtime's own library.
        provider: what runs it within the runtime, such as ``cuda`` in ONNX Runtime; "": its usual one.
        threads: the most it may use; None: as many as torch uses.
        batch: examples that are run at once; None: as many as the example input has.
        command: of the runtime ``command``: what measures an ONNX file, ``{onnx}``, and prints milliseconds.
    """

    runtime: str
    int8: bool = False
    provider: str = ""
    threads: int | None = None
    batch: int | None = None
    command: str = ""

    @classmethod
    def of(cls, text: str | Target) -> Target:
        """Read what a person wrote, such as ``openvino,int8,threads=2``.

        Raises:
            BudgetError: no runtime is called so, or it has no such setting.
        """
        if isinstance(text, Target):
            return text
        name, *rest = [part.strip().lower() for part in text.split(",")]
        if name not in RUNTIMES:
            raise BudgetError(f"{name!r} is no runtime; there are {', '.join(RUNTIMES)}.{did_you_mean(name, RUNTIMES)}")
        found = cls(name)
        for word in rest:
            found = replace(found, **_setting(runtime_named(name), word))
        return found

    def __str__(self) -> str:
        words = [self.runtime, *(["int8"] if self.int8 else []), *([self.provider] if self.provider else [])]
        counts = [f"{name}={value}" for name in _COUNTS if (value := getattr(self, name)) is not None]
        return ",".join([*words, *counts])

    def inputs(self, given: Tensor | Inputs) -> Inputs:
        """Return what the network is called with: the example input, repeated or cut to the batch."""
        inputs = Inputs.of(given)
        if self.batch is None:
            return inputs
        many = joined([(inputs.args, dict(inputs.kwargs))] * -(-self.batch // inputs.batch))
        return Inputs(*rows_of(many, slice(self.batch)))


def _setting(runtime: Runtime, word: str) -> dict[str, Any]:
    name, equals, value = (part.strip() for part in word.partition("="))
    if equals and name in _COUNTS and value.isdecimal() and int(value) > 0:
        return {name: int(value)}
    if not equals and word == "int8" and runtime.int8:
        return {"int8": True}
    if not equals and word in runtime.providers:
        return {"provider": word}
    known = [*(["int8"] if runtime.int8 else []), *runtime.providers, "threads=N", "batch=N"]
    raise BudgetError(f"{runtime.name} has no setting {word!r}; there are {', '.join(known)}.")


class RunnableProgram(ABC):
    """A network that is ready to run on a runtime, with the inputs it was made for.

    Attributes:
        remote: whether each run is a measurement of its own, which needs no warming up.
    """

    remote: ClassVar[bool] = False

    @abstractmethod
    def run(self) -> object:
        """Run once; the outputs need not be fetched."""

    @abstractmethod
    def outputs(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for inputs of the sizes that the program was made for, on the CPU."""

    def time(self, calls: int, timer: Timer) -> float:
        """Return the seconds of one run, as the mean of several."""
        return timer(self.run, calls)

    def profile(self, runs: int = 15) -> dict[str, float]:
        """Return the seconds by the weight that an operator uses, the rest under ""; empty: the runtime does not tell.

        What is done on the output of such an operator, such as an activation, counts to it.
        """
        return {}


class Runtime(ABC):
    """What makes programs.

    Attributes:
        name: as in a budget.
        needs: packages.
        extra: of convwright, which installs them.
        int8: whether it can quantize.
        quantizers: further packages, which int8 needs.
        providers: words by which a person chooses what runs it.
        deploys: whether branches that are only for training are merged before, as `convwright.cost.deployed` does.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    int8: ClassVar[bool] = False
    quantizers: ClassVar[tuple[str, ...]] = ()
    providers: ClassVar[tuple[str, ...]] = ()
    deploys: ClassVar[bool] = True

    def missing(self, target: Target) -> list[str]:
        """Return the packages that are needed and not installed."""
        needs = (*self.needs, *(self.quantizers if target.int8 else ()))
        return [package for package in needs if importlib.util.find_spec(package) is None]

    def check(self, target: Target) -> None:
        """Raise unless it can run here.

        Raises:
            ConvwrightError: a package is missing, or a setting that it needs.
        """
        if missing := self.missing(target):
            extra = "int8" if target.int8 else self.extra
            where = f"'convwright[{extra}]'" if extra else " ".join(missing)
            raise ConvwrightError(
                f"the runtime {target} needs {', '.join(missing)}, not installed: pip install {where}."
            )

    @property
    def version(self) -> str:
        """What its times depend on besides torch and the machine."""
        return ""

    @abstractmethod
    def convert(
        self, name: str, model: nn.Module, inputs: Inputs, target: Target, calibration: Sequence[Inputs] = ()
    ) -> RunnableProgram:
        """Make a network ready to run.

        Args:
            name: of the network, for messages.
            model: in eval mode, where its inputs lie.
            inputs: what it is called with.
            target: with the settings of this runtime.
            calibration: batches of their size that int8 finds the ranges of activations with; (): the inputs alone,
                enough for a latency and too little for an accuracy.

        Raises:
            ConvwrightError: the runtime cannot run it.
        """


def runtime_named(name: str) -> Runtime:
    """Return a runtime, importing its file."""
    file, _, kind = RUNTIMES[name].partition(":")
    made: Runtime = getattr(importlib.import_module(f"convwright.cost.runtimes.{file}"), kind)()
    return made


def program(
    name: str,
    model: nn.Module,
    example_input: Tensor | Inputs,
    target: Target,
    calibration: Sequence[Inputs] = (),
) -> RunnableProgram:
    """Make a network ready to run on a target; as `Runtime.convert`."""
    runtime = runtime_named(target.runtime)
    runtime.check(target)
    inputs = target.inputs(example_input)
    made = reparametrised(model, inputs).model if runtime.deploys else model
    return runtime.convert(name, made, inputs, target, calibration)


def installed(device: torch.device) -> tuple[Target, ...]:
    """Return what can run a network on a device and competes to be the default: converted files first."""
    names = ("openvino", "onnxruntime", "eager") if device.type == "cpu" else ("eager",)
    return tuple(target for target in map(Target, names) if not runtime_named(target.runtime).missing(target))


@contextmanager
def threads_of(target: Target) -> Iterator[None]:
    """Let torch use as many threads as a target may."""
    before = torch.get_num_threads()
    torch.set_num_threads(target.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

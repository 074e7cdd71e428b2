"""Precision and memory layout, chosen by a short measurement instead of by belief."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from convwright.architecture.capture.pytrees import mapped, rows_of, samples_in, tensors_of
from convwright.devices import let_go, out_of_memory
from convwright.errors import DataError

if TYPE_CHECKING:
    from convwright.training.recipe.recipe import Recipe
    from convwright.training.tasks.base import Batch, Loss

Kept: TypeAlias = Literal["fp32", "bf16", "fp16"]
Choice: TypeAlias = tuple[Kept, Literal["contiguous", "channels_last"]]

# (precision, memory format), the plainest first: it wins unless another is clearly faster.
_CHOICES: tuple[Choice, ...] = (
    ("fp32", "contiguous"),
    ("fp32", "channels_last"),
    ("bf16", "channels_last"),
    ("bf16", "contiguous"),
    ("fp16", "channels_last"),
    ("fp16", "contiguous"),
)
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MARGIN = 0.9  # a less plain choice must need less than this share of the time
_REPEATS = 3
_SLOW = 1.0  # seconds per step from which one timed step is enough


@dataclass(frozen=True)
class Measurement:
    """One tried combination; `milliseconds` per training step, infinite where it does not work."""

    precision: Kept
    memory_format: Literal["contiguous", "channels_last"]
    milliseconds: float


@dataclass(frozen=True)
class Settings:
    """What a training ran with.

    Attributes:
        precision: fp32, or bf16 or fp16 (mixed: weights stay float32; fp16 scales the loss).
        memory_format: contiguous or channels_last.
        device: Such as cpu or cuda:0.
        threads: Threads of torch on the CPU.
        measured: The measurement that decided; empty where the recipe did.
        lr: The highest learning rate that a rate test found; None: the recipe's.
    """

    precision: Kept
    memory_format: Literal["contiguous", "channels_last"]
    device: str
    threads: int
    measured: tuple[Measurement, ...] = ()
    lr: float | None = None

    @property
    def layout(self) -> torch.memory_format:
        """The memory format as torch names it."""
        return _layout(self.memory_format)

    @property
    def fabric_precision(self) -> str:
        """The precision as Fabric names it."""
        return {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[self.precision]

    @property
    def channels_last(self) -> bool:
        """Whether the layout is channels_last."""
        return self.memory_format == "channels_last"


_cache: dict[tuple[object, ...], tuple[Measurement, ...]] = {}


def choose_settings(model: nn.Module, batch: Batch, loss: Loss, recipe: Recipe, device: torch.device) -> Settings:
    """Choose precision and layout for training `model` on batches like this one.

    What the recipe leaves at `auto` is measured on a copy: weights, buffers and random states stay
    as they are. The result is kept for the process, by network, batch shape and device. Float32 on a CPU is contiguous,
    whatever the recipe says, for a network with `narrow_strided` convolutions.

    Args:
        model: The network, on `device`.
        batch: Inputs and targets on `device`.
        loss: Of the network and a batch.
        recipe: Its `precision` and `memory_format` count.
        device: Where training will run.
    """
    choices = _choices(recipe, sound=device.type != "cpu" or not narrow_strided(model))
    measured = _measured(model, batch, loss, choices, device) if len(choices) > 1 else ()
    best = _fastest(measured) if measured else choices[0]
    return Settings(*best, str(device), torch.get_num_threads(), measured)


def has_avx512() -> bool:
    """Return whether torch uses this processor's AVX-512 instructions, without which bf16 is not computed on x86."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def narrow_strided(model: nn.Module) -> tuple[str, ...]:
    """Return the convolutions whose weight gradient oneDNN may compute wrong in float32 and channels_last.

    Of a 1x1 convolution with a stride and fewer input channels than a register holds, the gradient's workspace is too
    small (https://github.com/uxlfoundation/oneDNN/issues/6035): the process is ended by the system, hangs, or goes on
    with wrong gradients. Seen with torch 2.14 on a processor with AVX2 and 2 to 7 channels.
    """
    register = 16 if has_avx512() else 8
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.in_channels // module.groups < register
    )


def _choices(recipe: Recipe, *, sound: bool) -> list[Choice]:
    """Return what a recipe allows; float32 in channels_last only where it is sound, else contiguous in its place."""
    allowed = [
        choice
        for choice in _CHOICES
        if (recipe.precision == choice[0] or (recipe.precision == "auto" and choice[0] != "fp16"))
        and recipe.memory_format in ("auto", choice[1])
        # Short numbers in the contiguous layout are never the fastest: tried only where asked for.
        and (choice[0] not in _TYPES or choice[1] == "channels_last" or recipe.memory_format == "contiguous")
    ]
    if sound:
        return allowed
    plain = _CHOICES[0]
    return list(dict.fromkeys(plain if choice == ("fp32", "channels_last") else choice for choice in allowed))


def _fastest(measured: tuple[Measurement, ...]) -> Choice:
    best = measured[0]
    for other in measured[1:]:
        if other.milliseconds < _MARGIN * best.milliseconds:
            best = other
    return best.precision, best.memory_format


def _measured(
    model: nn.Module, batch: Batch, loss: Loss, choices: list[Choice], device: torch.device
) -> tuple[Measurement, ...]:
    # Of the network: structure, shapes and types, which the time of a step depends on.
    state = [(k, tuple(v.shape), str(v.dtype)) for k, v in model.state_dict().items()]
    signature = hashlib.sha256(f"{model}{state}".encode()).hexdigest()
    shapes = tuple(tuple(tensor.shape) for _, tensor in tensors_of(batch[0]))
    key = (signature, shapes[0] if len(shapes) == 1 else shapes, device, torch.get_num_threads(), *choices)
    if key not in _cache:
        with untouched_random(device):
            _cache[key] = _measure_what_fits(copy.deepcopy(model).train(), batch, loss, choices)
    return _cache[key]


def _measure_what_fits(model: nn.Module, batch: Batch, loss: Loss, choices: list[Choice]) -> tuple[Measurement, ...]:
    """Time the choices on as much of a batch as memory holds, by halves."""
    while True:
        try:
            return _measure(model, batch, loss, choices)
        except (MemoryError, RuntimeError) as error:
            half = samples_in(batch[0]) // 2
            if not out_of_memory(error) or not half:
                raise
        batch = rows_of(batch, slice(half))
        model.zero_grad(set_to_none=True)
        let_go()


def _measure(model: nn.Module, batch: Batch, loss: Loss, choices: list[Choice]) -> tuple[Measurement, ...]:
    """Time the choices in turn, round by round, so that a busy moment hits all of them alike."""
    warm_up = [_timed_choice(model, batch, loss, choice) for choice in choices]
    rounds = _REPEATS if min(warm_up) < _SLOW else 1
    times = [[_timed_choice(model, batch, loss, choice) for choice in choices] for _ in range(rounds)]
    best = [min(column) * 1e3 for column in zip(*times, strict=True)]
    return tuple(Measurement(*c, ms) for c, ms in zip(choices, best, strict=True))


def _timed_choice(model: nn.Module, batch: Batch, loss: Loss, choice: Choice) -> float:
    layout = _layout(choice[1])
    to_layout(model, layout)
    inputs = mapped(batch[0], lambda tensor: tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor)
    try:
        return _timed_step(model, (inputs, batch[1]), loss, choice[0])
    except (RuntimeError, NotImplementedError):
        if choice == _CHOICES[0]:
            raise
        return math.inf  # an operator without bf16, or a `view` that wants contiguous memory


def _timed_step(model: nn.Module, batch: Batch, loss: Loss, precision: str) -> float:
    """Return the seconds of one forward and backward pass; infinite if the loss is not finite."""
    device = next(model.parameters()).device
    model.zero_grad(set_to_none=True)
    start = _now(device)
    with autocast(device, precision):
        found = loss(model, batch)
    torch.autograd.backward(found)
    seconds = _now(device) - start
    return seconds if bool(torch.isfinite(found)) or precision == "fp32" else math.inf


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
    return time.perf_counter()


def _layout(name: str) -> torch.memory_format:
    return torch.channels_last if name == "channels_last" else torch.contiguous_format


def to_layout(model: nn.Module, layout: torch.memory_format) -> None:
    """Store the four-dimensional weights of `model` in `layout`, in place."""
    apply: Any = model._apply  # as torch's own `to`, which refuses weights of volumes
    apply(lambda tensor: tensor.to(memory_format=layout) if tensor.ndim == 4 else tensor)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which `precision` holds."""
    return torch.autocast(device.type, _TYPES.get(precision, torch.bfloat16), enabled=precision in _TYPES)


def untouched_random(device: torch.device) -> AbstractContextManager[None]:
    """Return the context that puts the generators of the CPU and of `device` back at the end."""
    devices = [] if device.type == "cpu" else [device.index or 0]
    return torch.random.fork_rng(devices, device_type=device.type)


def single_tensor(output: object) -> Tensor:
    """Return the one tensor of a network's output.

    Raises:
        DataError: A dictionary, tuple or list that does not hold exactly one tensor.
    """
    if isinstance(output, Tensor):
        return output
    held = output.values() if isinstance(output, Mapping) else output
    tensors = [value for value in held if isinstance(value, Tensor)] if isinstance(held, Iterable) else []
    if len(tensors) != 1:
        raise DataError(
            f"the network returns a {type(output).__name__} with {len(tensors)} tensors; "
            "training needs exactly one: wrap the network and return its class scores"
        )
    return tensors[0]

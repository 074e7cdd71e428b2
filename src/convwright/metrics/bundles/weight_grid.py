"""The grid on which an update of the weights still sees a difference between two activations.

A step of gradient descent adds ``learning_rate / batch_size * signal * activation`` to a weight. The weight is a
floating-point number: what is below half of its spacing is lost. Two activations that give the same updated weight
are one to the network, however exactly they were computed. Peer, Stabinger and Rodríguez-Sánchez measure this
("Conflicting Bundles", WACV 2021, arXiv 2011.02956; "Auto-tuning of Deep Neural Networks by Conflicting Layer
Removal", arXiv 2103.04331) with a signal of 1 and one weight amplitude w*: the updated weight
``w* - activation * learning_rate / batch_size`` stands for the activation. The formulas here are those of their
published code; the forms for other dtypes are reconstructed.
"""

from __future__ import annotations

import ctypes
import math
import operator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from convwright.errors import ConvwrightError, did_you_mean

Mode = Literal["published", "dtype", "exact"]
_MASTERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class WeightGrid:
    """When two activations count as equal.

    Attributes:
        learning_rate: of training; None in exact mode.
        batch_size: of training, whatever the batches of the measurement; None in exact mode.
        amplitude: w*, the largest absolute weight; None in exact mode.
        mode: ``published`` rounds in float32, operation by operation, as the published code does; ``dtype`` computes
            in float64 and rounds to ``dtype``; ``exact`` compares the activations themselves.
        dtype: of the weights that the optimizer updates, in mode ``dtype``: float32 for mixed precision with
            float32 masters. Published mode is float32.

    Raises:
        ConvwrightError: a setting is missing, negative, not finite, or does not fit the mode.
    """

    learning_rate: float | None = None
    batch_size: int | None = None
    amplitude: float | None = None
    mode: Mode = "published"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            modes = get_args(Mode)
            raise ConvwrightError(
                f"mode={self.mode!r} is unknown.{did_you_mean(str(self.mode), modes)} Give one of {', '.join(modes)}"
            )
        if self.mode == "dtype" and self.dtype not in _MASTERS:
            raise ConvwrightError(
                f"dtype={self.dtype} is not a dtype of weights: mode='dtype' needs that of the weights which the "
                "optimizer updates, torch.float16, bfloat16, float32 or float64"
            )
        if self.mode != "dtype" and self.dtype is not None:
            raise ConvwrightError(f"dtype={self.dtype} has no meaning in mode={self.mode!r}: give mode='dtype' with it")
        if self.mode != "exact":
            object.__setattr__(self, "learning_rate", _rate(self.learning_rate))
            object.__setattr__(self, "batch_size", _batch_size(self.batch_size))
            object.__setattr__(self, "amplitude", _amplitude(self.amplitude))

    @torch.no_grad()
    def __call__(self, activations: Tensor) -> Tensor:
        """Return what the weights see of activations: equal numbers are one to them.

        Args:
            activations: any shape, real, on any device; they stay there.

        Returns:
            The same shape: float32 or float64, integers in exact mode where the activations are. Never -0.0, so that
            equal numbers have equal bits, NaN aside.
        """
        if self.mode == "exact":
            return _own_values(activations)
        rate, size, amplitude = self._settings()
        if self.mode == "published":
            # Python numbers that float32 holds exactly: no device can round them otherwise. Each operation is a
            # kernel of its own; fused into a multiply-add, the last bit could differ.
            scaled = activations.to(torch.float32) * _float32(rate)
            scaled *= _float32(1 / size)
            return _float32(amplitude) - scaled + 0.0
        # Through float32 to the half types: rounded to them from float64 directly, two numbers of one float32 could
        # become two, and a coarser dtype would have more bundles.
        seen = amplitude - activations.to(torch.float64) * rate / size
        seen = seen if self.dtype == torch.float64 else seen.to(torch.float32).to(self.dtype).to(torch.float32)
        return seen + 0.0

    def _settings(self) -> tuple[float, int, float]:
        assert self.learning_rate is not None
        assert self.batch_size is not None
        assert self.amplitude is not None
        amplitude = self.amplitude if math.isfinite(self.amplitude) else math.nan  # weights have diverged: no value
        return self.learning_rate, self.batch_size, amplitude


def _own_values(activations: Tensor) -> Tensor:
    if activations.dtype in (torch.float32, torch.float64):
        return activations + 0.0
    if activations.is_floating_point():
        return activations.to(torch.float32) + 0.0
    small = activations.dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)
    return activations.to(torch.int32 if small else torch.int64)


def _float32(number: float) -> float:
    return ctypes.c_float(number).value  # to nearest, infinite beyond the largest


def _number(value: object, name: str, what: str) -> float:
    if isinstance(value, (bool, str, complex)) or value is None:
        raise ConvwrightError(f"{name}={value!r}: give {what}; only mode='exact' does without")
    try:
        return float(value)  # type: ignore[arg-type]  # numpy numbers, tensors of one element
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConvwrightError(f"{name}={value!r} is not a number: give {what}") from error


def _rate(value: object) -> float:
    rate = _number(value, "learning_rate", "the learning rate of training, a number >= 0")
    if not (rate >= 0 and math.isfinite(_float32(rate))):
        raise ConvwrightError(f"learning_rate={rate} must be finite and not negative")
    return rate


def _batch_size(value: object) -> int:
    try:
        size = operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise ConvwrightError(f"batch_size={value!r}: give the training's batch size, an integer >= 1") from error
    if size < 1 or isinstance(value, bool):
        raise ConvwrightError(f"batch_size={value!r} must be an integer >= 1: the training's batch size")
    return size


def _amplitude(value: object) -> float:
    amplitude = _number(value, "amplitude", "the largest absolute weight, as weight_amplitude(model) returns it")
    if amplitude < 0:
        raise ConvwrightError(
            f"amplitude={amplitude} is negative, but it is a largest absolute value: give weight_amplitude(model)"
        )
    return amplitude


@torch.no_grad()
def weight_amplitude(model: nn.Module) -> float:
    """Return w*, the largest absolute value of the trainable parameters.

    Biases, the scales and shifts of norms and the classifier included: so does the published code. With batch norm
    w* is therefore about 1 at least from the start.

    Args:
        model: a network, or a part of it.

    Returns:
        The number, 0.0 if nothing is trainable, NaN if a weight is NaN.

    Raises:
        ConvwrightError: weights have no values (they are on the meta device).
    """
    found = 0.0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or not parameter.numel():
            continue
        if parameter.is_meta:
            raise ConvwrightError(f"parameter {name!r} is on the meta device and has no values: build it with weights")
        largest = float(parameter.abs().max())
        if math.isnan(largest):
            return math.nan
        found = max(found, largest)
    return found

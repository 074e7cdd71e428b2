"""The targets of an export, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from convwright.architecture.capture.pytrees import Inputs
from convwright.architecture.rules.registry import filing
from convwright.devices import to_host
from convwright.edits.surgery import tensors_in
from convwright.errors import ConvwrightError
from convwright.export.opened import Exportable
from convwright.training.evaluate import eval_mode

if TYPE_CHECKING:
    from convwright.export.quantize import Quantized

BATCHES = (1, 3)  # sizes of the batches that an export is checked with


class ExportError(ConvwrightError):
    """A network could not be exported, or what was exported does not compute the same."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        target: e.g. ``"onnx"``.
        files: the files, the main one first.
        difference: largest absolute difference of an output to the network's, on random images; None where
            nothing was computed.
        notes: what a user should know, one sentence each.
        int8: what the int8 file beside it changed; None: there is none.
    """

    target: str
    files: tuple[Path, ...]
    difference: float | None = None
    notes: tuple[str, ...] = field(default=())
    int8: Quantized | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "target": self.target,
            "files": [str(file) for file in self.files],
            "max_difference": self.difference,
            "notes": list(self.notes),
            **({"int8": self.int8.as_dict()} if self.int8 is not None else {}),
        }


Target = Callable[[Exportable, Path], Exported]
TARGETS: dict[str, Target] = {}
target = filing(TARGETS)


def scale(model: nn.Module, example: Tensor) -> float:
    """Return what a difference is a share of: the largest output for the images that `difference` tries, at least 1."""
    found = [tensor for outputs in _tried(model, model, example, BATCHES) for tensor in outputs[0] if tensor.numel()]
    return max([1.0, *(float(t.abs().nan_to_num(0, 0, 0).max()) for t in found)])


def difference(
    model: nn.Module, other: Callable[..., Any], example: Tensor | Inputs, batches: Sequence[int] = BATCHES
) -> float:
    """Return the largest absolute difference between a network's outputs and another's, over several batch sizes.

    Args:
        model: the network; it is judged in eval mode.
        other: what was exported, called as the network is.
        example: the network's example input; random ones like it are tried.
        batches: sizes of the batches.
    """
    worst = 0.0
    for wanted, found in _tried(model, other, example, batches):
        if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
            return float("inf")
        for one, two in zip(wanted, found, strict=True):
            gaps = (one - two).abs().masked_fill((one == two) | (one.isnan() & two.isnan()), 0).nan_to_num(math.inf)
            worst = max(worst, gaps.max().item() if gaps.numel() else 0.0)
    return worst


def _tried(
    model: nn.Module, other: Callable[..., Any], example: Tensor | Inputs, batches: Sequence[int]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    with eval_mode(model), torch.no_grad():
        for count in batches:
            batch = Inputs((example[:1].repeat_interleave(count, 0),)) if isinstance(example, Tensor) else example
            drawn = batch.random(count)
            yield _flat(drawn.map(Tensor.clone).call(model)), _flat(drawn.map(Tensor.clone).call(other))


def differs(gap: float) -> str:
    """Say how far what was exported is from the network."""
    if gap < math.inf:
        return f"differs from the network by {gap:.1e}"
    return "gives NaN or other shapes: the network takes other steps for other batch sizes, or computes NaN"


def _flat(output: object) -> list[Tensor]:
    found = (torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors_in(output))
    return [to_host(tensor).double() for tensor in found]

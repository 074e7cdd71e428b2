"""Resolution: the same weights at another input size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from convwright.architecture import Architecture
from convwright.architecture.capture.capture import capture
from convwright.edits.constraints import why_resolution_stays
from convwright.edits.edit import Edit, Measured, Options, Outcome, carries_out, one_sample, whole_numbers
from convwright.edits.fake_run import TrialNetwork
from convwright.edits.structure import Structure
from convwright.edits.surgery import named_tensors
from convwright.errors import EditError, ReadError

_LARGEST = 16_384  # pixels per side: beyond, one image fills a machine


@dataclass(frozen=True)
class Resolution(Edit):
    """Run the network on larger or smaller images. The weights stay as they are.

    Attributes:
        size: the new height and width, as one number or two (one number per axis for other inputs).

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:resnet20")
        >>> new = arch.apply(cw.Resolution(24))
        >>> tuple(new.example_input.shape), new.profile().params == arch.profile().params
        ((1, 3, 24, 24), True)
    """

    kind: ClassVar[str] = "resolution"

    size: int | Sequence[int]


@carries_out(Resolution)
def carry_out(architecture: Architecture, edits: Sequence[Resolution], options: Options) -> Outcome:
    """Read a copy of the model at the last of the sizes."""
    inputs = [_input(architecture, edit) for edit in edits]
    example = inputs[-1]
    if failure := TrialNetwork.of(architecture).failure_at(example):
        raise EditError(
            f"the network does not take inputs of {one_sample(example.shape)}: {failure}. A layer behind "
            "a flatten, or a table of positions, fixes the size; put global pooling before it to free it."
        )
    try:
        ran = capture(architecture.model, example, architecture.captured)
    except ReadError as error:
        raise EditError(f"the network does not take inputs of {one_sample(example.shape)}. {error}") from error
    found = replace(Structure(()).outcome(architecture, edits, None, ()), example_input=example, capture=ran)
    if not options.verify:
        return found
    # The edit's promise: every tensor is the same, bit for bit.
    new = named_tensors(found.model)
    same = all(torch.equal(tensor, new[name]) for name, tensor in named_tensors(architecture.model).items())
    return replace(found, max_difference=Measured(0.0 if same else math.inf))


def _input(architecture: Architecture, edit: Resolution) -> Tensor:
    example = architecture.example_input
    if stays := why_resolution_stays(architecture):
        raise EditError(f"the resolution cannot change: {stays}.")
    sizes = whole_numbers(edit.size, example.ndim - 2, "the resolution")
    if max(sizes) > _LARGEST:
        raise EditError(f"a resolution of {max(sizes)} is more than {_LARGEST} per side.")
    return torch.zeros(*example.shape[:2], *sizes, dtype=example.dtype, device=example.device)

"""Blocks and stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convwright.architecture.architecture import Architecture


@dataclass(frozen=True)
class Block:
    """A unit that depth edits add or remove.

    Attributes:
        name: the module that holds it, e.g. ``layer1.0``.
        kind: ``"residual"`` (input added to a branch) or ``"plain"``.
        layers: names of its layers, in execution order.
        input_shape: shape of what enters.
        output_shape: shape of what leaves.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @property
    def keeps_shape(self) -> bool:
        """Whether the output has the input's shape, so that the block could be skipped."""
        return self.input_shape == self.output_shape


@dataclass(frozen=True)
class Stage:
    """A run of layers at one spatial size.

    Attributes:
        name: ``stage1``, ``stage2``, ... from input to output.
        size: spatial size of its layers' outputs, e.g. (56, 56).
        layers: names of its layers, in execution order.
        blocks: names of the blocks whose output has this size.
    """

    name: str
    size: tuple[int, ...]
    layers: tuple[str, ...]
    blocks: tuple[str, ...]


def find_blocks(architecture: Architecture) -> tuple[Block, ...]:
    """Find residual blocks and repeated units."""
    return ()


def find_stages(architecture: Architecture) -> tuple[Stage, ...]:
    """Group the layers by spatial size."""
    return ()

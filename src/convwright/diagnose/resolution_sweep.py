"""The same network at other resolutions: which layers see nothing new there. Each resolution is read anew.

Reading is what makes the answer exact: stages, adaptive pools and what is global depend on the size of the image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from convwright.architecture import Architecture, read
from convwright.errors import ReadError, whole_number
from convwright.metrics import LayerField, ReceptiveField, receptive_field

FLAG = "--input-range"
# What this call says already of a resolution that cannot be read: the network, the size, the flag.
_SAID = r"^.* does not run on an input of shape [\dx]+: (\w+Error: )?| Give the input shape .*$"
_MOST = 64  # resolutions of one call: each takes about a second to read
_LARGEST = 16_384  # pixels per side, as for the edit of the resolution
_EXAMPLES = "32:224:32 (start:stop:step, the stop included if it is hit) or 32,64,128"


@dataclass(frozen=True)
class AtResolution:
    """A network at one resolution.

    Attributes:
        side: rows and columns of the image.
        macs: of the network, for one sample; 0 if it was refused.
        field: its receptive fields; ``None`` if it was refused.
        refused: why the network does not take this resolution; empty if it does.
    """

    side: int
    macs: int = 0
    field: ReceptiveField | None = None
    refused: str = ""

    @property
    def wasted(self) -> tuple[LayerField, ...]:
        """The layers whose kernels see nothing new."""
        return () if self.field is None else self.field.wasted

    @property
    def wasted_share(self) -> float:
        """Share of the MACs in layers whose kernels see nothing new."""
        return sum(each.macs for each in self.wasted) / max(self.macs, 1)


def parse_sides(text: str | None) -> tuple[int, ...]:
    """Return resolutions from ``start:stop:step`` or ``32,64,128``, ascending, each once; none for ``None``.

    Raises:
        ReadError: it is neither; the message names the flag and gives a correct example.
    """
    if text is None:
        return ()
    parts = [part.strip() for part in re.split(r"[:,]", text)]
    wrong = next((part for part in parts if not 0 < (whole_number(part) or 0) <= _LARGEST), None)
    if wrong is not None:
        what = f"{wrong!r} is no whole number from 1 to {_LARGEST}"
    elif ":" not in text:
        return _not_too_many(text, sorted({int(part) for part in parts}))
    elif "," in text or len(parts) != 3:
        what = "a range has three parts"
    elif int(parts[0]) > int(parts[1]):
        what = f"it starts at {parts[0]}, behind its stop {parts[1]}"
    else:
        start, stop, step = map(int, parts)
        return _not_too_many(text, range(start, stop + 1, step))
    raise ReadError(f"{FLAG} {text!r}: {what}; write it like {_EXAMPLES}.")


def _not_too_many(text: str, sides: Sequence[int]) -> tuple[int, ...]:
    if len(sides) > _MOST:
        raise ReadError(
            f"{FLAG} {text!r}: these are {len(sides)} resolutions, and each is read anew; "
            f"give at most {_MOST}, like {_EXAMPLES}."
        )
    return tuple(sides)


def sweep(arch: Architecture, sides: Sequence[int]) -> tuple[AtResolution, ...]:
    """Judge a network at other resolutions, one after the other.

    Args:
        arch: the network.
        sides: rows and columns of the (square) images.

    Returns:
        One entry per side, in their order; those that the network does not take say why.
    """
    return tuple(_at(arch, side) for side in sides)


def _at(arch: Architecture, side: int) -> AtResolution:
    example = arch.example_input
    shape = (*example.shape[:2], *(side,) * (example.ndim - 2))
    try:
        there = arch if shape == tuple(example.shape) else read(arch.model, shape)
    except ReadError as error:
        return AtResolution(side, refused=re.sub(_SAID, "", str(error)))
    return AtResolution(side, there.profile().macs, receptive_field(there))

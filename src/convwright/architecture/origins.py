"""Where the tensors of an edited network come from in the network that was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from convwright.architecture.channels import Axis, Ints


@dataclass(frozen=True, eq=False)
class Origins:
    """The origin of every parameter and buffer in the network as it was read (its plan empty).

    Attributes:
        entries: (tensor, axis) -> for each entry of the axis its index on that axis of the original, -1 where it has
            none (the rim of a larger kernel); axes that are as they were are left out.
        names: tensor -> its name in the original, where that is another; empty for tensors that an edit brought in.
    """

    entries: Mapping[Axis, Ints] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

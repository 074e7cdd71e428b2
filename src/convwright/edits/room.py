"""Refuse edits whose result cannot fit into this machine, before anything is made."""

from __future__ import annotations

import os

from convwright.errors import EditError

MOST_CHANNELS = 2**20  # of one group; beyond, the analysis itself would need gigabytes


def check_room(before: int, after: int, verify: bool, what: str) -> None:
    """Refuse weights that are larger than the machine's memory.

    Args:
        before: bytes of the network's parameters and buffers as it is.
        after: bytes after the edit.
        verify: whether both are measured side by side in float64, which takes twice as much of each again.
        what: the edit, for the message.

    Raises:
        EditError: if they do not fit.
    """
    memory = _memory()
    needed = before + after + (2 * (before + after) if verify else 0)
    if memory is not None and after > before and needed > memory:
        hint = "; verify=False needs a third" if verify else ""
        raise EditError(
            f"{what} would need {needed / 2**30:,.1f} GiB for weights{hint}; "
            f"this machine has {memory / 2**30:,.1f} GiB of memory."
        )


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return None

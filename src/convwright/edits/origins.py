"""Where the channels of an edited network come from in the network that was read, composed over all edits.

What a repair or a distillation compares needs no projection then: the features of the smaller network are some of the
channels of the original.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from convwright.architecture import Architecture
from convwright.architecture.channels import Axis, Ints, Origins
from convwright.architecture.labels import Value
from convwright.edits.edit import Outcome
from convwright.edits.remap import places
from convwright.edits.surgery import named_tensors
from convwright.errors import EditError

NONE = -1  # an entry that the original has not


def followed(before: Architecture, outcome: Outcome) -> Origins:
    """Return the origins of a network after a run of edits."""
    known: dict[int, list[str]] = {}
    for name, tensor in named_tensors(before.model).items():
        known.setdefault(id(tensor), []).append(name)
    behind = {id(moved.new): known[key] for key, moved in outcome.moved.items() if key in known}
    entries: dict[Axis, Ints] = {}
    names: dict[str, str] = {}
    for name, tensor in named_tensors(outcome.model).items():
        aliases = behind.get(id(tensor), [])
        old = name if name in aliases else next(iter(aliases), "")
        first = before.origins.names.get(old, old)
        if first != name:
            names[name] = first
        for axis in range(tensor.ndim) if first else ():
            taken = (outcome.takes[alias, axis] for alias in aliases if (alias, axis) in outcome.takes)
            index, take = before.origins.entries.get((old, axis)), next(taken, None)
            if take is not None:  # composed with what was taken before
                index = take if index is None else np.where(take == NONE, NONE, index[take])
            if index is not None:
                entries[name, axis] = index
    return Origins(entries, names)


def origin_of(architecture: Architecture, tensor: str) -> str:
    """Return the name that a parameter or buffer has in the original; empty if an edit brought it in."""
    return architecture.origins.names.get(tensor, tensor)


def kept_entries(architecture: Architecture, tensor: str, axis: int) -> Ints:
    """Return which entries of an axis of the original a parameter or buffer has.

    Args:
        architecture: An edited network.
        tensor: Name of a parameter or buffer in it.
        axis: One of its axes.

    Returns:
        For each entry of the axis its index in the network as it was read; -1 where it has none there.

    Raises:
        EditError: There is no such tensor or axis.

    Examples:
        >>> import convwright as cw
        >>> from convwright.edits import kept_entries
        >>> arch = cw.read("zoo:resnet20")
        >>> edit = cw.Width("layer1.0.conv1", 3, keep={"layer1.0.conv1": [1, 5, 7]})
        >>> kept_entries(arch.apply(edit), "layer1.0.bn1.weight", 0).tolist()
        [1, 5, 7]
    """
    found: Tensor | None = named_tensors(architecture.model).get(tensor)
    if found is None or not 0 <= axis < found.ndim:
        raise EditError(f"{architecture.source} has no parameter or buffer {tensor} with an axis {axis}.")
    if not origin_of(architecture, tensor):
        return np.full(found.shape[axis], NONE)
    known = architecture.origins.entries.get((tensor, axis))
    return np.arange(found.shape[axis]) if known is None else known


def kept_channels(original: Architecture, edited: Architecture, name: str, of: str | None = None) -> Ints:
    """Return which channels of an output of the original are the channels of the same output after edits.

    Args:
        original: The network as it was read.
        edited: What edits made of it.
        name: A layer of the edited network, or a block.
        of: The layer or block of the original; the one of the same name by default.

    Returns:
        For each channel of the edited network's output its place in the original's; -1 where it is not there.

    Raises:
        EditError: There is no such layer or block, or its output has no channels.

    Examples:
        >>> import convwright as cw
        >>> from convwright.edits import kept_channels
        >>> arch = cw.read("zoo:resnet20")
        >>> edit = cw.Width("layer2.0.conv2", 3, keep={"layer2.0.conv2": [1, 5, 7]})
        >>> kept_channels(arch, arch.apply(edit), "layer2.1").tolist()
        [1, 5, 7]
    """
    line, before = _line(edited, name), _line(original, name if of is None else of)
    old = original.channels.threads
    was = np.full(int(edited.channels.threads.max(initial=-1)) + 1, NONE)
    for (tensor, axis), labels in edited.channels.follower.atoms.items():
        atoms = original.channels.follower.atoms.get((origin_of(edited, tensor), axis))
        if atoms is None:
            continue
        entries = kept_entries(edited, tensor, axis)
        source = np.where(entries == NONE, NONE, old[atoms.numpy()[entries]])
        here = np.isin(source, before)  # a block that went had other channels at its ends
        was[edited.channels.threads[labels.numpy()[here]]] = source[here]
    kept = np.full(len(line), NONE)
    known = was[line] != NONE
    kept[known] = places(before, was[line[known]], line[known])
    return kept


def _line(architecture: Architecture, name: str) -> Ints:
    """Return what runs along the channel axis of an output: one number for what is the same channel everywhere."""
    layer = next((layer for layer in architecture.layers if layer.name == name), None)
    value = architecture.channels.follower.values[layer.node if layer else architecture.block(name).exit]
    planes = value.planes if isinstance(value, Value) else ()
    found = next((plane.line().numpy() for plane in planes if len(plane.axes) == 1), None)
    if found is None:
        raise EditError(f"{name} of {architecture.source} has an output without channels.")
    threads: Ints = architecture.channels.threads[found]
    return threads

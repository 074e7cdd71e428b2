"""Which values are in memory when: liveness over the captured graph.

A storage is live from the node that makes it to its last user, through whatever view or in-place result. The
network's input counts, weights do not. Views share storage with their base and cost nothing; whether a reshape
is a view or a copy is not guessed but read from the captured tensors.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from convwright.architecture.capture.exported import Capture


@dataclass(frozen=True)
class TensorStorage:
    """One piece of memory.

    Attributes:
        node: name of the node that makes it.
        output: which of that node's results, ``None`` where it has only one.
        shape: shape of that result.
        itemsize: bytes per element.
        born: position of that node in the graph.
        dies: position of its last user.
    """

    node: str
    output: int | None
    shape: tuple[int, ...]
    itemsize: int
    born: int
    dies: int


def storages(capture: Capture) -> tuple[TensorStorage, ...]:
    """List the storages of the activations in the order in which they are made."""
    weights = {_key(t) for n in capture.graph.nodes if n.name in capture.tensors for _, t in _tensors(n)}
    made: dict[int, tuple[fx.Node, int | None, Tensor, int]] = {}
    last: dict[int, int] = {}
    for position, node in enumerate(capture.graph.nodes):
        for output, tensor in _tensors(node):
            key = _key(tensor)
            if key not in weights:
                made.setdefault(key, (node, output, tensor, position))
                last[key] = position
        if node.target is operator.getitem:  # picking one of several results uses no other
            continue
        for used in node.all_input_nodes:
            last.update((_key(t), position) for _, t in _tensors(used))
    return tuple(
        TensorStorage(node.name, output, tuple(t.shape), t.element_size(), born, last[key])
        for key, (node, output, t, born) in made.items()
    )


def done_once(capture: Capture) -> frozenset[str]:
    """Return the nodes whose values do not depend on the input: they are made once per batch."""
    dependent: set[str] = set(capture.inputs)
    for node in capture.graph.nodes:
        if any(n.name in dependent for n in node.all_input_nodes):
            dependent.add(node.name)
    return frozenset(n.name for n in capture.graph.nodes) - dependent


def live_at_births(found: tuple[TensorStorage, ...]) -> list[list[int]]:
    """Return, for each moment at which memory is taken, the indices of the live storages.

    Between two births memory only falls, so the peak is at one of them.
    """
    moments = sorted({s.born for s in found})
    return [[i for i, s in enumerate(found) if s.born <= t <= s.dies] for t in moments]


def _tensors(node: fx.Node) -> list[tuple[int | None, Tensor]]:
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return [(None, value)]
    if isinstance(value, tuple | list):
        return [(i, v) for i, v in enumerate(value) if isinstance(v, Tensor)]
    return []


def _key(tensor: Tensor) -> int:
    """Identify a storage; the graph keeps its tensors alive, so the address is not used again."""
    storage: torch.UntypedStorage = tensor.untyped_storage()
    return int(storage._cdata)

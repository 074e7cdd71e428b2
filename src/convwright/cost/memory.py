"""Which values are in memory when: at least, by liveness over the captured graph, and in eager PyTorch.

A storage is live from the node that makes it to its last user, through whatever view or in-place result. The
network's input counts, weights do not. Views share storage with their base and cost nothing; whether a reshape
is a view or a copy is not guessed but read from the captured tensors.

Eager PyTorch keeps more: the caller holds the images, and a variable of ``forward`` holds its value until it is
assigned anew or the function returns. So the network's own code is executed, on fake tensors, which take no memory.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convwright.architecture.capture.graph import Capture, first_line, in_mode
from convwright.architecture.capture.pytrees import Inputs
from convwright.errors import ReadError


@dataclass(frozen=True)
class TensorStorage:
    """One piece of memory.

    Attributes:
        node: name of the node that makes it, or makes one as large; "" if no node does.
        output: which of that node's results, ``None`` where it has only one.
        shape: shape of that result.
        itemsize: bytes per element.
        born: position of that node in the graph, or of the operator in the execution.
        dies: position of its last user, or of the last operator after which it is still held.
    """

    node: str
    output: int | None
    shape: tuple[int, ...]
    itemsize: int
    born: int
    dies: int


def storages(capture: Capture) -> tuple[TensorStorage, ...]:
    """List the storages of the activations in the order in which they are made."""
    weights = {storage_key(t) for n in capture.graph.nodes if n.name in capture.tensors for _, t in _tensors(n)}
    made: dict[int, tuple[fx.Node, int | None, Tensor, int]] = {}
    last: dict[int, int] = {}
    for position, node in enumerate(capture.graph.nodes):
        for output, tensor in _tensors(node):
            key = storage_key(tensor)
            if key not in weights:
                made.setdefault(key, (node, output, tensor, position))
                last[key] = position
        if node.target is operator.getitem:  # picking one of several results uses no other
            continue
        for used in node.all_input_nodes:
            last.update((storage_key(t), position) for _, t in _tensors(used))
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


class EagerStorages(TorchDispatchMode):
    """Observes which storages are held while a network is executed: all that are made, and what is given to `hold`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.found: list[TensorStorage] = []
        self._held: dict[int, tuple[Any, int]] = {}

    def hold(self, tensor: Tensor) -> None:
        """Note a storage that is held from now on."""
        key = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        if key.cdata not in self._held and (size := tensor.untyped_storage().nbytes()):
            whole = size == tensor.numel() * tensor.element_size()
            shape, itemsize = (tuple(tensor.shape), tensor.element_size()) if whole else ((size,), 1)
            self._held[key.cdata] = key, len(self.found)
            self.found.append(TensorStorage("", None, shape, itemsize, self.now, self.now))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute an operator, and note which storages are held after it."""
        results = func(*args, **(kwargs or {}))
        self.now += 1
        held = {key: pair for key, pair in self._held.items() if not pair[0].expired()}
        self._held = held
        returns = results if isinstance(results, (list, tuple)) else [results]
        if not any(returned.alias_info for returned in func._schema.returns):  # else a view, or changed in place
            for tensor in tree_leaves(returns):
                if isinstance(tensor, Tensor):
                    self.hold(tensor)
        for _, at in self._held.values():
            self.found[at] = replace(self.found[at], dies=self.now)
        return results


def eager_storages(model: nn.Module, inputs: Inputs, capture: Capture) -> tuple[TensorStorage, ...]:
    """List the storages of an eager forward pass without gradients, in the order in which they are made.

    Nothing is computed and no memory taken: the network's code is executed on fake tensors; on real ones where that
    fails, as with a detector, whose code depends on values. What the network keeps on itself is kept on a copy that
    shares the weights.

    Raises:
        ReadError: the network cannot be copied or executed.
    """
    shared = [leaf for module in model.modules() for leaf in tree_leaves(vars(module)) if isinstance(leaf, Tensor)]
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    for mode, change in ((fake, fake.from_tensor), (nullcontext(), Tensor.detach)):
        observed, failed = EagerStorages(), None
        try:
            twin = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
            with in_mode(twin, training=False), torch.no_grad(), mode, observed:
                images = inputs.map(change)
                for tensor in images.tensors:
                    observed.hold(tensor)
                images.call(twin)
                break
        except Exception as error:  # the network's own code may raise anything
            failed = error
    if failed is not None:
        raise ReadError(
            f"what eager PyTorch holds of {type(model).__name__} cannot be found: {first_line(failed)} "
            "It takes a network that can be copied and executed."
        ) from failed
    return _with_nodes(observed.found, storages(capture))


def _with_nodes(found: Sequence[TensorStorage], known: Sequence[TensorStorage]) -> tuple[TensorStorage, ...]:
    """Name the graph's nodes that make storages: both list them in the order of execution.

    What an operator makes for itself, such as the places of maxima, is as large as a value nearby: it gets that one's.
    """
    one, two = ([(s.shape, s.itemsize) for s in listed] for listed in (found, known))
    nodes: dict[int, TensorStorage] = {}
    for a, b, count in SequenceMatcher(None, one, two, autojunk=False).get_matching_blocks():
        nodes.update((a + i, known[b + i]) for i in range(count))
    named = []
    for at, storage in enumerate(found):
        alike = [at] if at in nodes else [i for i in nodes if math.prod(found[i].shape) == math.prod(storage.shape)]
        near = min(alike, key=lambda i: abs(found[i].born - storage.born), default=None)
        named.append(storage if near is None else replace(storage, node=nodes[near].node, output=nodes[near].output))
    return tuple(named)


def peak_bytes(found: tuple[TensorStorage, ...], once: frozenset[str], batch: int) -> int:
    """Return the most bytes per sample that are live at one moment; results of weights are there once per batch."""
    sizes = [(batch if s.node in once else 1) * math.prod(s.shape) * s.itemsize for s in found]
    return max((sum(sizes[i] for i in live) for live in live_at_births(found)), default=0) // batch


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


def storage_key(tensor: Tensor) -> int:
    """Identify a storage; the graph keeps its tensors alive, so the address is not used again."""
    storage: torch.UntypedStorage = tensor.untyped_storage()
    return int(storage._cdata)

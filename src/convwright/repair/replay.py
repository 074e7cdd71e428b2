"""A network that is run on the same batches again and again, each time a little further, computing only what is new."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from convwright.architecture.capture.pytrees import rows_of, samples_in
from convwright.edits.surgery import named_tensors
from convwright.repair.consumers import Forward, LayerCall, layer_arguments, watched

HELD = 2**30  # bytes of activations that are kept for the next pass

Calls = Mapping[str, Sequence[LayerCall]]


class Replay:
    """Runs a network up to some layers, pass after pass further, where weights change only behind what is done.

    What a pass computes before its first wanted layer the next one returns as it was: of that, the tensors that a later
    call reads are kept, and of the others their shapes. Calls are told apart by their number. Where that goes wrong on
    the first batch, as with a network whose calls torch does not show, or where a pass makes other calls, as with a
    network that remembers what it made for images of a size, all is computed every time.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], forward: Forward | None, wanted: Mapping[str, int]
    ) -> None:
        """Note what is run.

        Args:
            model: The network, in eval mode.
            batches: What it is run on.
            forward: How; None: ``model(batch)``.
            wanted: The weights of all layers that will be asked for, and how often each is called.
        """
        self.model, self.batches, self.forward = model, batches, forward
        self.trace: _Trace | None = None
        self.room = HELD / sum(map(samples_in, batches))
        self.done: dict[int, _Pass] = {}
        if isinstance(batches[0], list):  # calls for each image: their numbers depend on how many images there are
            return
        two = rows_of(batches[0], slice(2))
        self.trace = _Trace(model, wanted)
        watched(model, wanted, two, forward, self.trace)
        self.trace.finish(samples_in(two))

    def watched(self, number: int, wanted: Mapping[str, int]) -> Calls:
        """Return the calls of some weights on a batch, as the function of the same name does."""
        plain = self.model, wanted, self.batches[number], self.forward
        if self.trace is None:
            return watched(*plain)
        until, before = min(self.trace.first[name] for name in wanted), self.done.get(number)
        this = _Pass(self.trace, until if self.trace.held(until) <= self.room else 0, before)
        try:
            found = watched(*plain, this)
        except _OtherCallsError:
            self.trace = None
            self.done.clear()
            return watched(*plain)
        if number == 0 and not _same(found, checked := watched(*plain)):
            self.trace = None
            self.done.clear()
            return checked
        if this.until:
            self.done[number] = this
        return found


def _same(one: Calls, two: Calls) -> bool:
    """Whether calls saw and answered the same."""
    pairs = [(a, b) for name in two for a, b in zip(one[name], two[name], strict=False)]
    whole = all(len(one[name]) == len(two[name]) for name in two)
    return whole and all(torch.equal(a.x, b.x) and torch.equal(a.output, b.output) for a, b in pairs)


class _OtherCallsError(Exception):
    """A pass makes other calls than the first one did."""


class _Leaf(NamedTuple):
    """A tensor that a pass makes: by which call of a torch function, and which of its results it is."""

    call: int
    place: int


class _Trace(TorchFunctionMode):
    """Notes of a pass which call reads a tensor last, and which tensors are changed in place."""

    def __init__(self, model: nn.Module, wanted: Mapping[str, int]) -> None:
        super().__init__()
        tensors = named_tensors(model)
        self.names = {id(tensors[name]): name for name in wanted}
        self.call = -1
        self.functions: list[Any] = []
        self.first: dict[str, int] = {}
        self.last: dict[_Leaf, int] = {}
        self.bytes: dict[_Leaf, float] = {}
        self.changed: set[_Leaf] = set()
        self.dies: dict[int, list[_Leaf]] = defaultdict(list)
        self._made: dict[int, tuple[_Leaf, Tensor]] = {}  # the tensors, too: else an identity is used again

    def finish(self, images: int) -> None:
        """Let the tensors of a pass on so many images go."""
        self._made.clear()
        self.bytes = {leaf: size / images for leaf, size in self.bytes.items()}
        for leaf, call in self.last.items():
            self.dies[call].append(leaf)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.call += 1
        self.functions.append(func)
        if (name := self.names.get(id(layer_arguments(func, args, kwargs).get("weight")))) is not None:
            self.first.setdefault(name, self.call)
        read = [x for x in pytree.tree_leaves((args, kwargs)) if id(x) in self._made]
        versions = [x._version for x in read]
        result = func(*args, **(kwargs or {}))
        for x, version in zip(read, versions, strict=True):
            leaf, _ = self._made[id(x)]
            self.last[leaf] = self.call
            if x._version != version:
                self.changed.add(leaf)
        for place, x in enumerate(pytree.tree_leaves(result)):
            if isinstance(x, Tensor) and id(x) not in self._made:
                leaf = _Leaf(self.call, place)
                self._made[id(x)] = leaf, x
                self.last[leaf], self.bytes[leaf] = self.call, x.nbytes
        return result

    def held(self, until: int) -> float:
        """Return the bytes per image that a call or a later one reads of what is made before it."""
        return sum(self.bytes[leaf] for leaf, last in self.last.items() if leaf.call < until <= last)


class _Pass(TorchFunctionMode):
    """A pass that begins with the results of an earlier one, and keeps its own up to a call."""

    def __init__(self, trace: _Trace, until: int, before: _Pass | None) -> None:
        super().__init__()
        self.trace, self.until, self.call = trace, until, -1
        self.results: list[tuple[list[Any], Any]] = list(before.results) if before else []
        self.kept: dict[_Leaf, Tensor] = before.kept if before else {}
        self.given = len(self.results)
        self.now: dict[_Leaf, Tensor] = {}
        self.leaves: dict[int, _Leaf] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.call += 1
        if self.trace.functions[self.call : self.call + 1] != [func]:
            raise _OtherCallsError
        if self.call < self.given:
            values, form = self.results[self.call]
            return pytree.tree_unflatten([self._again(x) if isinstance(x, _Leaf) else x for x in values], form)
        if self.call == self.until:
            self.kept = {leaf: self._own(leaf, tensor) for leaf, tensor in self.now.items()}
        result = func(*args, **(kwargs or {}))
        if self.call < self.until:
            self._note(result)
        return result

    def _note(self, result: Any) -> None:
        """Keep what a call returned, and let go what no later one reads."""
        values, form = pytree.tree_flatten(result)
        for place, x in enumerate(values):
            if isinstance(x, Tensor):
                values[place] = leaf = self.leaves.setdefault(id(x), _Leaf(self.call, place))
                self.now.setdefault(leaf, x)
        self.results.append((values, form))
        for leaf in self.trace.dies[self.call]:
            if leaf in self.now:
                tensor = self.now[leaf]
                self.leaves.pop(id(tensor), None)
                self.now[leaf] = tensor.new_empty(()).expand(tensor.shape)

    def _again(self, leaf: _Leaf) -> Tensor:
        if leaf not in self.now:
            self.now[leaf] = tensor = self._own(leaf, self.kept[leaf])
            self.leaves[id(tensor)] = leaf
        return self.now[leaf]

    def _own(self, leaf: _Leaf, tensor: Tensor) -> Tensor:
        return tensor.clone() if leaf in self.trace.changed and 0 not in tensor.stride() else tensor

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.now, self.leaves = {}, {}

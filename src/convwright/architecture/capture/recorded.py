"""Capture a network by running it once: every operator that it executes is recorded.

Eager PyTorch does what it always does, so any Python is fine: branches on values, ``.item()``, non-maximum suppression.
In inference mode a dispatch mode sees operators before torch takes them apart, so a recording has the vocabulary of
``torch.export``.
"""

from __future__ import annotations

import operator
import random
import sys
import warnings
import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.modules.module as hooks
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from convwright.architecture.capture.graph import Capture, depends_on_values, from_torch
from convwright.architecture.capture.pytrees import Inputs, mapped, tensors_of

_Stack = dict[str, tuple[str, type]]  # as in the graphs of torch.export: path -> (path, class)


def record(model: nn.Module, inputs: Inputs, as_far_as_it_comes: bool = False, seed: int | None = None) -> Capture:
    """Run a model in the mode that it is in, and record what it executes; its buffers and random states stay.

    Args:
        model: the network.
        inputs: what it is called with.
        as_far_as_it_comes: where it raises an exception, return what it executed until then.
        seed: of the random numbers that it draws; None: those that would come next.
    """
    recorder, outputs = _Recorder(model), list[tuple[fx.Node, str]]()
    with recorder.watching(), _plainly([tensor.device for tensor in inputs.tensors], seed):
        try:
            outputs = recorder.run(model, inputs)
        except Exception:
            if not as_far_as_it_comes:
                raise
    return recorder.captured(outputs, whole=not as_far_as_it_comes)


class _Recorder(TorchDispatchMode):
    """Records the operators that a model executes as a graph.

    A value is known by the tensor object that holds it, one of a parameter also by the memory that it shares.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.graph = fx.Graph()
        self.stored: dict[str, Tensor] = {}
        self.tensors: dict[str, str] = {}
        self.inputs: list[str] = []
        self._nodes: dict[int, tuple[weakref.ref[Tensor], fx.Node]] = {}
        self._owners: dict[int, Tensor] = {}  # memory -> the parameter or buffer in it
        self._written: dict[int, tuple[Tensor, Tensor]] = {}  # parameters and buffers that are written to, as they were
        self._memories: dict[int, _Memory] = {}  # by the address of what is or was there last
        self._paths: dict[nn.Module, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self._paths.setdefault(module, []).append(path)
        self._stacks: list[_Stack] = [{}]
        self._values: list[tuple[fx.Node, Any]] = []
        for prefix, named in (("p", model.named_parameters()), ("b", model.named_buffers())):
            for name, tensor in named:
                self._store(f"{prefix}_{name.replace('.', '_').lower()}", name, tensor)
                if at := _address(tensor):
                    self._owners.setdefault(at, tensor)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Know which modules run; afterwards, what was written into parameters and buffers is undone."""
        enter = hooks.register_module_forward_pre_hook(self._enter)
        leave = hooks.register_module_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            enter.remove()
            leave.remove()
            with torch.no_grad():
                for tensor, before in self._written.values():
                    tensor.copy_(before)

    def _enter(self, module: nn.Module, args: object) -> None:
        stack, paths = self._stacks[-1], self._paths.get(module)
        if paths:  # of a shared module, the name under the module that calls it
            path = next((p for p in paths if stack and p.startswith(f"{next(reversed(stack))}.")), paths[0])
            stack = {**stack, path: (path, type(module))}
        self._stacks.append(stack)

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        self._stacks.pop()

    def run(self, model: nn.Module, inputs: Inputs) -> list[tuple[fx.Node, str]]:
        """Run the model, and return the nodes of its outputs, each with its place; one may have several."""
        if model.training:  # batch norm writes statistics, and its schema does not say so
            for buffer in model.buffers():
                self._keep(buffer)
        for path, tensor in inputs.named(model):
            name = path.replace(".", "_")
            node = self.graph.placeholder(name)
            node.name = name  # fx would number one that is called as a builtin
            self.inputs.append(name)
            self._values.append((node, self._note(node, tensor)))
        with torch.inference_mode(), self:
            found = inputs.call(model)
        return [(self._operand(tensor), path) for path, tensor in tensors_of(found)]

    def captured(self, outputs: Sequence[tuple[fx.Node, str]], whole: bool = True) -> Capture:
        """Return the graph; of a whole run without operators whose results nobody uses."""
        self.graph.output(tuple(node for node, _ in outputs))
        if whole:
            self.graph.eliminate_dead_code(lambda node: node.is_impure() or depends_on_values(node))
        alive = set(self.graph.nodes)
        for node, value in self._values:
            if node in alive:
                node.meta["val"] = type(value)(map(_made, value)) if isinstance(value, list | tuple) else _made(value)
        return Capture(
            self.graph,
            self.stored,
            self.tensors,
            parameters=frozenset(name for name, _ in self.model.named_parameters()),
            inputs=tuple(self.inputs),
            outputs={node.name: path for node, path in outputs},
        )

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            self._keep_written(func, args, kwargs)
        given: set[int] = set()

        def operand(tensor: Tensor) -> fx.Node:
            given.add(_address(tensor))
            return self._operand(tensor)

        operands = mapped(args, operand), mapped(kwargs, operand)
        result = func(*args, **kwargs)
        lifted = func is torch.ops.aten.lift_fresh.default  # a tensor written in the code; export calls it a copy
        node = self._add(torch.ops.aten.lift_fresh_copy.default if lifted else func, *operands)
        self._values.append((node, self._note(node, result, given)))
        return result

    def _add(self, target: OpOverload, args: Any, kwargs: Any) -> fx.Node:
        node = self.graph.create_node("call_function", target, name=target.overloadpacket.__name__)
        node.args, node.kwargs = args, kwargs  # afterwards: create_node would look for symbols in them
        node.meta["nn_module_stack"] = self._stacks[-1]
        node.meta["source"] = _line()
        return node

    def _note(self, node: fx.Node, value: Any, given: Collection[int] = ()) -> Any:
        """Remember the node of each tensor of a value; return the value with forms in place of tensors.

        What lies elsewhere than in the memory that the operator was `given` (addresses) is new.
        """
        if isinstance(value, Tensor):
            self._nodes[id(value)] = weakref.ref(value), node
            at = _address(value)
            if at not in given or at not in self._memories:  # nothing is held of a tensor: that would fragment the heap
                self._memories[at] = _Memory(value.untyped_storage().nbytes() if at else 0)
            return _Form(value, self._memories[at])
        if not isinstance(value, tuple | list):
            return value
        forms = []
        for index, each in enumerate(value):
            if not isinstance(each, Tensor):
                forms.append(each)
                continue
            part = self.graph.create_node("call_function", operator.getitem, (node, index), name="getitem")
            part.meta.update(node.meta)
            forms.append(self._note(part, each, given))
            self._values.append((part, forms[-1]))
        return type(value)(forms) if type(value) in (tuple, list) else tuple(forms)

    def _operand(self, tensor: Tensor) -> fx.Node:
        known = self._nodes.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        owner = self._owners.get(_address(tensor))
        if owner is None:
            return self._constant(tensor)
        node = self._nodes[id(owner)][1]
        place = tensor.shape, tensor.stride(), tensor.storage_offset()
        if place != (owner.shape, owner.stride(), owner.storage_offset()):  # a part of it, or another view of it
            if cut := _narrowed(owner, tensor):
                node = self._add(torch.ops.aten.slice.Tensor, (node, *cut), {})
            else:
                view = list(tensor.shape), list(tensor.stride()), tensor.storage_offset()
                node = self._add(torch.ops.aten.as_strided.default, (node, *view), {})
        self._values.append((node, self._note(node, tensor, {_address(tensor)})))
        return node

    def _constant(self, tensor: Tensor) -> fx.Node:
        """Return the node of a tensor that neither the model nor the graph knows: the user's code made it."""
        name = self._attributes.get(id(tensor), (f"constant_{len(self.stored)}", tensor))[0]
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            return self._store(f"c_{name.replace('.', '_').lower()}", name, tensor.detach())

    @cached_property
    def _attributes(self) -> dict[int, tuple[str, Tensor]]:
        """The tensors that modules hold as plain attributes, by identity, with their names."""
        held = ((path, vars(module)) for module, (path, *_) in self._paths.items())
        return {
            id(value): (f"{path}.{name}" if path else name, value)
            for path, attributes in held
            for name, value in attributes.items()
            if isinstance(value, Tensor)
        }

    def _store(self, node_name: str, name: str, tensor: Tensor) -> fx.Node:
        node = self.graph.create_node("placeholder", node_name, name=node_name)
        self.stored[name] = tensor
        self.tensors[node.name] = name
        self._values.append((node, self._note(node, tensor)))
        return node

    def _keep_written(self, func: OpOverload, args: Any, kwargs: Any) -> None:
        """Keep what a parameter or buffer held before an operator writes into it."""
        for position, declared in enumerate(func._schema.arguments):
            value = args[position] if position < len(args) else kwargs.get(declared.name)
            if declared.alias_info is not None and declared.alias_info.is_write and isinstance(value, Tensor):
                owner = self._owners.get(_address(value))
                if owner is not None:
                    self._keep(owner)

    def _keep(self, tensor: Tensor) -> None:
        self._written.setdefault(id(tensor), (tensor, tensor.detach().clone()))


def _address(tensor: Tensor) -> int:
    """Return what identifies a tensor's memory as long as it lives; 0 where it is not strided."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else 0


@dataclass(eq=False)
class _Memory:
    """How many bytes lay in one place."""

    size: int

    @cached_property
    def hollow(self) -> torch.UntypedStorage:
        """Memory without data that stands for it: views of one have the same."""
        return torch.UntypedStorage(self.size, device="meta")  # type: ignore[no-untyped-call]


class _Form:
    """Shape, type and memory of a tensor; called, it gives a tensor without data that has them."""

    def __init__(self, tensor: Tensor, memory: _Memory) -> None:
        self.shape, self.dtype, self.memory = tensor.shape, tensor.dtype, memory
        strided = tensor.layout is torch.strided
        self.view = (tensor.storage_offset(), tensor.shape, tensor.stride()) if strided else ()

    def __call__(self) -> Tensor:
        if not self.view:
            return torch.empty(self.shape, dtype=self.dtype, device="meta")
        return torch.empty(0, dtype=self.dtype, device="meta").set_(self.memory.hollow, *self.view)


def _narrowed(whole: Tensor, part: Tensor) -> tuple[int, ...]:
    """Return axis, start and end of a part of a tensor that is cut out along one axis; () for another view."""
    if whole.ndim != part.ndim or whole.stride() != part.stride():
        return ()
    axes = [axis for axis in range(whole.ndim) if whole.shape[axis] != part.shape[axis]]
    offset = part.storage_offset() - whole.storage_offset()
    if len(axes) != 1 or offset % max(whole.stride(axes[0]), 1):
        return ()
    start = int(offset // max(whole.stride(axes[0]), 1))
    return axes[0], start, start + part.shape[axes[0]]


def _made(value: Any) -> Any:
    return value() if isinstance(value, _Form) else value


def _line() -> tuple[str, int] | None:
    """Return file and line of the innermost frame of the user's code: neither torch's nor what calls the model here."""
    frame = sys._getframe(2)
    while (code := frame.f_code) is not _Recorder.run.__code__:
        file = code.co_filename
        if file != __file__ and not from_torch(file):
            return file, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None


@contextmanager
def _plainly(devices: list[torch.device], seed: int | None) -> Iterator[None]:
    """Let modules run operator by operator, quietly, and give random states back."""
    fast, states = torch.backends.mha.get_fastpath_enabled(), (random.getstate(), np.random.get_state())
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.random.fork_rng({device for device in devices if device.type == "cuda"}))
        torch.backends.mha.set_fastpath_enabled(False)
        if seed is not None:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            random.setstate(states[0])
            np.random.set_state(states[1])

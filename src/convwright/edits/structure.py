"""Structural surgery: exchange, insert or reshape modules in a copy of the network.

An *act* changes one such copy in place and says which parameters took the place of which. Depth, kernel and operator
edits are acts; they share the copying, the bookkeeping for optimizers, and the prediction of costs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from convwright.architecture import Architecture
from convwright.architecture.capture.capture import capture
from convwright.architecture.capture.graph import Capture
from convwright.architecture.capture.pytrees import Inputs
from convwright.architecture.channels import Axis, Ints
from convwright.edits.edit import Edit, Measured, Moved, Outcome
from convwright.edits.equivalence import Run
from convwright.edits.surgery import copied, named_tensors, stand_ins


@dataclass(frozen=True, eq=False)
class Succession:
    """A parameter that took another one's place, and how its elements were taken from it."""

    old: nn.Parameter
    new: nn.Parameter
    take: Callable[[Tensor], Tensor]


Act = Callable[[nn.Module], Sequence[Succession]]


@dataclass(frozen=True, eq=False)
class Structure:
    """Acts to be done one after the other on any copy of the network.

    Attributes:
        acts: what is done.
        promise: from the original to what the result must equal; the original itself by default.
    """

    acts: tuple[Act, ...]
    promise: Callable[[nn.Module], Run] = lambda model: model

    def operate(self, model: nn.Module) -> tuple[nn.Module, dict[int, Moved]]:
        """Return a changed deep copy, and where each parameter and buffer that is left went."""
        old = [id(tensor) for tensor in named_tensors(model).values()]
        memo: dict[int, Any] = {}
        changed = copied(model, memo)
        successors = [s for act in self.acts for s in act(changed)]
        by_old = {id(s.old): s for s in successors}
        present = {id(tensor) for tensor in named_tensors(changed).values()}
        moved: dict[int, Moved] = {}
        for key in old:
            successor = by_old.get(id(memo.get(key)))
            if successor is not None:
                moved[key] = Moved(successor.new, successor.take)
            elif id(memo.get(key)) in present:
                moved[key] = Moved(memo[key], lambda state: state)
        return changed, moved

    def outcome(
        self,
        architecture: Architecture,
        edits: Sequence[Edit],
        difference: Measured | None,
        mac_changes: Sequence[int],
        note: tuple[str, ...] = (),
        keeps: tuple[bool, ...] = (),
        takes: Mapping[Axis, Ints] | None = None,
    ) -> Outcome:
        """Carry out the acts on a copy of a network, and say what that gave; the note holds for each edit."""
        model, moved = self.operate(architecture.model)
        return Outcome(
            model=model,
            edits=tuple(edits),
            max_difference=difference,
            steps=predicted_steps(architecture, self.acts, mac_changes),
            coupled=((),) * len(edits),
            notes=(note,) * len(edits),
            moved=moved,
            keeps=keeps,
            takes=takes or {},
        )


def put(model: nn.Module, path: str, new: nn.Module) -> None:
    """Set a module in place of another, under every name that the other one goes by."""
    old = model.get_submodule(path)
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is old]
    new.train(old.training)
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)


def insert_after(model: nn.Module, path: str, news: Mapping[str, nn.Module]) -> bool:
    """Insert modules behind one child of a ``Sequential``, whose other children keep their names.

    Args:
        model: the network.
        path: the child behind which to insert.
        news: new child name -> module, in order.

    Returns:
        False, with nothing changed, if the parent does not run its children one after the other.
    """
    parent_path, _, child = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    if not isinstance(parent, nn.Sequential) or type(parent).forward is not nn.Sequential.forward:
        return False
    children = dict(parent.named_children())
    for name in children:
        delattr(parent, name)
    for name, module in children.items():
        parent.add_module(name, module)
        if name == child:
            for new_name, new in news.items():
                parent.add_module(new_name, new.train(module.training))
    return True


def free_names(model: nn.Module, path: str, count: int) -> list[str]:
    """Return child names for copies of a module that its parent does not use yet."""
    parent_path, _, child = path.rpartition(".")
    taken = {name for name, _ in model.get_submodule(parent_path).named_children()}
    names = (f"{child}_copy{number}" for number in itertools.count(1))
    return list(itertools.islice((name for name in names if name not in taken), count))


class _Rerouted(fx.Interpreter):
    """Runs a captured graph with some nodes' values taken from others."""

    def __init__(self, captured: Capture, instead: Mapping[str, str]) -> None:
        super().__init__(nn.Module(), garbage_collect_values=False, graph=captured.graph)
        self.instead = instead
        self.named = {node.name: node for node in captured.graph.nodes}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.instead:
            return self.env[self.named[self.instead[n.name]]]
        if n.op == "call_function" and n.meta.get("val") is None:
            return None  # assertions about the dtype at capture
        return super().run_node(n)


def rerouted(architecture: Architecture, model: nn.Module, instead: Mapping[str, str]) -> Run:
    """Return the original computation with some values replaced by earlier ones: a branch or unit left out.

    Args:
        architecture: the original network.
        model: a copy of its model, in the type in which it is measured.
        instead: graph node -> the node whose value it takes.
    """
    tensors = named_tensors(model)
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float64)
    captured = _in_type(architecture, model, dtype)
    inputs = []
    for node in captured.graph.nodes:
        if node.op == "placeholder" and (name := captured.tensors.get(node.name)) is not None:
            tensor = tensors[name] if name in tensors else captured.tensor(name)
            inputs.append(tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def run(*args: object, **kwargs: object) -> object:
        return _Rerouted(captured, instead).run(*inputs, *Inputs(args, kwargs).tensors)

    return run


def _in_type(architecture: Architecture, model: nn.Module, dtype: torch.dtype) -> Capture:
    """Return the graph of a copy of another type: the one at hand, unless types are written into it."""
    written = any(
        isinstance(value, torch.dtype) and value.is_floating_point
        for node in architecture.capture.graph.nodes
        if node.op == "call_function" and node.meta.get("val") is not None
        for value in (*node.args, *node.kwargs.values())
    )
    if not written:
        return architecture.capture
    cast = architecture.inputs.map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return capture(model, cast, architecture.captured)


def predicted_steps(
    architecture: Architecture, acts: Sequence[Act], mac_changes: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Return MACs and parameters after each act, without running the changed network.

    Args:
        architecture: the network as it is.
        acts: one per edit; they are done on a copy without memory (meta tensors).
        mac_changes: by how much each changes the MACs.
    """
    model = architecture.model
    skeleton = copied(model, stand_ins(model, lambda _, tensor: torch.empty_like(tensor, device="meta")))
    macs = architecture.profile().macs
    steps = []
    for act, change in zip(acts, mac_changes, strict=True):
        act(skeleton)
        macs += change
        steps.append((macs, sum(p.numel() for p in skeleton.parameters())))
    return tuple(steps)


def macs_of_layers(architecture: Architecture, names: Iterable[str]) -> int:
    """Return the MACs of some layers together."""
    wanted = set(names)
    return sum(layer.macs for layer in architecture.profile().layers if layer.name in wanted)

"""Operators of a captured graph as things that can be run by themselves: which, on what shapes, and how.

An operator's call is described by its name, the shape, strides and type of each tensor, and its constants. Equal
descriptions take equally long, so each is run once, on made-up numbers, however often a network has it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from convwright.architecture import Architecture
from convwright.architecture.capture.graph import operator_name
from convwright.architecture.labels import Values
from convwright.cost.latency import Spread, calls_per_sample, in_turns, spread, wall_timer
from convwright.cost.memory import storage_key
from convwright.cost.runtimes import Timer
from convwright.errors import first_line

Shape = tuple[int, ...]

_MEMORY = 2**29  # bytes of operands that are held at once
_MOST_SWEEPS = 30

_SHORT = {torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64"}
# Operators that take the shape of their result as an argument, and that argument's name.
_RESULT_SHAPE = {
    "reshape": "shape", "_unsafe_view": "size", "_reshape_copy": "size", "view_copy": "size",
    "zeros": "size", "ones": "size", "empty": "size", "full": "size", "rand": "size", "randn": "size",
    "new_zeros": "size", "new_ones": "size", "new_empty": "size", "new_full": "size",
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """A tensor without its values."""

    shape: Shape
    stride: Shape
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """Describe a tensor; the stride of a batch of one, which means nothing, is that of a whole image."""
        shape, stride = tuple(map(int, tensor.shape)), tuple(map(int, tensor.stride()))
        if len(shape) > 1 and shape[0] == 1:
            extent = max(n * s for n, s in zip(shape[1:], stride[1:], strict=True))
            stride = (extent, *stride[1:])
        return cls(shape, stride, tensor.dtype)

    def __str__(self) -> str:
        kind = _SHORT.get(self.dtype, str(self.dtype).removeprefix("torch."))
        return f"{kind}[{','.join(map(str, self.shape))}]/{','.join(map(str, self.stride))}"

    def storage_size(self) -> int:
        """Return how many elements the memory behind it has."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))

    def resized(self, shape: Shape) -> TensorSpec:
        """Return the same layout for another shape: order of axes in memory, broadcast axes, gaps in proportion."""
        if shape == self.shape:
            return self
        stride = [0] * len(shape)
        before, after = 1, 1  # strides that the next axis outwards would have without a gap
        for axis in sorted(range(len(shape)), key=lambda a: (-self.stride[a], a), reverse=True):
            if self.shape[axis] == 1:  # its stride means nothing
                stride[axis] = after
            elif self.stride[axis]:
                stride[axis] = max(after, round(Fraction(after * self.stride[axis], before)))
                before = self.stride[axis] * self.shape[axis]
            after = max(stride[axis] * shape[axis], after)
        return TensorSpec(shape, tuple(stride), self.dtype)


@dataclass(frozen=True, eq=False)
class OperatorCall:
    """One operator with everything that its time depends on.

    Attributes:
        target: the ATen operator.
        args: its arguments, with `TensorSpec` in the place of tensors.
        kwargs: its keyword arguments, likewise.
        outputs: elements of its results: what its time is scaled by where it cannot be run.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    outputs: int = 0

    @property
    def key(self) -> str:
        """The description under which its time is remembered."""
        named = [f"{name}={_text(value)}" for name, value in sorted(self.kwargs.items())]
        return f"{self.target}({', '.join([*map(_text, self.args), *named])})"

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors among its arguments, in order."""
        return tuple(v for v in tree_leaves((self.args, list(self.kwargs.values()))) if isinstance(v, TensorSpec))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)


# ------------------------------------------------------------------ from a node to its call


def is_free(node: fx.Node) -> bool:
    """Return whether a node does no work: it picks a result, names a value anew, or views one."""
    if node.op != "call_function" or node.meta.get("val") is None or node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        return False
    given = {storage_key(t) for n in node.all_input_nodes for t in _tensors(n.meta.get("val"))}
    made = _tensors(node.meta["val"])
    return bool(made) and all(storage_key(t) in given for t in made)


def is_operator(node: fx.Node) -> bool:
    """Return whether a node can be run by itself: an ATen operator, no graph within the graph."""
    return isinstance(node.target, torch._ops.OpOverload)


def working(arch: Architecture) -> list[fx.Node]:
    """Return the nodes that do something and can be run by themselves."""
    return [n for n in arch.capture.graph.nodes if not is_free(n) and is_operator(n)]


def operator_calls(arch: Architecture) -> tuple[OperatorCall, ...]:
    """Return what a network runs, operator by operator, without what does no work."""
    return tuple(call_of(node) for node in working(arch))


def call_of(
    node: fx.Node, values: dict[str, Values] | None = None, groups: dict[str, int] | None = None
) -> OperatorCall:
    """Describe what a node runs.

    Args:
        node: of a captured graph.
        values: node name -> value whose shape is to be used in place of the captured one.
        groups: convolution's node name -> its number of groups, in the same place.
    """

    def described(given: fx.Node) -> Any:
        return _spec(given.meta.get("val"), None if values is None else values[given.name])

    args, kwargs = list(fx.node.map_arg(node.args, described)), dict(fx.node.map_arg(node.kwargs, described))
    made, known = _tensors(node.meta.get("val")), None if values is None else values[node.name]
    each = known if isinstance(known, list) else [known] * len(made)
    outputs = sum(_spec(tensor, value).storage_size() for tensor, value in zip(made, each, strict=False))
    if values is not None:
        for name, constant in _constants(node, values, groups or {}).items():
            _put(node, args, kwargs, name, constant)
    return OperatorCall(node.target, tuple(args), kwargs, outputs)


def _spec(meta: Any, value: Values | None) -> Any:
    if isinstance(meta, list | tuple):
        pairs = zip(meta, value if isinstance(value, list) else [value] * len(meta), strict=True)
        return [_spec(m, v) for m, v in pairs]
    if not isinstance(meta, Tensor):
        return meta
    spec = TensorSpec.of(meta)
    return spec if value is None or isinstance(value, list) else spec.resized(tuple(map(int, value.shape)))


def _constants(node: fx.Node, values: dict[str, Values], groups: dict[str, int]) -> dict[str, Any]:
    """Return the constants that follow from sizes: a reshape's target, the groups of a convolution, a norm's shape."""
    name = operator_name(node)
    own = values[node.name]
    result = list((own[0] if isinstance(own, list) else own).shape)
    found: dict[str, Any] = {}
    if node.name in groups:
        found["groups"] = groups[node.name]
    if name in _RESULT_SHAPE:
        found[_RESULT_SHAPE[name]] = result
    if name in ("layer_norm", "rms_norm", "native_layer_norm"):
        found["normalized_shape"] = result[-len(node.args[1]) :]  # type: ignore[arg-type]
    return found


def _put(node: fx.Node, args: list[Any], kwargs: dict[str, Any], name: str, constant: Any) -> None:
    """Replace an argument by its schema name where it is given; a default stays a default."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    if name in kwargs:
        kwargs[name] = constant
    elif name in names and names.index(name) < len(args):
        args[names.index(name)] = constant


def _tensors(value: Any) -> list[Tensor]:
    return [v for v in tree_leaves(value) if isinstance(v, Tensor)]


# ------------------------------------------------------------------ running it


def time_calls(
    calls: Sequence[OperatorCall], device: torch.device, seconds: float = 0.1, timer: Timer | None = None
) -> dict[str, Spread | str]:
    """Time operators on made-up numbers, in sweeps: one sample of each, then again from the first.

    So each finds its weights where a network would leave them, not in the cache, and a machine that is busy for a
    while is so for all of them. Torch's random state stays as it is.

    Args:
        calls: what to run.
        device: where.
        seconds: per operator; no further sweep is begun after these, once there are 6.
        timer: what measures; the device's own clock when not given.

    Returns:
        By key: the time, or why the operator cannot be run by itself.
    """
    found: dict[str, Spread | str] = {}
    for some in _within_memory(calls):
        found |= _swept(some, device, seconds, timer or wall_timer(device))
    return found


def _within_memory(calls: Sequence[OperatorCall]) -> Iterator[list[OperatorCall]]:
    """Split calls into runs whose tensors fit into memory together; one that is larger stands alone."""
    some: list[OperatorCall] = []
    filled = 0
    for call in calls:
        size = sum(spec.storage_size() * spec.dtype.itemsize for spec in call.tensors)
        if some and filled + size > _MEMORY:
            yield some
            some, filled = [], 0
        some.append(call)
        filled += size
    if some:
        yield some


def _swept(
    calls: Sequence[OperatorCall], device: torch.device, seconds: float, timer: Timer
) -> dict[str, Spread | str]:
    failed: dict[str, Spread | str] = {}
    ready: dict[str, tuple[_Made, int]] = {}
    with torch.inference_mode():
        for call in calls:
            try:
                made = _Made(call, device)
                made.run()
                ready[call.key] = (made, calls_per_sample(min(timer(made.run, 1) for _ in range(2))))
            except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
                failed[call.key] = first_line(error)
        takes = {key: partial(made.timed, timer, times) for key, (made, times) in ready.items()}
        samples = in_turns(takes, seconds * len(ready), _MOST_SWEEPS)
    return {**{key: spread(taken) for key, taken in samples.items()}, **failed}


class _Made:
    """The tensors of a call, filled with numbers."""

    def __init__(self, call: OperatorCall, device: torch.device) -> None:
        self.target = call.target
        self.device = device
        self.generator = torch.Generator(device).manual_seed(0)
        self.mutable = bool(call.target._schema.is_mutable)
        self.memory: list[tuple[Tensor, Tensor]] = []
        self.args, self.kwargs = tree_map_only(TensorSpec, self._tensor, (call.args, call.kwargs))

    def run(self) -> object:
        return self.target(*self.args, **self.kwargs)

    def timed(self, timer: Timer, calls: int) -> float:
        # What it did in place is undone: numbers that shrink on and on would become slow to compute with.
        for memory, before in self.memory:
            memory.copy_(before)
        return timer(self.run, calls)

    def _tensor(self, spec: TensorSpec) -> Tensor:
        """Make a tensor: 0.5 to 1.5, which suits variances and divisors, or zeros, which suit indices."""
        memory = torch.zeros(spec.storage_size(), dtype=spec.dtype, device=self.device)
        if spec.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            memory.uniform_(0.5, 1.5, generator=self.generator)
        if self.mutable:
            self.memory.append((memory, memory.clone()))
        return memory.as_strided(spec.shape, spec.stride)

"""Measure how far a changed network is from what the edit promises.

Both run in eval mode, on the same random input with random weights and statistics: in float64, or in float32 where the
network's own code allows nothing else.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from convwright.architecture import Architecture
from convwright.architecture.capture.graph import argument, first_line, operator_name, shape_of, user_frame
from convwright.architecture.capture.pytrees import Inputs
from convwright.edits.edit import Measured, Moved
from convwright.edits.surgery import copied, stand_ins, tensors_in
from convwright.errors import EditError

_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}  # differences at or below this are rounding
_NARROW = 100_000  # parameters
_PIECE = 2**15  # random numbers drawn at once: they stay in the processor's cache
_LOUDER = 4  # times: weights of linear layers, where all that was measured was the same for every input
_MOST_ROUNDS = 24  # of measuring, until weights are drawn that let anything through

Run = Callable[..., object]


class Surgery(Protocol):
    """What a run of edits does to any copy of the network, and what it promises."""

    def operate(self, model: nn.Module) -> tuple[nn.Module, dict[int, Moved]]:
        """Return a changed copy, and where each parameter (by identity) went."""

    def promise(self, model: nn.Module, /) -> Run:
        """Return what the changed network must equal; the model handed in may be changed for it."""


def randomise(model: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a copy of a type in eval mode with random weights and statistics.

    Initial values hide errors: zero biases, unit variances, zero-initialised last scales. Weights get
    variance 2 / fan-in.
    """
    generator = np.random.Generator(np.random.SFC64(seed))  # four times faster than torch's

    def make(name: str, tensor: Tensor) -> Tensor | None:
        return _random_like(name, tensor, generator).to(tensor.device) if tensor.is_floating_point() else None

    new = copied(model, stand_ins(model, make)).eval()
    return new.double() if dtype is torch.float64 else new.float()


@contextmanager
def _settling(original: nn.Module, moved: Mapping[int, Moved]) -> Iterator[None]:
    """Move running statistics halfway to what reaches each norm first, and their successors with them.

    With statistics of their own, deep networks amplify until float64 rounding shows in the output, and the
    measurement would say more about the random weights than about the edit. Statistics that the surgery did not take
    as it says stay as they are, so that the difference shows.
    """
    norms = [m for m in original.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    left = {norm for norm in norms if norm.running_mean is not None}

    def settle(norm: Any, args: tuple[Tensor, ...]) -> None:
        if norm not in left or not args or not args[0].numel():
            return
        left.remove(norm)
        var, mean = torch.var_mean(args[0], [0, *range(2, args[0].ndim)], correction=0)
        for old, seen in ((norm.running_mean, mean), (norm.running_var, var)):
            heir = moved.get(id(old))  # none where the norm is dropped
            if heir is None:
                old.lerp_(seen.to(old.dtype), 0.5)
            elif torch.equal(heir.new, heir.take(old)):
                heir.new.copy_(heir.take(old.lerp_(seen.to(old.dtype), 0.5)))

    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(settle).remove)
        yield


_GAINS = ("gamma", "gain", "weight_g", "original0")  # scales of norms, layers and computed weights


def _random_like(name: str, tensor: Tensor, generator: np.random.Generator) -> Tensor:
    leaf = name.rpartition(".")[2]
    fan_in = math.prod(tensor.shape[1:]) if tensor.ndim > 1 else 50
    span = 2 * math.sqrt(6.0 / max(fan_in, 1))  # variance 2 / fan-in; uniform, being quicker than normal
    least = -span / 2
    if not isinstance(tensor, nn.Parameter) and ("var" in leaf or "std" in leaf):  # divided by, or rooted
        least, span = 0.5, 1.0
    elif name.endswith(_GAINS) or (tensor.ndim == 1 and name.endswith("weight")):
        least, span = 0.2, 0.6  # below 1: residual streams must not explode
    value = np.empty(tensor.shape)
    flat = value.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        piece = generator.random(out=flat[start : start + _PIECE])
        piece *= span
        piece += least
    return torch.from_numpy(value)


def small_input(architecture: Architecture) -> Inputs:
    """Return an example input at which each layer that sees several positions per side still sees two."""
    example = architecture.example_input
    called = (n for n in architecture.capture.graph.nodes if n.op == "call_function")
    sliding = (n for n in called if operator_name(n).startswith(("conv", "max_pool", "avg_pool")))
    maps = [shape_of(argument(n, "input") or n) for n in sliding]
    sides = [side for shape in maps for side in shape[2:] if side > 1]
    if not architecture.inputs.one or example.ndim < 3 or min(sides, default=0) <= 2:
        return architecture.inputs
    shape = (*example.shape[:2], *(math.ceil(2 * side / min(sides)) for side in example.shape[2:]))
    return Inputs.of(example.new_zeros(shape))


_TAKES_NO_OTHER: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def measure(architecture: Architecture, surgery: Surgery, seed: int = 0) -> Measured:
    """Return how far the changed network is from what the edit promises, on a small input where it takes one.

    Backward runs too, so that a broken graph shows.

    Args:
        architecture: the original; it is left as it was.
        surgery: the edit.
        seed: of weights, statistics and input.

    Raises:
        EditError: if the network does not run, before or after the change; names the line where it stops.
    """
    model, small = architecture.model, small_input(architecture)
    if small.tensors[0].shape != architecture.example_input.shape and model not in _TAKES_NO_OTHER:
        with suppress(Exception):  # the network's own code may want the input that it was read with
            found = _worst(model, surgery, small, seed, torch.float64)
            if found.difference < math.inf:  # else a graph, in which the sizes of that input are numbers
                return found
        _TAKES_NO_OTHER.add(model)
    return _measured(model, surgery, architecture.inputs, seed)


def _measured(model: nn.Module, surgery: Surgery, inputs: Inputs, seed: int) -> Measured:
    try:
        return _worst(model, surgery, inputs, seed, torch.float64)
    except _OriginalError as error:
        note = f"measured in float32: the network does not run in float64{error}"
    try:
        found = _worst(model, surgery, inputs, seed, torch.float32)
    except _OriginalError as error:
        raise EditError(f"the network does not run on random input, so nothing can be measured{error}") from error
    return replace(found, notes=(*found.notes, note))


class _OriginalError(Exception):
    """The original does not run as it is measured; says where and why."""

    def __init__(self, error: Exception) -> None:
        where = user_frame(error)
        super().__init__(f"{f', at {where}' if where else ''}: {first_line(error)}")


def _worst(model: nn.Module, surgery: Surgery, inputs: Inputs, seed: int, dtype: torch.dtype) -> Measured:
    """Measure a narrow network several times: by chance, all of few ReLUs give zero, and a change behind them hides."""
    rounds = 4 if sum(p.numel() for p in model.parameters()) < _NARROW else 1
    found = [_measure(model, surgery, inputs, seed + 10 * n, dtype) for n in range(rounds)]
    while all(each.blind for each in found) and len(found) < _MOST_ROUNDS:
        found.append(_measure(model, surgery, inputs, seed + 10 * len(found), dtype, louder=True))
    return max(found, key=lambda each: each.difference)


def _measure(
    model: nn.Module, surgery: Surgery, inputs: Inputs, seed: int, dtype: torch.dtype, louder: bool = False
) -> Measured:
    original = randomise(model, seed, dtype)
    if louder:  # a detector keeps no box whose score is as good as that of any other
        for layer in original.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.data *= _LOUDER
    changed, moved = surgery.operate(original)
    x = inputs.random(seed + 1, dtype)
    promised = surgery.promise(original)
    try:
        with torch.no_grad(), _settling(original, moved):
            if promised is not original:  # a graph runs no modules
                x.call(original)
            expected = tensors_in(x.call(promised))
    except Exception as error:  # the user's own forward may raise anything
        raise _OriginalError(error) from error
    got, notes = _outputs(changed, original, x)
    found = Measured(_farthest(expected, got), _TOLERANCES[dtype], notes)
    if found.difference == 0:  # nothing at all is seen where the output is the same for every input
        with torch.no_grad():
            other = tensors_in(inputs.random(seed + 5, dtype).call(promised))
        return replace(found, blind=_farthest(expected, other) == 0)
    if found.exact:
        return found
    noise = iter(inputs.random(seed + 4, dtype).tensors)
    near = x.map(lambda t: t * (1 + 4 * torch.finfo(dtype).eps * n) if (n := next(noise)).is_floating_point() else t)
    with torch.no_grad():  # how far does rounding of the input go?
        shaken = tensors_in(near.call(promised))
    if math.isinf(found.difference) or found.difference > 100 * _farthest(expected, shaken):
        return found
    return replace(found, notes=(*notes, "rounding grows this far in this network under random weights"), rounding=True)


def _farthest(expected: list[Tensor], got: list[Tensor]) -> float:
    if len(expected) != len(got):
        return math.inf
    return max((_distance(a, b.detach()) for a, b in zip(expected, got, strict=True)), default=0.0)


def _distance(expected: Tensor, got: Tensor) -> float:
    """Return the largest difference, relative where outputs are large; infinite where shapes or NaNs differ."""
    if expected.shape != got.shape:
        return math.inf
    if not expected.numel():  # such as the boxes of an empty image
        return 0.0
    expected, got = expected.double(), got.double()  # truth values and numbers of places, too
    difference = float((expected - got).abs().max()) / max(1.0, float(expected.abs().max()))
    return math.inf if math.isnan(difference) else difference


def _outputs(changed: nn.Module, original: nn.Module, x: Inputs) -> tuple[list[Tensor], tuple[str, ...]]:
    """Run a changed network forwards, and backwards where the original can; say so where it cannot."""
    try:
        return _forward_backward(changed, x), ()
    except Exception as error:  # the user's own forward may raise anything
        unable = _without_backward(original, x)
        if unable is None:
            raise _broken(error) from error
    note = f"only the forward pass was run: the original has no backward pass{unable}"
    try:
        with torch.no_grad():
            return tensors_in(x.call(changed)), (note,)
    except Exception as error:
        raise _broken(error) from error


def _broken(error: Exception) -> EditError:
    where = user_frame(error)
    return EditError(
        f"the changed network does not run{f' at {where}' if where else ''}: {first_line(error)} "
        "If a size is written down there, take it from a tensor's shape instead."
    )


def _without_backward(model: nn.Module, x: Inputs) -> _OriginalError | None:
    """Return why a network has no backward pass, ``None`` if it has one; refuse one that does not run at all."""
    try:
        _forward_backward(model, x)
    except Exception as error:  # such as values that are overwritten in place
        try:
            with torch.no_grad():
                x.call(model)
        except Exception as forward:
            raise _OriginalError(forward) from forward
        return _OriginalError(error)
    return None


def _forward_backward(model: nn.Module, x: Inputs) -> list[Tensor]:
    x = x.map(lambda tensor: tensor.detach().clone().requires_grad_(tensor.is_floating_point()))
    outputs = tensors_in(x.call(model))
    wanted = [tensor for tensor in x.tensors if tensor.requires_grad]
    summed = [t.sum() for t in outputs if t.requires_grad]
    if wanted:
        torch.autograd.grad(summed, wanted, allow_unused=len(wanted) > 1)  # no weight gradients: they are large
    return outputs

"""Measure how far a changed network is from what the edit promises.

Both run in float64, in eval mode, on the same random input with random weights and statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from convwright.architecture.capture.exported import first_line, user_frame
from convwright.edits.edit import Moved
from convwright.edits.surgery import copied, stand_ins, tensors_in
from convwright.errors import EditError

EXACT = 1e-10  # float64 differences at or below this are rounding

Run = Callable[[Tensor], object]


class Surgery(Protocol):
    """What a run of edits does to any copy of the network, and what it promises."""

    def operate(self, model: nn.Module) -> tuple[nn.Module, dict[int, Moved]]:
        """Return a changed copy, and where each parameter (by identity) went."""

    def promise(self, model: nn.Module, /) -> Run:
        """Return what the changed network must equal; the model handed in may be changed for it."""


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a float64 copy in eval mode with random weights and statistics.

    Initial values hide errors: zero biases, unit variances, zero-initialised last scales. Weights get
    variance 2 / fan-in.
    """
    generator = torch.Generator().manual_seed(seed)

    def make(name: str, tensor: Tensor) -> Tensor | None:
        return _random_like(name, tensor, generator).to(tensor.device) if tensor.is_floating_point() else None

    return copied(model, stand_ins(model, make)).double().eval()


def _settle_statistics(model: nn.Module, example_input: Tensor, seed: int) -> None:
    """Move running statistics halfway to what the random weights give.

    With statistics of their own, deep networks amplify until float64 rounding shows in the output, and the
    measurement would say more about the random weights than about the edit.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    before = [m.momentum for m in norms]
    x = torch.cat([_random_input(example_input, seed + 2)[:1], _random_input(example_input, seed + 3)[:1]])
    for norm in norms:
        norm.train()
        norm.momentum = 0.5
    with torch.no_grad():
        model(x)
    for norm, momentum in zip(norms, before, strict=True):
        norm.eval()
        norm.momentum = momentum


def _random_input(example_input: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(example_input.shape, generator=generator, dtype=torch.float64)
    return x.to(example_input.device)


_GAINS = ("gamma", "gain", "weight_g", "original0")  # scales of norms, layers and computed weights


def _random_like(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    value = torch.empty(tensor.shape, dtype=torch.float64)
    leaf = name.rpartition(".")[2]
    if not isinstance(tensor, nn.Parameter) and ("var" in leaf or "std" in leaf):  # divided by, or rooted
        return value.uniform_(0.5, 1.5, generator=generator)
    if name.endswith(_GAINS) or (tensor.ndim == 1 and name.endswith("weight")):
        return value.uniform_(0.2, 0.8, generator=generator)  # below 1: residual streams must not explode
    fan_in = math.prod(tensor.shape[1:]) if tensor.ndim > 1 else 50
    bound = math.sqrt(6.0 / max(fan_in, 1))  # variance 2 / fan-in; uniform, being quicker than normal
    return value.uniform_(-bound, bound, generator=generator)


def measure(model: nn.Module, surgery: Surgery, example_input: Tensor, seed: int = 0) -> float:
    """Return how far the changed network is from what the edit promises.

    Backward runs too, so that a broken graph shows.

    Args:
        model: the original; it is left as it was.
        surgery: the edit.
        example_input: the shape of the input; its values are not used.
        seed: of weights, statistics and input.

    Returns:
        The largest absolute difference, divided by the largest output where that exceeds 1.

    Raises:
        EditError: if the changed network does not run; names the line where it stops.
    """
    original = randomise(model, seed)
    _settle_statistics(original, example_input, seed)
    changed, _ = surgery.operate(original)
    promised = surgery.promise(original)
    x = _random_input(example_input, seed + 1)
    with torch.no_grad():
        expected = tensors_in(promised(x))
    del original, promised
    got = _forward_backward(changed, x.requires_grad_())
    if len(expected) != len(got):
        return math.inf
    return max((_distance(a, b.detach()) for a, b in zip(expected, got, strict=True)), default=0.0)


def _distance(expected: Tensor, got: Tensor) -> float:
    """Return the largest difference, relative where outputs are large; infinite where shapes or NaNs differ."""
    if expected.shape != got.shape:
        return math.inf
    difference = float((expected - got).abs().max()) / max(1.0, float(expected.abs().max()))
    return math.inf if math.isnan(difference) else difference


def _forward_backward(model: nn.Module, x: Tensor) -> list[Tensor]:
    try:
        outputs = tensors_in(model(x))
        torch.autograd.grad([t.sum() for t in outputs if t.requires_grad], x)  # no weight gradients: they are large
    except Exception as error:  # the user's own forward may raise anything
        where = user_frame(error)
        raise EditError(
            f"the changed network does not run{f' at {where}' if where else ''}: {first_line(error)} "
            "If a size is written down there, take it from a tensor's shape instead."
        ) from error
    return outputs

"""What a network is called with: one tensor, several, or any nest of them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of one call of a network.

    Attributes:
        args: by position; each a tensor, or lists, tuples, dictionaries and dataclasses of tensors.
        kwargs: by name.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Tensor | Inputs) -> Inputs:
        """Return inputs as they are; one tensor as the only argument."""
        return given if isinstance(given, Inputs) else cls((given,))

    @classmethod
    def for_model(cls, model: nn.Module, given: Any) -> Inputs:
        """Sort what a user gives: a tuple is all arguments, a dictionary names them where forward has these names."""
        if isinstance(given, tuple) and type(given) is tuple:
            return cls(given)
        if isinstance(given, Mapping) and given.keys() <= set(parameters_of(model)):
            return cls((), dict(given))
        return cls((given,))

    def call(self, function: Callable[..., Any]) -> Any:
        """Call a network, or what stands for one, with these arguments."""
        return function(*self.args, **self.kwargs)

    def map(self, change: Callable[[Tensor], Any]) -> Inputs:
        """Return the same nest with each tensor changed."""
        return Inputs(mapped(self.args, change), mapped(self.kwargs, change))

    def random(self, seed: int, dtype: torch.dtype | None = None) -> Inputs:
        """Return the same nest with random numbers, of a type, in place of real ones; integers and truths stay."""
        generator = torch.Generator().manual_seed(seed)

        def drawn(tensor: Tensor) -> Tensor:
            x = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            return x.to(tensor.device, dtype or tensor.dtype) if tensor.is_floating_point() else tensor

        return self.map(drawn)

    def named(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors in order, each under the name of its argument and its place in the nest."""
        names = parameters_of(model)
        for position, value in enumerate(self.args):
            yield from _walk(names[position] if position < len(names) else f"input_{position}", value)
        for name, value in self.kwargs.items():
            yield from _walk(name, value)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors in order."""
        return [tensor for value in (*self.args, *self.kwargs.values()) for _, tensor in _walk("", value)]

    @property
    def batch(self) -> int:
        """How many samples they hold: images in a list, or the length of the first axis."""
        first = next(iter((*self.args, *self.kwargs.values())), None)
        if isinstance(first, list) and first and all(isinstance(each, Tensor) and each.ndim == 3 for each in first):
            return len(first)
        return max(int(self.tensors[0].shape[0]), 1) if self.tensors and self.tensors[0].ndim else 1

    @property
    def one(self) -> bool:
        """Whether it is one tensor alone."""
        return len(self.args) == 1 and isinstance(self.args[0], Tensor) and not self.kwargs

    def __str__(self) -> str:
        shapes = ["x".join(map(str, tensor.shape)) for tensor in self.tensors]
        return shapes[0] if len(shapes) == 1 else ", ".join(shapes)


def parameters_of(model: nn.Module) -> list[str]:
    """Return the names of the arguments that a network's forward takes by position."""
    try:
        found = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def mapped(value: Any, change: Callable[[Tensor], Any], lists: Callable[[list[Any]], Any] | None = None) -> Any:
    """Return a nest with each tensor in it changed; with `lists`, each list as a whole in place of what it holds."""
    if isinstance(value, Tensor):
        return change(value)
    if lists is not None and isinstance(value, list):
        return lists(value)
    if isinstance(value, Mapping):
        return {key: mapped(each, change, lists) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(each, change, lists) for each in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(each, change, lists) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: mapped(getattr(value, f.name), change, lists) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **fields)
    return value


def samples_in(batch: Any) -> int:
    """Return how many samples a batch holds: the length of its first tensor, or of the list that holds one each."""
    found: list[int] = []

    def seen(value: Any) -> Any:
        found.append(len(value))
        return value

    mapped(batch, lambda tensor: seen(tensor) if tensor.ndim else tensor, seen)
    return found[0] if found else 0


def rows_of(batch: Any, which: slice) -> Any:
    """Return some samples of a batch: of each tensor by its first axis, and of each list, which holds one for each."""
    return mapped(batch, lambda tensor: tensor[which] if tensor.ndim else tensor, lambda held: held[which])


def joined(batches: Sequence[Any]) -> Any:
    """Return batches of the same structure as one."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(list(batches)) if first.ndim else first
    if isinstance(first, list):
        return [sample for batch in batches for sample in batch]
    if isinstance(first, Mapping):
        return {key: joined([batch[key] for batch in batches]) for key in first}
    if isinstance(first, tuple):
        parts = [joined(part) for part in zip(*batches, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        fields = {f.name: joined([getattr(b, f.name) for b in batches]) for f in dataclasses.fields(first) if f.init}
        return dataclasses.replace(first, **fields)
    return first


def run_model(model: nn.Module, inputs: Any, named: nn.Module | None = None) -> Any:
    """Call a network with the inputs of a batch.

    Args:
        model: The network, or what a trainer wrapped it in.
        inputs: A tensor, a tuple of all arguments, a dictionary of them by name, or one argument of another kind.
        named: The network whose arguments a dictionary may name; None: `model`.
    """
    if isinstance(inputs, Tensor | list):
        return model(inputs)
    return Inputs.for_model(named or model, inputs).call(model)


def _walk(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    entries: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, Mapping):
        entries = iter(value.items())
    elif isinstance(value, list | tuple):
        entries = enumerate(value)
    elif dataclasses.is_dataclass(value):
        entries = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    for key, each in entries:
        yield from _walk(f"{path}.{key}" if path else str(key), each)


def tensors_of(value: Any) -> list[tuple[str, Tensor]]:
    """Return the tensors in a nest, such as what a network returns, each with its place ("" for one alone)."""
    return list(_walk("", value))

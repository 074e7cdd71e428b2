"""Kernel: enlarge a convolution's kernel with zeros around it, or crop it to its centre; the output size stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from convwright.architecture import Architecture, Layer
from convwright.architecture.capture.graph import argument, first_line, shape_of
from convwright.architecture.channels import Axis, Ints
from convwright.architecture.layers import per_axis
from convwright.edits.compensate import effective_weight, gain_factors, scale_gains, scale_of, sources_of
from convwright.edits.constraints import check_alone
from convwright.edits.edit import Edit, Options, Outcome, carries_out, check_distinct, refusal, whole_numbers
from convwright.edits.equivalence import Run, measure
from convwright.edits.structure import Structure, Succession, macs_of_layers
from convwright.edits.surgery import check_room, copied, weight_bytes
from convwright.errors import EditError

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Kernel(Edit):
    """Give a convolution another kernel size; padding follows, so that the output keeps its size.

    Larger: zeros around the old kernel, so the function stays. Smaller: the centre is kept, and the result equals
    the original with the rim of its kernel set to zero. Sizes change by an even number, since the centre stays.

    Attributes:
        target: the convolution.
        size: the new size, for all spatial axes or for each.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:resnet20")
        >>> arch.apply(cw.Kernel("layer1.0.conv1", 5)).changes[0].exact
        True
    """

    kind: ClassVar[str] = "kernel"

    target: str
    size: int | Sequence[int]


@dataclass(frozen=True, eq=False)
class _Change:
    """One convolution's change."""

    path: str
    layers: tuple[str, ...]  # the calls that it is
    tensors: tuple[str, ...]  # the parameters that hold kernels
    before: Sizes
    after: Sizes
    padding: Sizes  # what to add to the padding per axis; zeros where the module pads by itself
    input_shape: Sizes
    gains: frozenset[str]  # parameters that a computed weight is proportional to, per output channel

    def more_bytes(self, model: nn.Module) -> int:
        more = math.prod(self.after) / math.prod(self.before) - 1
        return int(sum(model.get_parameter(name).nbytes * more for name in self.tensors))

    def act(self, model: nn.Module) -> Sequence[Succession]:
        whole = self._effective(model)
        made = []
        for name in self.tensors:
            owner_path, _, leaf = name.rpartition(".")
            owner = model.get_submodule(owner_path)
            old = getattr(owner, leaf)
            new = nn.Parameter(self.take(old.detach()), old.requires_grad)
            setattr(owner, leaf, new)
            made.append(Succession(old, new, self.take))
        _sync(model.get_submodule(self.path), self.after, self.padding)
        if whole is not None:
            self._regain(model, self.take(whole))
        return made

    def _effective(self, model: nn.Module) -> Tensor | None:
        """Return the computed weight, where a crop changes its norm and a gain can take that back."""
        shrinks = any(a < b for a, b in zip(self.after, self.before, strict=True))
        return effective_weight(model.get_submodule(self.path), self.input_shape) if self.gains and shrinks else None

    def _regain(self, model: nn.Module, wanted: Tensor) -> None:
        got = self._effective(model)
        if got is not None and got.shape == wanted.shape:
            axis = int(isinstance(model.get_submodule(self.path), nn.modules.conv._ConvTransposeNd))
            scale_gains(model, self.gains, gain_factors(wanted, got, axis))

    def take(self, tensor: Tensor) -> Tensor:
        """Pad a kernel with zeros, or crop it (negative padding)."""
        margins = [(b - a) // 2 for a, b in zip(self.before, self.after, strict=True)]
        return F.pad(tensor, [m for margin in reversed(margins) for m in (margin, margin)]).contiguous()

    def takes(self, model: nn.Module) -> dict[Axis, Ints]:
        """Return the old place behind each new one along the kernel axes; -1 where zeros are put."""
        found: dict[Axis, Ints] = {}
        for number, (a, b) in enumerate(zip(self.before, self.after, strict=True)):
            index = np.arange(b) - (b - a) // 2
            index[(index < 0) | (index >= a)] = -1
            found |= {(name, model.get_parameter(name).ndim - len(self.after) + number): index for name in self.tensors}
        return found

    def mask(self, model: nn.Module) -> None:
        """Zero what a crop drops, in the original."""
        margins = [max(0, (a - b) // 2) for a, b in zip(self.before, self.after, strict=True)]
        whole = self._effective(model)
        for name in self.tensors:
            tensor = model.get_parameter(name)
            kept = torch.ones(self.before, dtype=torch.bool, device=tensor.device)
            for axis, (margin, size) in enumerate(zip(margins, self.before, strict=True)):
                rim = torch.tensor([*range(margin), *range(size - margin, size)], dtype=torch.long)
                kept.index_fill_(axis, rim.to(tensor.device), False)
            tensor.data.masked_fill_(~kept, 0.0)
        if whole is not None:
            self._regain(model, whole.masked_fill(~kept, 0.0))


@carries_out(Kernel)
def carry_out(architecture: Architecture, edits: Sequence[Kernel], options: Options) -> Outcome:
    """Change kernels in a copy of the model."""
    changes = [_change(architecture, edit) for edit in edits]
    before = weight_bytes(architecture.model)
    check_room(before, before + sum(c.more_bytes(architecture.model) for c in changes), options.verify, "these kernels")
    check_distinct([name for change in changes for name in change.tensors], "changed by two kernel edits")

    def promised(model: nn.Module) -> Run:
        for change in changes:
            change.mask(model)
        return model

    surgery = Structure(tuple(change.act for change in changes), promised)
    difference = measure(architecture, surgery) if options.verify else None
    note = ("its weight is computed (standardised) from what changed",) if difference and not difference.exact else ()
    macs = [macs_of_layers(architecture, c.layers) for c in changes]
    more = [n * math.prod(c.after) // math.prod(c.before) - n for n, c in zip(macs, changes, strict=True)]
    keeps = tuple(all(a >= b for a, b in zip(c.after, c.before, strict=True)) for c in changes)
    takes = {key: index for change in changes for key, index in change.takes(architecture.model).items()}
    return surgery.outcome(architecture, edits, difference, more, note, keeps, takes)


def why_not_kernel(architecture: Architecture, edit: Kernel) -> str | None:
    """Return why a kernel cannot change this way; ``None`` if it can. Nothing is changed."""
    return refusal(_change, architecture, edit)


def kernel_size(architecture: Architecture, layer: Layer) -> Sizes:
    """Return the kernel size of a convolution along each spatial axis."""
    node = next(n for n in architecture.capture.graph.nodes if n.name == layer.node)
    return shape_of(argument(node, "weight"))[2:]


def _change(architecture: Architecture, edit: Kernel) -> _Change:
    layer = architecture.layer(edit.target)
    check_alone(architecture, layer.name)
    if layer.kind != "conv":
        raise EditError(f"{edit.target} is no convolution (it is {layer.operator}); only those have kernels to change.")
    node = next(n for n in architecture.capture.graph.nodes if n.name == layer.node)
    weight, capture = argument(node, "weight"), architecture.capture
    before = kernel_size(architecture, layer)
    after = _wanted(edit, before)
    _check_fits(edit, node, layer, (before, after))
    tensors = tuple(n for n in sources_of(capture, weight) if tuple(capture.tensor(n).shape[2:]) == before)
    if not tensors:
        raise EditError(f"the kernel of {edit.target} is computed in its module, not stored; it cannot be changed.")
    path, layers = _owner(architecture, edit, layer, tensors)
    dilation = per_axis(argument(node, "dilation", 1), len(before))
    growth = tuple(d * (b - a) // 2 for d, a, b in zip(dilation, before, after, strict=True))
    padding = _padding(architecture, layer, path, (before, after), growth)
    gains = frozenset() if weight.name in capture.tensors else frozenset(scale_of(capture, weight) or ())
    return _Change(path, layers, tensors, before, after, padding, layer.input_shapes[0], gains - set(tensors))


def _wanted(edit: Kernel, before: Sizes) -> Sizes:
    sizes = whole_numbers(edit.size, len(before), f"the kernel of {edit.target}")
    odd = next(((a, b) for a, b in zip(before, sizes, strict=True) if (b - a) % 2), None)
    if odd is not None:
        raise EditError(
            f"the kernel of {edit.target} cannot go from {odd[0]} to {odd[1]}: its centre would move. "
            f"Sizes change by even numbers: {odd[1] - 1} or {odd[1] + 1}."
        )
    return sizes


def _check_fits(edit: Kernel, node: fx.Node, layer: Layer, kernels: tuple[Sizes, Sizes]) -> None:
    """A kernel must not be larger than the padded input."""
    before, after = kernels
    spatial = layer.input_shapes[0][-len(after) :]
    dilation = per_axis(argument(node, "dilation", 1), len(after))
    given = argument(node, "padding", 0)
    same = tuple(d * (k - 1) // 2 for d, k in zip(dilation, before, strict=True))
    padding = same if given == "same" else per_axis(0 if given == "valid" else given, len(after))
    for size, k, p, d in zip(spatial, after, padding, dilation, strict=True):
        if d * (k - 1) + 1 > size + 2 * p:
            raise EditError(
                f"the kernel of {edit.target} cannot be {k}: it would be larger than its padded input ({size + 2 * p})."
            )


def _owner(
    architecture: Architecture, edit: Kernel, layer: Layer, tensors: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
    path = tensors[0].rpartition(".")[0].partition(".parametrizations")[0]
    users = [other for other in architecture.layers if other.kind == "conv" and set(other.parameters) & set(tensors)]
    users = users or [layer]
    strangers = [u.name for u in users if u.name.partition("#")[0] != layer.name.partition("#")[0]]
    if strangers:
        raise EditError(f"the kernel of {edit.target} is shared with {', '.join(strangers)}; it cannot change alone.")
    return path, tuple(u.name for u in users)


def _padding(architecture: Architecture, layer: Layer, path: str, kernels: tuple[Sizes, Sizes], growth: Sizes) -> Sizes:
    """Return how much padding to add: what keeps the output's size when the module is run on empty tensors."""
    module = architecture.model.get_submodule(path)
    problem = "it gives another size"
    pads_itself = type(module).forward not in _PLAIN_FORWARDS  # such as TensorFlow's "same" padding
    for more in (growth, (0,) * len(growth)) if pads_itself else (growth,):
        try:
            shape = _run_empty(module, layer, kernels, more)
        except Exception as error:  # a module of the user's own may raise anything
            problem = str(error) if isinstance(error, EditError) else first_line(error).rstrip(".")
            continue
        if shape == layer.output_shape[1:]:
            return more
    wanted = "x".join(map(str, kernels[1]))
    raise EditError(f"the kernel of {layer.name} cannot become {wanted} with the output size kept: {problem}.")


_PLAIN_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PLAIN_FORWARDS = {kind.forward for kind in _PLAIN_KINDS}


def _run_empty(module: nn.Module, layer: Layer, kernels: tuple[Sizes, Sizes], more: Sizes) -> tuple[int, ...]:
    before, after = kernels
    trial = copied(module, {}).to("meta").eval()
    for name, tensor in list(trial.named_parameters()):
        if tuple(tensor.shape[2:]) == before:
            owner_path, _, leaf = name.rpartition(".")
            empty = torch.empty(*tensor.shape[:2], *after, device="meta", dtype=tensor.dtype)
            setattr(trial.get_submodule(owner_path), leaf, nn.Parameter(empty))
    _sync(trial, after, more)
    with torch.no_grad():
        dtype = next(trial.parameters()).dtype
        result = trial(torch.empty(layer.input_shapes[0], device="meta", dtype=dtype))
    assert isinstance(result, Tensor)
    return tuple(result.shape[1:])


def _sync(module: nn.Module, after: Sizes, more: Sizes) -> None:
    stored = getattr(module, "kernel_size", None)
    if stored is not None:
        module.kernel_size = after if isinstance(stored, tuple | list) else after[0]  # type: ignore[assignment]
    padding = getattr(module, "padding", None)
    if padding is None or padding == "same" or not any(more):
        return
    wider = tuple(p + m for p, m in zip(per_axis(0 if padding == "valid" else padding, len(more)), more, strict=True))
    if min(wider) < 0:
        raise EditError("its padding is too small for a smaller kernel to give the same size")
    module.padding = wider if isinstance(padding, tuple | list | str) else wider[0]  # type: ignore[assignment]
    if hasattr(module, "_reversed_padding_repeated_twice"):
        module._reversed_padding_repeated_twice = [p for p in reversed(wider) for _ in range(2)]  # type: ignore[assignment]

"""Computed weights: normalised and standardised ones do not scale with what they are computed from.

A weight-normalised or standardised layer turns its parameter into the weight that it uses. Repeating or dropping
input channels of the parameter changes the norm or the statistics of what is left, and with it every other channel.
Where a gain scales each output channel, that gain takes the change back.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from convwright.architecture.capture.graph import Capture, argument, module_path, operator_name, shape_of
from convwright.architecture.channels import Axis, ChannelGroup
from convwright.architecture.follow import Follower
from convwright.architecture.labels import Value, on_axis
from convwright.architecture.layers import kind_of, per_axis
from convwright.edits.remap import ChannelRemap
from convwright.edits.surgery import copied

# Operators that hand on a scale: zero stays zero, twice stays twice.
LINEAR = frozenset({
    "mul", "div", "view", "reshape", "reshape_as", "view_as", "expand", "expand_as", "permute", "transpose", "flatten",
    "unflatten", "squeeze", "unsqueeze", "clone", "contiguous", "alias", "detach", "to", "_to_copy", "_unsafe_view",
    "neg", "getitem", "slice", "narrow", "select", "movedim",
})  # fmt: skip


def sources_of(capture: Capture, weight: fx.Node) -> tuple[str, ...]:
    """Return the parameters that a weight is, or is computed from."""
    found: dict[str, None] = {}
    waiting = [weight]
    while waiting:
        node = waiting.pop()
        name = capture.tensors.get(node.name)
        if name is None:
            waiting.extend(node.all_input_nodes)
        elif name in capture.parameters:
            found[name] = None
    return tuple(found)


def scale_of(capture: Capture, node: fx.Node) -> set[str] | None:
    """Return parameters that a computed weight is proportional to; ``None`` if there are none.

    Args:
        capture: the network.
        node: the weight: a parameter itself, or what is computed from parameters.
    """
    name = capture.tensors.get(node.name)
    if name is not None:
        return {name} if name in capture.parameters else None
    if operator_name(node).startswith("_weight_norm"):
        return scale_of(capture, node.all_input_nodes[1])
    if operator_name(node) == "batch_norm":  # standardised: the scale of the norm is the gain
        gain = argument(node, "weight")
        return scale_of(capture, gain) if isinstance(gain, fx.Node) else None
    if operator_name(node) not in LINEAR:
        return None
    factors = reversed(node.all_input_nodes) if operator_name(node) == "mul" else node.all_input_nodes[:1]
    return next((found for n in factors if (found := scale_of(capture, n))), None)


_WEIGHTED = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class ComputedLayer:
    """A module that computes the weight of its one convolution or linear layer.

    Attributes:
        path: the module.
        node: the convolution or linear layer in the graph.
        weight: the node of the computed weight.
        inner: its input axis.
    """

    path: str
    node: fx.Node
    weight: fx.Node
    inner: int

    @property
    def input(self) -> fx.Node:
        """The node of what the module takes."""
        return self.node.all_input_nodes[0]


def computed_layers(plan: ChannelRemap) -> tuple[ComputedLayer, ...]:
    """Find the modules with computed weights, called once, one weighted operator each."""
    follower = plan.before.follower
    if follower not in _COMPUTED:
        _COMPUTED[follower] = tuple(_computed_layers(follower))
    return _COMPUTED[follower]


_COMPUTED: weakref.WeakKeyDictionary[Follower, tuple[ComputedLayer, ...]] = weakref.WeakKeyDictionary()


def _computed_layers(follower: Follower) -> Iterator[ComputedLayer]:
    capture = follower.capture
    nodes = [n for n in capture.graph.nodes if n.op == "call_function" and kind_of(n) in ("conv", "linear")]
    calls = Counter(module_path(node) for node in nodes)
    for node in nodes:
        weight = argument(node, "weight")
        path = module_path(node)
        if not isinstance(weight, fx.Node) or weight.name in capture.tensors or not path or calls[path] != 1:
            continue
        if module_path(node.all_input_nodes[0]) == path:  # the module rearranges its input first
            continue
        value = follower.values.get(weight.name)
        if isinstance(value, Value) and value.weight:
            yield ComputedLayer(path, node, weight, 0 if "transpose" in operator_name(node) else 1)


def gained_parameters(plan: ChannelRemap) -> frozenset[str]:
    """Return the parameters from which weights with a gain are computed, the gains left out."""
    capture = plan.before.follower.capture
    found: set[str] = set()
    for layer in computed_layers(plan):
        gains = scale_of(capture, layer.weight)
        sources = set(sources_of(capture, layer.weight))
        found |= sources - gains if gains and gains != sources else set()
    return frozenset(found)


# Statistics that channels of zeros behind all others leave as they are (a convolution along channels pads with zeros).
_BLIND_TO_ZEROS = frozenset({"linalg_vector_norm", "norm", "conv1d"})


def grows_by_zeros(group: ChannelGroup) -> bool:
    """Whether new channels of a group begin at zero, behind the old ones: its statistics see copies, and no zeros."""
    kinds = {operator.partition(" in ")[0] for operator in group.across}
    return bool(kinds & _BLIND_TO_ZEROS) and kinds <= _BLIND_TO_ZEROS | {"batch_norm"}


def silent_axes(plan: ChannelRemap, appended: Collection[str]) -> frozenset[Axis]:
    """Return what is scaled so that new channels of some groups begin at zero: producers, and what adds to them."""
    capture = plan.before.follower.capture
    adding = {
        capture.tensors.get(each.name)
        for node in capture.graph.nodes
        for name in ("bias", "running_mean", *(("self", "other") if operator_name(node) in ("add", "sub") else ()))
        if node.op == "call_function" and isinstance(each := argument(node, name), fx.Node)
    }
    gains = {gain for layer in computed_layers(plan) for gain in scale_of(capture, layer.weight) or ()} - plan.gained
    return frozenset(
        (member.tensor, member.axis)
        for name in appended
        for member in plan.before.group(name).members
        if member.tensor in adding | gains or (member.role == "out" and member.tensor not in plan.gained)
    )


def moved_statistics(group: ChannelGroup, size: int) -> tuple[str, ...]:
    """Return what another size of a group does to the statistics across it: none are moved where this is empty.

    Algebra makes up for copies in standardised filters (`compensate`), and for zeros (`grows_by_zeros`).
    """
    moved = []
    for operator in group.across:
        kind = operator.partition(" in ")[0]
        if size < group.size and kind == "batch_norm":
            moved.append(f"a filter standardised over these channels has mean zero, its kept part has not: {operator}")
        elif size < group.size:
            moved.append(f"a statistic runs across these channels, and dropped ones were part of it: {operator}")
        elif not grows_by_zeros(group) and kind != "batch_norm" and (size % group.size or kind not in _PROPORTIONAL):
            moved.append(f"a statistic runs across these channels, and copies weigh in it: {operator}")
    return tuple(moved)


# What equally many copies of every channel leave as it is.
_PROPORTIONAL = {"layer_norm", "group_norm", "rms_norm", "mean", "amax", "amin", "max", "min", "_weight_norm"}


def exact_sizes(groups: Iterable[tuple[ChannelGroup, int]]) -> tuple[str, ...]:
    """Return a note on the smallest exact sizes at or above those that groups grow to, where a statistic moves."""
    grown = [(g, -(-size // g.size)) for g, size in groups if size > g.size and moved_statistics(g, size)]
    exact = [(g, times) for g, times in grown if not moved_statistics(g, times * g.size)]
    sizes = [f"{g.name} to {times} x {g.size} = {times * g.size}" for g, times in exact]
    more = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
    return (f"whole multiples are exact: {', '.join(sizes[:3])}{more}",) if sizes else ()


def inexact_reasons(plan: ChannelRemap, name: str) -> tuple[str, ...]:
    """Return what can make another size of a group inexact: statistics across it, and weights computed from it."""
    group = plan.before.group(name)
    moved = moved_statistics(group, len(plan.chosen[name]) * group.step)
    tensors = {member.tensor for member in group.members}
    capture = plan.before.follower.capture
    computed = (layer.path for layer in computed_layers(plan) if tensors & set(sources_of(capture, layer.weight)))
    shares = [share.product for (tensor, _), share in plan.before.follower.shares.items() if tensor in tensors]
    told = " ".join(moved)
    others = [path for path in dict.fromkeys(computed) if f" in {path} (" not in told]
    return (
        *moved,
        *(f"the code computes a scale from the number of channels: {product}" for product in dict.fromkeys(shares)),
        *(f"the weight of {path} is computed from what changes" for path in others),
    )


def compensate(original: nn.Module, changed: nn.Module, plan: ChannelRemap) -> None:
    """Scale the gains of computed weights in a changed copy, so that its weights are those of the original.

    Per channel of the gain the factor is the least-squares one; where only the norm changed, it is exact.

    Args:
        original: the network before surgery.
        changed: the copy after it; its gains change in place.
        plan: the surgery.
    """
    capture = plan.before.follower.capture
    for layer in computed_layers(plan):
        names = scale_of(capture, layer.weight)
        takes = [plan.take_of(layer.weight.name, axis, axis == layer.inner) for axis in (0, 1)]
        if not names or takes == [None, None]:
            continue
        old, new = _effective(original, plan, layer, False), _effective(changed, plan, layer, True)
        if old is None or new is None:
            continue
        wanted = old
        for axis, take in enumerate(takes):
            wanted = wanted if take is None else take.of(wanted, axis)
        inner, outer = takes[layer.inner], takes[1 - layer.inner]
        if outer is not None and outer.fresh.any():
            wanted = outer.hushed(wanted, 1 - layer.inner)
        if inner is not None and inner.fresh.any():
            wanted = _balanced(wanted, inner.fresh, layer.inner)
        if wanted.shape == new.shape:  # the gain of a transposed convolution often lies along the input axis
            shape, usual = changed.get_parameter(min(names)).shape, 1 - layer.inner
            axis = next((axis for axis, size in enumerate(shape) if size > 1), usual) if len(shape) > 1 else usual
            factors = gain_factors(wanted, new, axis)
            grown = inner is not None and len(inner.index) > old.shape[layer.inner]
            if grown and not torch.allclose(new * on_axis(factors, axis, new.ndim), wanted):
                new = _computed_anew(changed, plan, layer, wanted, axis)
                factors = factors if new is None else gain_factors(wanted, new, axis)
            scale_gains(changed, names, factors)


def _balanced(weight: Tensor, fresh: npt.NDArray[np.bool_], axis: int) -> Tensor:
    """Take the mean of what reads new inputs out of each filter: standardised filters have none, the rest included."""
    places = torch.from_numpy(np.flatnonzero(fresh)).to(weight.device)
    part = weight.index_select(axis, places)
    others = [axis, *range(2, weight.ndim)]
    return weight.index_copy(axis, places, part - part.mean(others, keepdim=True))


def _computed_anew(
    changed: nn.Module, plan: ChannelRemap, layer: ComputedLayer, wanted: Tensor, axis: int
) -> Tensor | None:
    """Put the weight that a layer must use in place of the one parameter that it computes it from, gains aside.

    A standardised filter has mean zero, and keeps it when each copy of an input channel takes its share of it; the
    parameter that it was computed from has another mean, which shares of the parameter would weigh in another way.

    Returns:
        The weight that the layer uses now; None where it is computed from several parameters.
    """
    sources = {*sources_of(plan.before.follower.capture, layer.weight)} & plan.gained
    parameter = changed.get_parameter(min(sources)) if len(sources) == 1 else None
    if parameter is None or parameter.shape != wanted.shape:
        return None
    others = [other for other in range(wanted.ndim) if other != axis]
    spread, own = (each.std(others, correction=0, keepdim=True) for each in (parameter.detach(), wanted))
    with torch.no_grad():
        parameter.copy_(wanted * torch.where(own > 0, spread / own, 1.0))
    return _effective(changed, plan, layer, True)


def gain_factors(wanted: Tensor, got: Tensor, axis: int) -> Tensor:
    """Return, per channel along an axis, the factor that brings one weight nearest to the other."""
    others = [a for a in range(got.ndim) if a != axis]
    energy = (got * got).sum(others)
    return torch.where(energy > 0, (wanted * got).sum(others) / energy.clamp_min(torch.finfo(got.dtype).tiny), 1.0)


def scale_gains(changed: nn.Module, names: Collection[str], factors: Tensor) -> None:
    """Multiply the gains of output channels, in place."""
    for name in sorted(names):
        gain = changed.get_parameter(name)
        if gain.numel() == factors.numel():
            with torch.no_grad():
                gain.mul_(factors.reshape(gain.shape).to(gain.dtype))
            return


def _effective(model: nn.Module, plan: ChannelRemap, layer: ComputedLayer, after: bool) -> Tensor | None:
    graph = plan.after if after else plan.before
    value = graph.follower.values.get(layer.input.name)
    if not isinstance(value, Value):
        return None
    return effective_weight(model.get_submodule(layer.path), _smallest(layer, value.shape))


def effective_weight(module: nn.Module, shape: Sequence[int]) -> Tensor | None:
    """Run a module on zeros of a shape, and return the weight that it hands to its operator."""
    parameter = next(module.parameters(), None)
    if parameter is None:
        return None
    x = torch.zeros(*shape, dtype=parameter.dtype, device=parameter.device)
    spy = _Spy()
    try:
        with torch.no_grad(), spy:
            copied(module, {}).eval()(x)
    except Exception:  # a module of the user's own may need more than zeros; then nothing is compensated
        return None
    return spy.weight


def _smallest(layer: ComputedLayer, shape: tuple[int, ...]) -> tuple[int, ...]:
    kernel = shape_of(layer.weight)[2:]
    if not kernel:
        return shape
    dilation = per_axis(argument(layer.node, "dilation", 1), len(kernel))
    return (1, shape[1], *(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)))


class _Spy(TorchFunctionMode):
    """Notes the weight of the last convolution or linear layer."""

    weight: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WEIGHTED:
            found = (kwargs or {}).get("weight", args[1] if len(args) > 1 else None)
            self.weight = found.detach() if isinstance(found, Tensor) else None
        return func(*args, **(kwargs or {}))


def silence_inputs(model: nn.Module, plan: ChannelRemap) -> set[str]:
    """Make modules with computed weights multiply dropped input channels by zero, in place.

    Zeros in the parameter would change the norm or statistics of the rest.

    Returns:
        The parameters whose masking this replaces.
    """
    replaced: set[str] = set()
    for layer in computed_layers(plan):
        value = plan.before.follower.values.get(layer.input.name)
        dropped = plan.dropped_on(value) if isinstance(value, Value) else None
        if dropped is None or not len(dropped):
            continue
        model.get_submodule(layer.path).register_forward_pre_hook(partial(_silence, torch.from_numpy(dropped)))
        owned = plan.before.follower.capture.parameters
        replaced |= {name for name in owned if name.startswith(f"{layer.path}.")}
    return replaced


def _silence(dropped: Tensor, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, axis = args[0], -1 if isinstance(module, nn.Linear) else 1
    return (x.index_fill(axis, dropped.to(x.device), 0.0), *args[1:])

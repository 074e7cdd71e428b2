"""Surgery: cut and repeat the tensors of a copied model so that its channel groups get new sizes.

Shrinking and growing are one operation: every axis gets a list of old indices, with gaps or with repeats. The
lists come from two walks over the graph, before and after: a new channel takes the indices of the old channel that
it continues, wherever the shape operators put them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from convwright.architecture.capture import first_line, module_path, user_frame
from convwright.architecture.channels import Axis, ChannelGraph, ChannelGroup, Ints, Member
from convwright.architecture.labels import Value
from convwright.edits.edit import Moved
from convwright.errors import EditError

Signature = tuple[tuple[str, int, int], ...]


def signature(group: ChannelGroup) -> Signature:
    """Return what identifies a group in both walks: the axes it lies on, with multiplicity."""
    return tuple((m.tensor, m.axis, m.per_channel) for m in group.members)


@dataclass(frozen=True, eq=False)
class Take:
    """The old index behind every new index of one axis, and how often its channel now occurs."""

    index: Ints
    copies: Ints


@dataclass(frozen=True, eq=False)
class Recipe:
    """Everything that turns the old tensors into the new ones.

    Attributes:
        before: the channel analysis of the network as it is.
        after: the analysis under the new sizes.
        chosen: group name -> the old channel (rank) behind each new one.
        takes: (tensor, axis) -> the indices to take, for axes that change.
    """

    before: ChannelGraph
    after: ChannelGraph
    chosen: Mapping[str, Ints]
    takes: Mapping[Axis, Take] = field(repr=False)

    def new_tensor(self, name: str, old: Tensor, divide: bool = True) -> Tensor:
        """Return a tensor's successor.

        Args:
            name: its qualified name.
            old: the tensor, or anything of its shape (a momentum buffer).
            divide: share a repeated channel's weight among its copies, on axes that are summed over.
        """
        new = old
        for axis in range(old.ndim):
            take = self.takes.get((name, axis))
            if take is None:
                continue
            new = new.index_select(axis, torch.from_numpy(take.index).to(old.device))
            if divide and bool((take.copies > 1).any()) and new.is_floating_point():
                shape = [1] * new.ndim
                shape[axis] = len(take.copies)
                copies = torch.from_numpy(take.copies).to(new.device, new.dtype)
                new = new / copies.reshape(shape)
        return new


def recipe(before: ChannelGraph, after: ChannelGraph, chosen: Mapping[str, Ints]) -> Recipe:
    """Work out the index lists of every axis that changes.

    Args:
        before: the analysis of the network as it is.
        after: the analysis under the new sizes.
        chosen: by group name, the old channel behind each new channel, in order.
    """
    origin = _origin(before, after, chosen)
    roles = {(m.tensor, m.axis, g.name): m for g in before.groups for m in g.members}
    takes = {}
    for axis in before.follower.atoms:
        take = _take(before, after, origin, axis, roles)
        if take is not None:
            takes[axis] = take
    return Recipe(before, after, chosen, takes)


def _origin(before: ChannelGraph, after: ChannelGraph, chosen: Mapping[str, Ints]) -> Ints:
    """Return, for each new channel, the old channel it continues; -1 where there is none."""
    by_signature = {signature(g): g.name for g in before.groups}
    members = _members(before)
    origin = np.full(len(after.group_of), -1, dtype=np.int64)
    for group, channels in _members(after).items():
        old_name = by_signature[signature(after.group(group))]
        ranks = chosen.get(old_name)
        old = members[old_name]
        origin[channels] = old if ranks is None else old[ranks]
    return origin


def _members(graph: ChannelGraph) -> dict[str, Ints]:
    """Return each group's channels in rank order."""
    result = {}
    for index, group in enumerate(graph.groups):
        channels = np.flatnonzero(graph.group_of == index)
        result[group.name] = channels[np.argsort(graph.rank[channels], kind="stable")]
    return result


def _take(
    before: ChannelGraph,
    after: ChannelGraph,
    origin: Ints,
    axis: Axis,
    roles: Mapping[tuple[str, int, str], Member],
) -> Take | None:
    old = before.channels_of(before.axis_labels(axis))
    new_own = after.channels_of(after.axis_labels(axis))
    if not (before.group_of[old] >= 0).any():
        return None  # kernel axes and the like
    new = origin[new_own]
    if len(old) == len(new) and (old == new).all():
        return None
    index = _lookup(old, new, new_own, axis)
    group = before.group_of[old[index]]
    summed = np.array([(*axis, g.name) in roles and roles[(*axis, g.name)].role == "in" for g in before.groups])
    times = np.bincount(origin[origin >= 0], minlength=len(before.group_of))
    copies = np.where(summed[group] & (group >= 0), times[old[index]], 1)
    return Take(index, copies)


def _lookup(old: Ints, origin: Ints, new: Ints, axis: Axis) -> Ints:
    """Find where on the old axis each new index comes from.

    A channel may lie on an axis several times (behind a flatten, in a grouped convolution): its n-th new
    place continues its n-th old place.

    Args:
        old: the channel of each old index.
        origin: the old channel that each new index continues.
        new: the channel of each new index.
        axis: for the error message.
    """
    order = np.argsort(old, kind="stable")
    starts = np.searchsorted(old[order], origin, side="left")
    counts = np.searchsorted(old[order], origin, side="right") - starts
    if (counts == 0).any():
        raise EditError(f"axis {axis[1]} of {axis[0]} would need channels that it does not have.")
    return order[starts + _occurrence(new) % counts]


def _occurrence(values: Ints) -> Ints:
    """Return, for each entry, how many equal entries stand before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.searchsorted(ordered, ordered, side="left")
    result = np.empty(len(values), dtype=np.int64)
    result[order] = np.arange(len(values)) - first
    return result


# ------------------------------------------------------------------ on a model


def operate(model: nn.Module, plan: Recipe) -> tuple[nn.Module, dict[int, Moved]]:
    """Return a changed copy of a model, and where each parameter went.

    The class, its other attributes, devices, dtypes, ``requires_grad`` and training modes are kept.

    Raises:
        EditError: if the model cannot be copied.
    """
    old = _named_tensors(model)
    successors = _successors(old, plan)
    changed = _copied(model, successors)
    _sync_attributes(changed, plan, {name for name, tensor in old.items() if id(tensor) in successors})
    moved: dict[int, Moved] = {}
    for name, final in _named_tensors(changed).items():
        if isinstance(final, nn.Parameter) and name in old:
            moved.setdefault(id(old[name]), Moved(final, _taker(plan, name)))
    return changed, moved


def _successors(old: Mapping[str, Tensor], plan: Recipe) -> dict[int, Tensor]:
    """Return the new tensors by the identity of the old ones, so that shared ones stay shared."""
    touched = {tensor for tensor, _ in plan.takes}
    made: dict[int, Tensor] = {}
    for name, tensor in old.items():
        if name in touched and id(tensor) not in made:
            value = plan.new_tensor(name, tensor.detach()).contiguous()
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
    return made


def _copied(model: nn.Module, successors: Mapping[int, Tensor]) -> nn.Module:
    """Deep-copy a model with some tensors replaced on the way, without copying those first."""
    try:
        return copy.deepcopy(model, dict(successors))
    except Exception as error:
        raise EditError(f"{type(model).__name__} cannot be copied: {error}") from error


def _taker(plan: Recipe, name: str) -> Callable[[Tensor], Tensor]:
    return lambda state: plan.new_tensor(name, state, divide=False)


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _sync_attributes(model: nn.Module, plan: Recipe, changed: Iterable[str]) -> None:
    """Make the sizes that modules store agree with their tensors (under all names of shared ones)."""
    touched = {tensor.rpartition(".")[0] for tensor in changed}
    group_counts = _group_counts(plan.after)
    for name, module in model.named_modules(remove_duplicate=False):
        if name in group_counts and isinstance(getattr(module, "groups", None), int):
            module.groups = group_counts[name]
        if name in touched or any(t.startswith(f"{name}.parametrizations") for t in touched):
            sync_module(module)
            _sync_stored(module, name, plan)
    _sync_feature_info(model, plan)


# Names under which modules store the width of their own tensors (BlurPool's ``channels``, ...).
_WIDTH_ATTRIBUTES = ("channels", "num_channels", "num_features", "in_channels", "out_channels", "dim", "features")


def _sync_stored(module: nn.Module, name: str, plan: Recipe) -> None:
    """Update widths that a module of an unknown class stores beside the tensors it owns."""
    if type(module).__module__.startswith("torch.nn"):
        return
    sizes = {}
    for (tensor, axis), take in plan.takes.items():
        if tensor.rpartition(".")[0] == name:
            sizes[plan.before.axis_labels((tensor, axis)).numel()] = len(take.index)
    for attribute in _WIDTH_ATTRIBUTES:
        stored = vars(module).get(attribute)
        if isinstance(stored, int) and stored in sizes:
            setattr(module, attribute, sizes[stored])


def _group_counts(graph: ChannelGraph) -> dict[str, int]:
    """Return the group count of each module's convolution under the new sizes."""
    follower = graph.follower
    captures = [("", follower.capture), ("training/", follower.capture.training)]
    return {
        module_path(node): follower.groups[prefix + node.name]
        for prefix, capture in captures
        for node in (capture.graph.nodes if capture is not None else ())
        if prefix + node.name in follower.groups
    }


def sync_module(module: nn.Module) -> None:
    """Set ``in_channels``, ``num_features`` and the like from the module's tensors."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, nn.modules.conv._ConvNd):
        inner, outer = weight.shape[1] * module.groups, weight.shape[0]
        if module.transposed:
            inner, outer = weight.shape[0], weight.shape[1] * module.groups
        module.in_channels, module.out_channels = inner, outer
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]


def _sync_feature_info(model: nn.Module, plan: Recipe) -> None:
    """Update timm's description of its feature maps, and the width of the last one."""
    info = getattr(model, "feature_info", None)
    entries = info if isinstance(info, list) else getattr(info, "info", None)
    for entry in entries or ():
        width = _output_width(plan.after, str(entry.get("module", ""))) if isinstance(entry, dict) else None
        if width is not None:
            entry["num_chs"] = width
    features = getattr(model, "num_features", None)
    if isinstance(features, int) and (width := _classifier_width(plan, features)) is not None:
        for attribute in ("num_features", "head_hidden_size"):
            if getattr(model, attribute, None) == features:
                setattr(model, attribute, width)


def _output_width(graph: ChannelGraph, module: str) -> int | None:
    """Return the channels that leave a module under the new sizes."""
    last = None
    for node in graph.follower.capture.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if node.op == "call_function" and any(entry[0] == module for entry in stack.values()):
            last = node
    value = graph.follower.values.get(last.name) if last is not None else None
    return value.shape[1] if isinstance(value, Value) and value.ndim > 1 else None


def _classifier_width(plan: Recipe, old: int) -> int | None:
    """Return the new input width of the last linear layer, if it was ``old`` before."""
    for tensor, axis in reversed(list(plan.before.follower.atoms)):
        if axis == 1 and tensor.endswith("weight"):
            before = plan.before.axis_labels((tensor, axis)).numel()
            return plan.after.axis_labels((tensor, axis)).numel() if before == old else None
    return None


# ------------------------------------------------------------------ measuring


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a float64 copy in eval mode with random weights and statistics.

    Initial values hide errors: zero biases, unit variances, zero-initialised last scales. Weights get
    variance 2 / fan-in.
    """
    generator = torch.Generator().manual_seed(seed)
    successors: dict[int, Tensor] = {}
    for name, tensor in _named_tensors(model).items():
        if id(tensor) not in successors and tensor.is_floating_point():
            value = _random_like(name, tensor, generator).to(tensor.device)
            is_parameter = isinstance(tensor, nn.Parameter)
            successors[id(tensor)] = nn.Parameter(value) if is_parameter else value
    return _copied(model, successors).double().eval()


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


def _random_like(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    value = torch.empty(tensor.shape, dtype=torch.float64)
    if name.endswith("running_var"):
        return value.uniform_(0.5, 1.5, generator=generator)
    if tensor.ndim == 1 and name.endswith(("weight", "gamma", "gain")):
        return value.uniform_(0.2, 0.8, generator=generator)  # below 1: residual streams must not explode
    fan_in = math.prod(tensor.shape[1:]) if tensor.ndim > 1 else 50
    bound = math.sqrt(6.0 / max(fan_in, 1))  # variance 2 / fan-in; uniform, being quicker than normal
    return value.uniform_(-bound, bound, generator=generator)


def mask(model: nn.Module, plan: Recipe) -> None:
    """Zero, in place, what consumers take from channels that the recipe drops.

    Afterwards the old network computes what the shrunk one promises to.
    """
    tensors = _named_tensors(model)
    members = _members(plan.before)
    for name, ranks in plan.chosen.items():
        dropped = np.delete(members[name], np.unique(ranks))
        if not len(dropped):
            continue
        for member in plan.before.group(name).members:
            if member.role != "in":
                continue
            on_axis = plan.before.channels_of(plan.before.axis_labels((member.tensor, member.axis)))
            gone = torch.from_numpy(np.flatnonzero(np.isin(on_axis, dropped)))
            tensor = tensors[member.tensor]
            tensor.data.index_fill_(member.axis, gone.to(tensor.device), 0.0)


def measure(model: nn.Module, plan: Recipe, example_input: Tensor, seed: int = 0) -> float:
    """Return how far the changed network is from what the edit promises.

    Both run in float64 on the same random input with random weights and statistics; the original has what
    its consumers take from dropped channels set to zero. Backward runs too, so that a broken graph shows.

    Returns:
        The largest absolute difference, divided by the largest output where that exceeds 1.

    Raises:
        EditError: if the changed network does not run; names the line where it stops.
    """
    original = randomise(model, seed)
    _settle_statistics(original, example_input, seed)
    changed, _ = operate(original, plan)
    mask(original, plan)
    x = _random_input(example_input, seed + 1)
    with torch.no_grad():
        expected = tensors_in(original(x))
    got = _forward_backward(changed, x.requires_grad_())
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
            f"the network does not run with these widths{f' at {where}' if where else ''}: {first_line(error)} "
            "A size is written down there; take it from a tensor's shape instead."
        ) from error
    return outputs


def tensors_in(output: object) -> list[Tensor]:
    """Return the tensors inside a model's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in tensors_in(value)]
    if isinstance(output, tuple | list):
        return [t for value in output for t in tensors_in(value)]
    return []

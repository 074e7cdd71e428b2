"""Surgery: cut and repeat the tensors of a copied model so that its channel groups get new sizes.

The sizes that modules store beside their tensors follow.
"""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from convwright.architecture.capture.graph import module_path, module_paths, operator_name
from convwright.architecture.capture.pytrees import tensors_of
from convwright.architecture.channels import ChannelGraph
from convwright.architecture.labels import Value, on_axis
from convwright.edits.edit import Moved
from convwright.edits.remap import ChannelRemap, members_of
from convwright.errors import EditError

# Names under which modules store the width of their own tensors (BlurPool's ``channels``, ...).
_WIDTH_ATTRIBUTES = ("channels", "num_channels", "num_features", "in_channels", "out_channels", "dim", "features")


_KNOWN = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    nn.PReLU,
)  # fmt: skip
# What they call the length of their tensors.
_COUNTED: dict[type[nn.Module], str] = {
    nn.modules.batchnorm._NormBase: "num_features", nn.GroupNorm: "num_channels", nn.PReLU: "num_parameters",
}  # fmt: skip


def operate(model: nn.Module, plan: ChannelRemap, hollow: bool = False) -> tuple[nn.Module, dict[int, Moved]]:
    """Return a changed copy of a model, and where each parameter and buffer went.

    The class, its other attributes, devices, dtypes, ``requires_grad`` and training modes are kept.

    Args:
        model: the network.
        plan: what to take from its tensors.
        hollow: make new tensors of the right shape only, zeros, and share the others with the original.

    Raises:
        EditError: if the model cannot be copied.
    """
    old = named_tensors(model)
    touched = {tensor for tensor, _ in plan.takes}

    def successor(name: str, tensor: Tensor) -> Tensor | None:
        if name not in touched:
            return None
        if hollow:
            return torch.zeros(plan.new_shape(name, tensor.shape), dtype=tensor.dtype, device=tensor.device)
        return plan.new_tensor(name, tensor.detach()).contiguous()

    successors = stand_ins(model, successor)
    shared = {id(tensor): tensor for tensor in old.values()} | plain_tensors(model) if hollow else {}
    changed = copied(model, shared | successors)
    _sync_attributes(changed, plan, {name for name, tensor in old.items() if id(tensor) in successors})
    moved: dict[int, Moved] = {}
    for name, final in named_tensors(changed).items():
        if name in old:
            moved.setdefault(id(old[name]), Moved(final, partial(plan.new_tensor, name, divide=False)))
    return changed, moved


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Deep-copy a model; what ``memo`` has in place of an object is taken for it, and it notes all others' copies."""
    for value in (value for module in model.modules() for value in vars(module).values()):
        # Computed by a hook at each pass (the older weight_norm): it carries a graph, which cannot be copied.
        if isinstance(value, Tensor) and not value.is_leaf and id(value) not in memo:
            memo[id(value)] = value.detach()
    try:
        return _copy_module(model, memo)
    except Exception as error:
        raise EditError(f"{_uncopied(model)} cannot be copied: {error}. Make it in forward instead.") from error


_ATOMIC = frozenset({bool, int, float, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size})


def _copy_module(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Do what ``copy.deepcopy`` does, several times faster: modules are copied one by one, not by recursion."""
    # mypy: a type is no Hashable
    plain = [m for m in model.modules() if id(m) not in memo and _copies_plainly(type(m))]  # type: ignore[arg-type]
    memo.update((id(module), type(module).__new__(type(module))) for module in plain)
    for module in plain:
        state = module.__getstate__()  # type: ignore[no-untyped-call]  # without what torch leaves out of a copy
        state = vars(module) if state is None else state
        memo[id(module)].__setstate__({n: _copy_value(value, memo) for n, value in state.items()})
    return copy.deepcopy(model, memo)


@lru_cache(maxsize=1024)
def _copies_plainly(kind: type[nn.Module]) -> bool:
    """Whether instances of a class are copied by their attributes alone, as torch does it."""
    own = any(hasattr(kind, name) for name in ("__deepcopy__", "__slots__", "__getnewargs__", "__getnewargs_ex__"))
    reduced = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    states = (kind.__setstate__, getattr(kind, "__getstate__", None))
    theirs = all(getattr(each, "__module__", None) in (None, *_TORCH_STATES) for each in states)
    return reduced and theirs and not own


_TORCH_STATES = tuple(f"torch.nn.modules.{name}" for name in ("module", "conv", "activation", "rnn", "transformer"))


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMIC or (kind is tuple and _ATOMIC.issuperset(map(type, value))):
        return value
    made = memo.get(id(value))
    if made is None and kind in (dict, OrderedDict):
        made = memo[id(value)] = kind()
        for key, each in value.items():
            made[_copy_value(key, memo)] = _copy_value(each, memo)
    if made is None and kind is set:
        made = memo[id(value)] = {_copy_value(each, memo) for each in value}
    return copy.deepcopy(value, memo) if made is None else made


def check_copies(model: nn.Module) -> None:
    """Refuse a model that cannot be copied: every edit works on a copy.

    Raises:
        EditError: Names the attribute.
    """
    copied(model, dict(stand_ins(model, lambda _, tensor: torch.empty(0))))


def _uncopied(model: nn.Module) -> str:
    """Name the attribute of a model that cannot be copied, or the model itself."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_"):
                try:
                    copy.deepcopy(value)
                except Exception:
                    return f"{'.'.join(filter(None, (path, name)))} of {type(model).__name__}"
    return type(model).__name__


def stand_ins(model: nn.Module, make: Callable[[str, Tensor], Tensor | None]) -> dict[int, Tensor]:
    """Return what is made in place of parameters and buffers, by identity, so that shared ones stay shared."""
    made: dict[int, Tensor] = {}
    for name, tensor in named_tensors(model).items():
        new = None if id(tensor) in made else make(name, tensor)
        if new is not None:
            made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    return made


def plain_tensors(model: nn.Module) -> dict[int, Tensor]:
    """Return the tensors that modules keep as plain attributes, or in lists and dictionaries there, by identity."""
    found: dict[int, Tensor] = {}
    named = {id(tensor) for tensor in named_tensors(model).values()}
    for module in model.modules():
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")}
        found |= {id(tensor): tensor for tensor in tensors_in(own) if id(tensor) not in named}
    return found


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, shared ones under each of their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def mask(model: nn.Module, plan: ChannelRemap, besides: Collection[str] = ()) -> None:
    """Zero, in place, what consumers take from channels that the recipe drops.

    Afterwards the old network computes what the shrunk one promises to.

    Args:
        model: the network.
        plan: the recipe.
        besides: parameters to leave alone: their readers are silenced in another way.
    """
    tensors = named_tensors(model)
    members = members_of(plan.before)
    for name, ranks in plan.chosen.items():
        dropped = np.delete(members[name], np.unique(ranks))
        if not len(dropped):
            continue
        for member in plan.before.group(name).members:
            if member.role != "in" or member.tensor in besides:
                continue
            channels = plan.before.channels_of(plan.before.axis_labels((member.tensor, member.axis)))
            _zero(tensors[member.tensor], member.axis, np.isin(channels, dropped))
        for (name, axis), share in plan.before.follower.shares.items():  # what multiplies them: zero, too
            channels = plan.before.channels_of(plan.before.axis_labels((name, axis)))
            _zero(tensors[name], axis, np.isin(channels, dropped) & share.entries.numpy())


def _zero(tensor: Tensor, axis: int, places: npt.NDArray[np.bool_]) -> None:
    kept = torch.from_numpy(~places).to(tensor.device, tensor.dtype)
    tensor.data.mul_(on_axis(kept, axis, tensor.ndim))


def tensors_in(output: object) -> list[Tensor]:
    """Return the tensors inside a model's output, in order."""
    return [tensor for _, tensor in tensors_of(output)]


MOST_CHANNELS = 2**20  # of one group; beyond, the analysis itself would need gigabytes


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, shared ones once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def check_room(before: int, after: int, verify: bool, what: str) -> None:
    """Refuse weights that are larger than the machine's memory.

    Args:
        before: bytes of the network's parameters and buffers as it is.
        after: bytes after the edit.
        verify: whether both are measured side by side in float64, which takes twice as much of each again.
        what: the edit, for the message.

    Raises:
        EditError: if they do not fit.
    """
    memory = _memory()
    needed = before + after + (2 * (before + after) if verify else 0)
    if memory is not None and after > before and needed > memory:
        hint = "; verify=False needs a third" if verify else ""
        raise EditError(
            f"{what} would need {needed / 2**30:,.1f} GiB for weights{hint}; "
            f"this machine has {memory / 2**30:,.1f} GiB of memory."
        )


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return None


# ------------------------------------------------------------------ sizes that modules store beside their tensors


def _sync_attributes(model: nn.Module, plan: ChannelRemap, changed: Iterable[str]) -> None:
    """Make the sizes that modules store agree with their tensors (under all names of shared ones)."""
    touched = {tensor.partition(".parametrizations")[0] for tensor in changed if ".parametrizations" in tensor}
    touched |= {tensor.rpartition(".")[0] for tensor in changed}
    group_counts = _group_counts(plan.after)
    for name, module in model.named_modules(remove_duplicate=False):
        if name in group_counts and isinstance(getattr(module, "groups", None), int):
            module.groups = group_counts[name]
        if name in touched:
            _sync_module(module)
            _sync_stored(module, name, plan)
    _sync_bare_norms(model, plan.after)
    _sync_feature_info(model, plan)
    _sync_announced(model, plan)


def _sync_bare_norms(model: nn.Module, graph: ChannelGraph) -> None:
    """Update the width that norms without any tensors store: they warn at each pass where it is another."""
    follower, modules = graph.follower, dict(model.named_modules())
    for node in follower.capture.graph.nodes:
        norm, value = modules.get(module_path(node)), follower.values.get(node.name)
        if not isinstance(norm, nn.modules.batchnorm._NormBase) or norm.state_dict():
            continue
        if operator_name(node).endswith("_norm") and isinstance(value, Value) and value.ndim > 1:
            norm.num_features = value.shape[1]


def _sync_stored(module: nn.Module, name: str, plan: ChannelRemap) -> None:
    """Update widths that a module of an unknown class stores beside the tensors it owns."""
    if isinstance(module, _KNOWN) or type(module).__module__.startswith("torch.nn"):
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
    follower = graph.follower
    captures = [("", follower.capture), ("training/", follower.capture.training)]
    return {
        module_path(node): follower.groups[prefix + node.name]
        for prefix, capture in captures
        for node in (capture.graph.nodes if capture is not None else ())
        if prefix + node.name in follower.groups
    }


def _sync_module(module: nn.Module) -> None:
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        layer = "_l0" if isinstance(module, nn.RNNBase) else ""
        sizes = (getattr(module, f"weight_{matrix}{layer}").shape[1] for matrix in ("ih", "hh"))
        module.input_size, module.hidden_size = sizes
    if isinstance(module, nn.MultiheadAttention):
        queries = module.q_proj_weight if module.in_proj_weight is None else module.in_proj_weight
        module.embed_dim = queries.shape[1]
        module.head_dim = module.embed_dim // module.num_heads
        others = module.k_proj_weight, module.v_proj_weight
        module.kdim, module.vdim = (module.embed_dim if each is None else each.shape[1] for each in others)
    weight = getattr(module, "weight", None)
    if weight is None:
        weight = getattr(module, "running_mean", None)  # a norm without scale and shift
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, nn.modules.conv._ConvNd):
        inner, outer = weight.shape[1] * module.groups, weight.shape[0]
        if module.transposed:
            inner, outer = weight.shape[0], weight.shape[1] * module.groups
        module.in_channels, module.out_channels = inner, outer
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    for kind, attribute in _COUNTED.items():
        if isinstance(module, kind):
            setattr(module, attribute, weight.shape[0])


def _sync_feature_info(model: nn.Module, plan: ChannelRemap) -> None:
    """Update timm's description of its feature maps, and the width of the last one."""
    info = getattr(model, "feature_info", None)
    entries = info if isinstance(info, list) else getattr(info, "info", None)
    graph = plan.after.follower
    leaving = dict(zip(getattr(info, "out_indices", ()), graph.capture.outputs, strict=False))  # of a backbone
    for place, entry in enumerate(entries or ()):
        width = _output_width(plan.after, str(entry.get("module", ""))) if isinstance(entry, dict) else None
        if isinstance(value := graph.values.get(leaving.get(place, "")), Value) and isinstance(entry, dict):
            width = value.shape[1] if value.plane_at(1) is not None else value.shape[-1]
        if width is not None:
            entry["num_chs"] = width
    features = getattr(model, "num_features", None)
    if isinstance(features, int) and (width := _classifier_width(plan, features)) is not None:
        for attribute in ("num_features", "head_hidden_size"):
            if getattr(model, attribute, None) == features:
                setattr(model, attribute, width)


def _sync_announced(model: nn.Module, plan: ChannelRemap) -> None:
    """Update the widths of maps that a backbone announces as its ``out_channels``: of all maps, or of one each."""
    before, after = plan.before.follower, plan.after.follower
    modules = {name: module for name, module in model.named_modules() if not isinstance(module, _KNOWN)}
    announced = [(n, key) for n, m in modules.items() for key in ("out_channels", "_out_channels") if key in vars(m)]
    widths: dict[str, dict[int, set[int]]] = {name: {} for name, _ in announced}
    for node in before.capture.graph.nodes if announced else ():
        values = before.values.get(node.name), after.values.get(node.name)
        if node.users and all(isinstance(value, Value) and value.ndim > 1 for value in values):
            within = set.intersection(*(set(module_paths(user)) for user in node.users))
            for name in (widths.keys() & set(module_paths(node))) - within:  # what leaves the module
                widths[name].setdefault(values[0].shape[1], set()).add(values[1].shape[1])  # type: ignore[union-attr]
    for name, key in announced:
        now = {old: new for old, (new, *others) in widths[name].items() if not others}
        stored = vars(modules[name])[key]
        if isinstance(stored, int):
            setattr(modules[name], key, now.get(stored, stored))
        elif type(stored) in (list, tuple):
            setattr(modules[name], key, type(stored)(now.get(width, width) for width in stored))


def _output_width(graph: ChannelGraph, module: str) -> int | None:
    calls = (n for n in reversed(graph.follower.capture.graph.nodes) if n.op == "call_function")
    last = next((node.name for node in calls if module in module_paths(node)), "")
    value = graph.follower.values.get(last)
    return value.shape[1] if isinstance(value, Value) and value.ndim > 1 else None


def _classifier_width(plan: ChannelRemap, old: int) -> int | None:
    for tensor, axis in reversed(list(plan.before.follower.atoms)):
        if axis == 1 and tensor.endswith("weight"):
            before = plan.before.axis_labels((tensor, axis)).numel()
            return plan.after.axis_labels((tensor, axis)).numel() if before == old else None
    return None


# ------------------------------------------------------------------ optimizers


def optimizer_follows(optimizer: Any, model: nn.Module, moved: Mapping[int, Moved]) -> None:
    """Put a changed copy's parameters into an optimizer, in place of the original's.

    State of a parameter's shape is cut, repeated or padded like the parameter. Parameters that went are dropped; new
    ones join the first parameter group. Parameters that the optimizer did not have stay outside.

    Args:
        optimizer: over the original's parameters.
        model: the changed copy.
        moved: the successor of each parameter of the original, by identity.
    """
    for group in optimizer.param_groups:
        kept = [(p, moved[id(p)]) for p in group["params"] if id(p) in moved]
        gone = [p for p in group["params"] if id(p) not in moved]
        for parameter in gone:
            optimizer.state.pop(parameter, None)
        group["params"] = [_follow(optimizer, parameter, successor) for parameter, successor in kept]
    inherited = {id(successor.new) for successor in moved.values()}
    optimizer.param_groups[0]["params"] += [p for p in model.parameters() if id(p) not in inherited]


def _follow(optimizer: Any, parameter: nn.Parameter, successor: Moved) -> Tensor:
    state = optimizer.state.pop(parameter, None)
    if state is not None:
        optimizer.state[successor.new] = {
            key: successor.take(value) if getattr(value, "shape", None) == parameter.shape else value
            for key, value in state.items()
        }
    return successor.new

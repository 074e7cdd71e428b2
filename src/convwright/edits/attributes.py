"""Sizes that modules store beside their tensors: kept equal to the tensors after surgery."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from convwright.architecture.capture.exported import module_path
from convwright.architecture.labels import Value

if TYPE_CHECKING:
    from convwright.architecture.channels import ChannelGraph
    from convwright.edits.surgery import ChannelRemap


def sync_attributes(model: nn.Module, plan: ChannelRemap, changed: Iterable[str]) -> None:
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


_KNOWN = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    nn.PReLU,
)  # fmt: skip


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
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]


def _sync_feature_info(model: nn.Module, plan: ChannelRemap) -> None:
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


def _classifier_width(plan: ChannelRemap, old: int) -> int | None:
    """Return the new input width of the last linear layer, if it was ``old`` before."""
    for tensor, axis in reversed(list(plan.before.follower.atoms)):
        if axis == 1 and tensor.endswith("weight"):
            before = plan.before.axis_labels((tensor, axis)).numel()
            return plan.after.axis_labels((tensor, axis)).numel() if before == old else None
    return None

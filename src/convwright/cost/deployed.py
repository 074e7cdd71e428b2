"""Networks as they are deployed: branches that were only for training are one convolution, batch norms are in weights.

Both are checked: in double precision the outputs must stay the same, else the network stays as it is.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

from convwright.architecture import Architecture, read
from convwright.architecture.capture.graph import in_mode, quiet_torch
from convwright.architecture.capture.pytrees import Inputs, mapped, tensors_of
from convwright.errors import ConvwrightError

EXACT = 1e-10  # of the largest output, in double precision
_MERGES = ("reparameterize", "switch_to_deploy", "fuse")  # what timm and authors call it; of a block
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


@dataclass(frozen=True)
class Deployed:
    """A network that computes the same with fewer operators.

    Attributes:
        model: In eval mode; a copy where anything was done.
        blocks: Names of the blocks whose branches became one convolution.
        norms: Names of the batch norms that went into the weights before them.
        left: Why blocks stayed as they are; "": none did.
    """

    model: nn.Module
    blocks: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    left: str = ""


def deployed(arch: Architecture) -> Deployed:
    """Merge the branches of re-parametrisable blocks, and fold batch norms into the weights before them."""
    merged = reparametrised(arch.model, arch.inputs)
    network = arch if not merged.blocks else read(merged.model, arch.inputs)
    changed = copy.deepcopy(merged.model).eval().double()  # what is rounded only in the end is exact
    norms = tuple(norm for weighted, norm in _foldable(network) if _folded(changed, weighted, norm))
    if not norms or not same(merged.model, changed, arch.inputs):
        return merged
    return Deployed(_rounded(changed, arch.model), merged.blocks, norms, merged.left)


def reparametrised(model: nn.Module, inputs: Tensor | Inputs) -> Deployed:
    """Merge the branches of blocks that offer it, such as those of RepVGG and MobileOne.

    A block offers it by a method ``reparameterize``, ``switch_to_deploy`` or ``fuse``, which changes it or returns
    what takes its place.

    Args:
        model: any network.
        inputs: what it is called with.
    """
    names = [name for name, module in model.named_modules() if name and _merge_of(module)]
    if not names:
        return Deployed(model)
    changed = copy.deepcopy(model).eval().double()
    try:
        with torch.no_grad(), quiet_torch():
            done = tuple(name for name in names if _merged(changed, name))
        kept = same(model, changed, inputs)
    except Exception as error:  # the blocks' own code, which an edit may have made another network for
        return Deployed(model, left=f"{type(error).__name__}: {error}")
    if not kept:
        return Deployed(model, left="merged, they compute something else")
    return Deployed(_rounded(changed, model), done)


def same(one: nn.Module, other: nn.Module, inputs: Tensor | Inputs) -> bool:
    """Return whether two networks compute the same in eval mode and double precision."""
    given = Inputs.of(inputs)
    doubled = Inputs(*mapped((given.args, dict(given.kwargs)), _double))
    found = []
    for model in (one, other):
        twin = copy.deepcopy(model).double()
        with in_mode(twin, training=False), torch.no_grad():
            found.append([tensor for _, tensor in tensors_of(doubled.call(twin))])
    return len(found[0]) == len(found[1]) and all(map(_close, *found))


def _rounded(changed: nn.Module, model: nn.Module) -> nn.Module:
    kinds = [each.dtype for each in model.parameters() if each.is_floating_point()]
    return changed.to(kinds[0]) if kinds else changed


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _close(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or not one.is_floating_point():
        return torch.equal(one, two)
    return bool((one - two).abs().max() <= EXACT * one.abs().max().clamp_min(1e-30)) if one.numel() else True


def _merge_of(module: nn.Module) -> str:
    return next((name for name in _MERGES if callable(getattr(module, name, None))), "")


def _merged(model: nn.Module, name: str) -> bool:
    try:
        block = model.get_submodule(name)
    except AttributeError:  # it went with the block that it was a part of
        return False
    for each in block.modules():  # an edit changes the weights, not sizes that only this method reads
        _sizes_follow(each)
    made = getattr(block, _merge_of(block))()
    if isinstance(made, nn.Module) and made is not block:
        model.set_submodule(name, made)
    return True


def _sizes_follow(block: nn.Module) -> None:
    """Let sizes that a block stores beside its convolutions be those that most of them have, where none has them."""
    convolutions = [each for each in block.modules() if isinstance(each, nn.Conv2d) and each is not block]
    for name in ("in_channels", "out_channels", "groups"):
        sizes = Counter(size for each in convolutions if (size := getattr(each, name)) > 1)
        stored = vars(block).get(name)
        if sizes and isinstance(stored, int) and stored > 1 and stored not in sizes:
            setattr(block, name, sizes.most_common(1)[0][0])


def _foldable(arch: Architecture) -> list[tuple[str, str]]:
    """Return the modules of each convolution or linear layer whose output only a batch norm reads, and of that norm."""
    nodes = {node.name: node for node in arch.capture.graph.nodes}
    by_node = {layer.node: layer for layer in arch.layers}
    times: dict[str, int] = {}
    for layer in arch.layers:
        for name in layer.parameters[:1]:
            times[name] = times.get(name, 0) + 1
    found = []
    for layer in arch.layers:
        users = list(nodes[layer.node].users)
        after = by_node.get(users[0].name) if len(users) == 1 else None
        if layer.kind not in ("conv", "linear") or after is None or after.operator != "batch_norm":
            continue
        first = (layer.parameters[:1], after.parameters[:1])
        if all(names and times[names[0]] == 1 for names in first):
            found.append((first[0][0].rpartition(".")[0], first[1][0].rpartition(".")[0]))
    return found


def _folded(model: nn.Module, weighted: str, norm: str) -> bool:
    """Fold one batch norm; return whether both modules are such that this is known to be right."""
    before, after = model.get_submodule(weighted), model.get_submodule(norm)
    if type(before) not in _WEIGHTED or not isinstance(after, nn.modules.batchnorm._BatchNorm):
        return False
    hooked = any((before._forward_hooks, before._forward_pre_hooks, after._forward_hooks, after._forward_pre_hooks))
    if hooked or after.running_mean is None or hasattr(before, "parametrizations"):
        return False
    rest = [getattr(after, name) for name in ("drop", "act") if isinstance(getattr(after, name, None), nn.Module)]
    if type(after).forward is not nn.BatchNorm2d.forward and not rest:
        return False
    try:
        model.set_submodule(weighted, _fused(before, after))
    except (RuntimeError, ConvwrightError):
        return False
    model.set_submodule(norm, nn.Sequential(*rest) if rest else nn.Identity())
    return True


def _fused(before: nn.Module, norm: nn.modules.batchnorm._BatchNorm) -> nn.Module:
    plain = copy.copy(norm)
    if not norm.affine:
        one = torch.ones(norm.num_features, dtype=torch.float64)
        plain.weight, plain.bias = nn.Parameter(one), nn.Parameter(torch.zeros_like(one))
    if isinstance(before, nn.Linear):
        return fusion.fuse_linear_bn_eval(before, plain)
    return fusion.fuse_conv_bn_eval(before, plain, transpose=isinstance(before, nn.modules.conv._ConvTransposeNd))  # type: ignore[type-var]


def said(done: Deployed, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return what was done to a network, for a person."""
    notes = [f"the branches of {len(done.blocks)} blocks are one convolution each"] if done.blocks else []
    notes += [f"{len(done.norms)} batch norms are in the weights before them"] if done.norms else []
    return (*notes, *([f"re-parametrisable blocks keep their branches ({done.left})"] if done.left else []))

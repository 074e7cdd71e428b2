"""What must hold after any edit and after any refusal, and how far two networks are apart. No code of the edits."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convwright.architecture import Architecture, read
from convwright.cost import Profile
from convwright.edits import Edit, InexactEditWarning, Plan, apply
from convwright.errors import EditError

EXACT = 1e-10


def apply_quietly(arch: Architecture, *edits: Edit, **options: Any) -> Architecture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InexactEditWarning)
        return arch.apply(*edits, **options)


# ------------------------------------------------------------------ comparing networks


def tensors_of(output: object) -> list[Tensor]:
    """Return the tensors of a model's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output
    return [t for value in values for t in tensors_of(value)]  # type: ignore[union-attr]


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors_of(model(x))


def distance(model: nn.Module, expected: nn.Module, x: Tensor) -> float:
    """Return how far two networks are apart, as a part of the largest output where that exceeds 1."""
    found = 0.0
    for a, b in zip(outputs(model, x), outputs(expected, x), strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(b).all()
        found = max(found, float((a - b).abs().max()) / max(1.0, float(b.abs().max())))
    return found


def check_truth(new: Architecture, measured: float, inexact: bool = False) -> None:
    """What the changes say about exactness is what an independent comparison finds.

    Args:
        new: the result of one ``apply``.
        measured: the difference to what was promised, found by the test itself.
        inexact: whether an inexact result has an excuse.
    """
    exact = all(change.exact for change in new.changes)
    if exact:
        assert measured <= EXACT, f"said to be exact, but differs by {measured:.2g}"
    else:
        assert inexact, f"not exact without reason ({[c.max_difference for c in new.changes]}), measured {measured:.2g}"


# ------------------------------------------------------------------ what stays


Snapshot = dict[str, Any]


def snapshot(model: nn.Module) -> Snapshot:
    """Return everything that a refused edit, or an edit of a copy, must leave alone."""
    return {
        "tensors": {n: t.detach().clone() for n, t in model.state_dict().items()},
        "flags": {n: (p.requires_grad, id(p)) for n, p in model.named_parameters(remove_duplicate=False)},
        "modules": [
            (name, id(module), type(module), module.training, _plain(vars(module)), len(module._forward_hooks))
            for name, module in model.named_modules(remove_duplicate=False)
        ],
    }


def _plain(values: Mapping[str, Any]) -> str:
    return str({k: v for k, v in values.items() if isinstance(v, int | float | str | tuple | list | bool)})


def check_same(model: nn.Module, before: Snapshot) -> None:
    now = snapshot(model)
    assert now["modules"] == before["modules"]
    assert now["flags"] == before["flags"]
    assert now["tensors"].keys() == before["tensors"].keys()
    for name, tensor in before["tensors"].items():
        assert torch.equal(now["tensors"][name], tensor), f"{name} was changed"


@contextmanager
def untouched(arch: Architecture) -> Iterator[None]:
    """Check that nothing inside changes the model, its plan or the random state."""
    before, state = snapshot(arch.model), torch.get_rng_state()
    groups, plan = arch.groups, arch.plan
    try:
        yield
    finally:
        check_same(arch.model, before)
        assert (arch.groups, arch.plan) == (groups, plan)
        assert torch.equal(torch.get_rng_state(), state), "global random numbers were drawn"


def attempt(arch: Architecture, *edits: Edit, **options: Any) -> Architecture | None:
    """Apply edits; ``None`` if they are refused, which changes nothing and names the place."""
    try:
        with untouched(arch):
            return apply_quietly(arch, *edits, **options)
    except EditError as error:
        message = str(error)
    targets = [getattr(edit, "target", "resolution").partition("[")[0].partition("#")[0] for edit in edits]
    assert any(target in message for target in targets) or ".py:" in message, message
    return None


def refused(arch: Architecture, *edits: Edit, match: str, **options: Any) -> str:
    """Check that edits are refused with a message, and change nothing."""
    with untouched(arch), pytest.raises(EditError, match=match) as caught:
        apply_quietly(arch, *edits, **options)
    return str(caught.value)


# ------------------------------------------------------------------ after an edit


def check_edited(arch: Architecture, new: Architecture, edits: int) -> None:
    """Check everything that every edit promises beside its function."""
    assert len(new.changes) - len(arch.changes) == edits == len(new.plan.edits) - len(arch.plan.edits)
    again = read(new.model, new.example_input)
    check_reading(new, again)
    check_costs(arch, new, again.profile())
    check_attributes(new.model)
    check_flags(arch.model, new.model)
    check_training(new)


def check_costs(arch: Architecture, new: Architecture, again: Profile) -> None:
    """Predicted costs are those of a network read anew, and half of what torch counts."""
    start = arch.profile()
    changes = new.changes[len(arch.changes) :]
    assert (changes[0].macs[0], changes[0].params[0]) == (start.macs, start.params)
    for before, after in itertools.pairwise(changes):
        assert (before.macs[1], before.params[1]) == (after.macs[0], after.params[0])
    assert (changes[-1].macs[1], changes[-1].params[1]) == (again.macs, again.params)
    assert again.params == sum(p.numel() for p in new.model.parameters())
    if again.complete:
        assert again.macs == flops(new.model, new.example_input) // 2


def flops(model: nn.Module, example: Tensor) -> int:
    """Return torch's own count for one sample, in eval mode."""
    counted = copy.deepcopy(model).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        counted(example[:1])
    return int(counter.get_total_flops())


def check_attributes(model: nn.Module) -> None:
    """Sizes that torch's layers store are those of their tensors."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.modules.conv._ConvNd):
            shape, groups = tuple(weight.shape), module.groups
            inner, outer = (shape[0], shape[1] * groups) if module.transposed else (shape[1] * groups, shape[0])
            assert (module.in_channels, module.out_channels) == (inner, outer), name
            assert module.kernel_size == shape[2:], name
            assert module.bias is None or module.bias.shape == (outer,), name
            if isinstance(module.padding, tuple):
                twice = [p for p in reversed(module.padding) for _ in range(2)]
                assert list(module._reversed_padding_repeated_twice) == twice, name
        elif isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(weight.shape), name
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            tensors = [t for t in (weight, module.bias, module.running_mean, module.running_var) if t is not None]
            assert all(t.shape == (module.num_features,) for t in tensors), name
        elif isinstance(module, nn.LayerNorm):
            assert tuple(module.normalized_shape) == tuple(weight.shape), name
        elif isinstance(module, nn.GroupNorm):
            assert weight.shape == (module.num_channels,), name
        elif isinstance(module, nn.PReLU):
            assert weight.shape == (module.num_parameters,), name


def check_flags(old: nn.Module, new: nn.Module) -> None:
    """Classes, modes, ``requires_grad``, types and devices stay; no tensor is shared with the original."""
    assert type(new) is type(old)
    modes = {name: module.training for name, module in old.named_modules()}
    for name, module in new.named_modules():
        assert module.training == modes.get(name, module.training), name
    parameters = dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        if name in parameters:
            assert parameter.requires_grad == parameters[name].requires_grad, name
    before = old.state_dict()
    for name, tensor in new.state_dict().items():
        if name in before:
            assert (tensor.dtype, tensor.device) == (before[name].dtype, before[name].device), name
            assert tensor.numel() == 0 or tensor.data_ptr() != before[name].data_ptr(), f"{name} is shared"


def check_reading(new: Architecture, again: Architecture) -> None:
    """The result reads as a fresh reading of its model does."""
    assert again.groups == new.groups
    assert [layer.name for layer in again.layers] == [layer.name for layer in new.layers]
    assert [block.name for block in again.blocks] == [block.name for block in new.blocks]
    assert again.plan.edits == ()


def check_training(new: Architecture) -> None:
    """Forward, backward and a step with momentum run, in training mode."""
    trained = copy.deepcopy(new.model).train()
    optimizer = torch.optim.SGD((p for p in trained.parameters() if p.requires_grad), lr=1e-4, momentum=0.9)
    x = torch.cat([new.example_input, new.example_input.flip(-1) + 1])
    for _ in range(2):
        optimizer.zero_grad()
        sum(t.square().mean() for t in tensors_of(trained(x))).backward()
        optimizer.step()


def check_plan(arch: Architecture, new: Architecture, fresh: nn.Module, x: Tensor) -> None:
    """The plan as JSON replays on the original's class, and takes the result's weights."""
    plan = Plan.from_json(new.plan.to_json())
    assert plan == new.plan
    before = snapshot(fresh)
    again = apply(plan, fresh, arch.example_input, verify=False)
    check_same(fresh, before)
    wanted = new.model.state_dict()
    assert {n: t.shape for n, t in again.model.state_dict().items()} == {n: t.shape for n, t in wanted.items()}
    again.model.load_state_dict(wanted)
    for a, b in zip(outputs(again.model.eval(), x), outputs(copy.deepcopy(new.model).eval(), x), strict=True):
        assert torch.equal(a, b)
    # Separate calls may be done at once, so sizes on the way, stored sizes and marks may stand elsewhere.
    assert [named(e) for e in again.plan.edits] == [named(e) for e in new.plan.edits]


def named(edit: Edit) -> tuple[str, str]:
    return edit.kind, getattr(edit, "target", "")


# ------------------------------------------------------------------ what width edits promise, by hooks


def places(arch: Architecture, group: str, tensor: str, axis: int) -> np.ndarray:
    """Return the channel of a group behind each index of an axis; -1 for other groups'."""
    graph = arch.channels
    channels = graph.channels_of(graph.axis_labels((tensor, axis)))
    mine = (channels >= 0) & (graph.group_of[channels] == graph.index[group])
    return np.where(mine, graph.rank[channels], -1)


def dropping(arch: Architecture, keep: Mapping[str, list[int]]) -> nn.Module:
    """Return the original with what enters the consumers of all other channels multiplied by zero."""
    model = copy.deepcopy(arch.model)
    for group, kept in keep.items():
        for member in arch.channels.group(group).members:
            if member.role != "in":
                continue
            place = places(arch, group, member.tensor, member.axis)
            alive = torch.from_numpy((place < 0) | np.isin(place, kept))
            owner = model.get_submodule(member.tensor.rpartition(".")[0].partition(".parametrizations")[0])
            owner.register_forward_pre_hook(multiplying(owner, alive))
    return model


def multiplying(owner: nn.Module, alive: Tensor) -> Callable[..., Any]:
    def multiply(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        (x,) = args
        if isinstance(owner, nn.Linear):
            return (x * alive,)
        groups = 1 if getattr(owner, "transposed", False) else owner.groups
        shape = [-1] + [1] * (x.ndim - 2)
        return (x * alive.repeat(groups).reshape(shape),)

    return multiply

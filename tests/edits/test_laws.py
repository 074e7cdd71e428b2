"""Every promise of every edit, alone and composed, on random networks and against oracles of the tests' own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from edit_checks import (
    apply_quietly,
    attempt,
    check_edited,
    check_plan,
    check_truth,
    distance,
    dropping,
    outputs,
    tensors_of,
)
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from random_networks import BASIC, STATISTIC, STORED, Net, networks, randomised, seeds
from torch import Tensor, nn

from convwright.architecture import Architecture, read
from convwright.edits import AddBlock, Edit, Kernel, RemoveBlock, Replace, Resolution, Width, scale_widths, solve
from convwright.edits.remap import signature


def law(quick: int, many: int, *drawn: st.SearchStrategy[Any]) -> Callable[..., Any]:
    """Check a law on some networks, and on many with `make test-all`."""

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("count", [quick, pytest.param(many, marks=pytest.mark.slow)])
        def test(count: int) -> None:
            settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))(given(*drawn)(check))()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


def reading(net: Net) -> Architecture:
    return read(net.randomised(), net.input())


def excused(arch: Architecture, net: Net) -> bool:
    """Whether a result may be inexact: a statistic across channels, or computed weights."""
    return net.computed or any(group.across for group in arch.groups)


def finish(net: Net, arch: Architecture, new: Architecture, edits: int) -> None:
    check_edited(arch, new, edits)
    fresh = randomised(net.build(), net.seed + 1)
    x = torch.randn(new.example_input.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(net.seed))
    check_plan(arch, new, fresh, x)


def ratios(arch: Architecture, seed: int, low: float, high: float) -> dict[str, float]:
    """Return a ratio for about half of the groups, at least one."""
    generator = np.random.default_rng(seed)
    names = [group.name for group in arch.free_groups]
    assume(names)
    chosen = [name for name in names if generator.random() < 0.5] or [names[generator.integers(len(names))]]
    return {name: float(generator.uniform(low, high)) for name in chosen}


# ------------------------------------------------------------------ width


@law(6, 400, networks(), seeds)
def test_shrinking_equals_the_masked_original(net: Net, seed: int) -> None:
    arch = reading(net)
    edits = scale_widths(arch, ratios(arch, seed, 0.2, 0.9))
    assume(edits)
    scores = np.random.default_rng(seed)
    new = attempt(arch, *edits, importance=lambda group, _: scores.random(group.units))
    assume(new is not None)
    keep = {name: ranks for edit in new.plan.edits for name, ranks in (edit.keep or {}).items()}
    measured = distance(new.model, dropping(arch, keep), net.input(seed=1))
    event(f"exact {new.changes[0].exact}")
    check_truth(new, measured, excused(arch, net))
    finish(net, arch, new, len(edits))


@law(6, 400, networks(), seeds)
def test_growing_keeps_the_function(net: Net, seed: int) -> None:
    arch = reading(net)
    edits = scale_widths(arch, ratios(arch, seed, 1.1, 3.2))
    assume(edits)
    new = attempt(arch, *edits)
    assume(new is not None)
    event(f"exact {new.changes[0].exact}")
    check_truth(new, distance(new.model, arch.model, net.input(seed=1)), excused(arch, net))
    predicted = {signature(g): (g.units, g.step, g.frozen) for g in solve(arch, edits).after.groups}
    assert {signature(g): (g.units, g.step, g.frozen) for g in new.groups} == predicted
    finish(net, arch, new, len(edits))


@law(4, 300, networks([*BASIC, *STORED, *STATISTIC]), st.sampled_from([2, 4]))
def test_shrinking_back_to_the_originals_gives_their_bits(net: Net, times: int) -> None:
    """What reads a repeated channel reads a part of it, which is exact in powers of two; all else is as it was."""
    arch = reading(net)
    edits = scale_widths(arch, times)
    grown = attempt(arch, *edits)
    assume(grown is not None and edits)
    old = {signature(g): g for g in arch.groups}
    keep = {g.name: list(range(0, g.units, times)) for g in grown.groups if g.units != old[signature(g)].units}
    back = apply_quietly(grown, *(Width(n, len(k) * grown.group(n).step, keep=keep) for n, k in keep.items()))
    halved = {signature(grown.channels.group(name)) for name in keep}
    share = {n: torch.ones_like(t) for n, t in arch.model.state_dict().items()}
    for group in arch.groups:
        for member in group.members if signature(group) in halved else ():
            if member.role == "in" and share[member.tensor].is_floating_point():
                labels = arch.channels.channels_of(arch.channels.axis_labels((member.tensor, member.axis)))
                mine = np.flatnonzero(arch.channels.group_of[labels] == arch.channels.index[group.name])
                share[member.tensor].index_fill_(member.axis, torch.from_numpy(mine), times)
    now = back.model.state_dict()
    for name, tensor in arch.model.state_dict().items():
        assert torch.equal(now[name] * share[name], tensor), name


# ------------------------------------------------------------------ depth


def skipped(arch: Architecture, name: str) -> nn.Module | None:
    """Return the original with a block's branch left out, by overriding what its modules return."""
    model = copy.deepcopy(arch.model)
    block = arch.block(name)
    if block.kind == "residual":
        module = model.get_submodule(name)
        if not hasattr(module, "without_branch"):
            return None
        module.forward = module.without_branch
        return model
    for path in block.modules:
        model.get_submodule(path).register_forward_hook(lambda _, args, result: args[0])
    return model


def pick(seed: int, options: list):
    return options[int(np.random.default_rng(seed).integers(len(options)))]


@law(5, 400, networks(), seeds)
def test_a_removed_block_is_the_original_without_its_branch(net: Net, seed: int) -> None:
    arch = reading(net)
    assume(arch.blocks)
    block = pick(seed, list(arch.blocks))
    new = attempt(arch, RemoveBlock(block.name))
    event("refused" if new is None else f"removed {block.kind}")
    if new is None:
        assert not (block.identity and block.keeps_shape and block.modules), block.name
        return
    expected = skipped(arch, block.name)
    if expected is not None:
        check_truth(new, distance(new.model, expected, net.input(seed=1)))
    assert all(change.exact for change in new.changes)
    finish(net, arch, new, 1)


@law(5, 400, networks(), seeds, st.integers(1, 3))
def test_added_blocks_are_the_identity(net: Net, seed: int, copies: int) -> None:
    arch = reading(net)
    assume(arch.blocks)
    block = pick(seed, list(arch.blocks))
    new = attempt(arch, AddBlock(block.name, copies))
    event("refused" if new is None else f"added {block.kind}, exact {new.changes[0].exact}")
    if new is None:
        return
    (edit,) = new.plan.edits
    measured = distance(new.model, arch.model, net.input(seed=1))
    check_truth(new, measured, inexact=edit.approximate)
    finish(net, arch, new, 1)


# ------------------------------------------------------------------ kernel


def convolutions(arch: Architecture) -> list[str]:
    return [layer.name for layer in arch.layers if layer.kind == "conv" and "#" not in layer.name]


def cropped(arch: Architecture, name: str, size: int) -> nn.Module:
    """Return the original with the rim of a convolution's weight zero, as it is used."""
    model = copy.deepcopy(arch.model)
    module = model.get_submodule(name)
    if torch.nn.utils.parametrize.is_parametrized(module):
        # Not by remove_parametrizations: the copy shares its class with the original, which would lose its weight.
        plain = nn.Conv2d(
            module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
            module.dilation, module.groups, module.bias is not None, dtype=module.weight.dtype,
        )  # fmt: skip
        plain.weight.data.copy_(module.weight)
        if module.bias is not None:
            plain.bias.data.copy_(module.bias)
        model.set_submodule(name, plain)
        module = plain
    margin = (module.weight.shape[-1] - size) // 2
    if margin > 0:
        for axis in range(2, module.weight.ndim):
            for end in (0, module.weight.shape[axis] - margin):
                module.weight.data.narrow(axis, end, margin).zero_()
    return model


@law(6, 400, networks(), seeds, st.sampled_from([1, 3, 5, 7, 2, 4]))
def test_kernels_grow_by_zeros_and_shrink_to_their_centre(net: Net, seed: int, size: int) -> None:
    arch = reading(net)
    name = pick(seed, convolutions(arch))
    new = attempt(arch, Kernel(name, size))
    event("refused" if new is None else "changed")
    if new is None:
        return
    measured = distance(new.model, cropped(arch, name, size), net.input(seed=1))
    check_truth(new, measured, net.computed)
    conv = new.model.get_submodule(name)
    assert conv.kernel_size == (size, size)
    assert new.layer(name).output_shape == arch.layer(name).output_shape
    finish(net, arch, new, 1)


# ------------------------------------------------------------------ resolution and operators


@law(4, 300, networks(), st.integers(1, 12), st.integers(1, 12))
def test_another_resolution_leaves_every_bit(net: Net, height: int, width: int) -> None:
    arch = reading(net)
    new = attempt(arch, Resolution([height, width]))
    event("refused" if new is None else "changed")
    if new is None:
        assert net.head == "flatten"
        return
    now = new.model.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in arch.model.state_dict().items())
    assert tuple(new.example_input.shape) == (*arch.example_input.shape[:2], height, width)
    x = torch.randn(new.example_input.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(net.seed))
    assert all(torch.equal(a, b) for a, b in zip(outputs(new.model, x), outputs(arch.model, x), strict=True))
    assert [g.size for g in new.groups] == [g.size for g in arch.groups]
    finish(net, arch, new, 1)


@law(4, 300, networks(), seeds)
def test_squeeze_and_excitation_begins_without_a_change_of_any_bit(net: Net, seed: int) -> None:
    arch = reading(net)
    name = pick(seed, convolutions(arch))
    new = attempt(arch, Replace(name, "squeeze_excite"))
    event("refused" if new is None else "replaced")
    if new is None:
        return
    x = net.input(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(outputs(new.model, x), outputs(arch.model, x), strict=True))
    assert new.changes[0].exact
    assert not new.plan.edits[0].approximate
    finish(net, arch, new, 1)


# ------------------------------------------------------------------ compositions


def draw_edit(arch: Architecture, generator: np.random.Generator) -> Edit:
    kind = generator.choice(["width", "remove", "add", "kernel", "resolution", "replace"])
    free, blocks = arch.free_groups, arch.blocks
    if kind == "width" and free:
        group = free[generator.integers(len(free))]
        return Width(group.name, max(1, int(group.units * generator.uniform(0.3, 2.5))) * group.step)
    if kind in ("remove", "add") and blocks:
        name = blocks[generator.integers(len(blocks))].name
        return RemoveBlock(name) if kind == "remove" else AddBlock(name, int(generator.integers(1, 3)))
    names = convolutions(arch)
    name = names[generator.integers(len(names))]
    if kind == "kernel":
        return Kernel(name, int(generator.choice([1, 3, 5])))
    if kind == "replace":
        return Replace(name, str(generator.choice(["squeeze_excite", "dw_separable", "grouped", "ghost"])))
    return Resolution(generator.integers(3, 11, 2).tolist())


@law(5, 500, networks(), seeds, st.integers(2, 4))
def test_edits_one_after_the_other_add_up(net: Net, seed: int, count: int) -> None:
    arch = new = reading(net)
    generator = np.random.default_rng(seed)
    done = 0
    for _ in range(count):
        after = attempt(new, draw_edit(new, generator))
        if after is not None:
            new, done = after, done + 1
    assume(done)
    finish(net, arch, new, done)


@law(4, 300, networks(), seeds, st.integers(2, 4))
def test_edits_in_one_call_are_all_done_or_none(net: Net, seed: int, count: int) -> None:
    arch = reading(net)
    generator = np.random.default_rng(seed)
    edits = [draw_edit(arch, generator) for _ in range(count)]
    new = attempt(arch, *edits)
    event("refused" if new is None else "done")
    if new is not None:
        finish(net, arch, new, count)


@law(4, 300, networks(BASIC), seeds)
def test_what_keeps_the_function_keeps_it_in_any_order(net: Net, seed: int) -> None:
    arch = new = reading(net)
    generator = np.random.default_rng(seed)
    for _ in range(4):
        edit = draw_edit(new, generator)
        grows = isinstance(edit, Width) and edit.size > new.group(edit.target).size
        larger = isinstance(edit, Kernel) and edit.size > new.layer(edit.target).output_shape[-1] * 0
        if not (grows or larger or isinstance(edit, AddBlock)) or getattr(edit, "operator", "") == "squeeze_excite":
            continue
        after = attempt(new, edit)
        kept = after is not None and after.changes[-1].exact
        if isinstance(edit, Kernel) and kept and edit.size < new.model.get_submodule(edit.target).kernel_size[0]:
            continue  # a crop changes the function, as promised
        if kept:
            new = after
    assume(new is not arch)
    assert distance(new.model, arch.model, net.input(seed=1)) <= 1e-9


# ------------------------------------------------------------------ modes, flags, optimizers


@law(4, 300, networks(), seeds)
def test_modes_flags_and_types_stay(net: Net, seed: int) -> None:
    generator = np.random.default_rng(seed)
    model = net.build().to(pick(seed, [torch.float32, torch.float64])).train()
    for module in model.modules():
        module.training = bool(generator.random() < 0.5)
    for parameter in model.parameters():
        parameter.requires_grad_(bool(generator.random() < 0.7))
    arch = read(model, net.shape)
    new = attempt(arch, draw_edit(arch, generator))
    assume(new is not None)
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    event(type(new.plan.edits[0]).__name__)
    edit = new.plan.edits[0]
    replaced = edit.target if isinstance(edit, Replace | RemoveBlock) else None
    for name, module in new.model.named_modules():
        if name in modes and not (replaced and (name == replaced or name.startswith(f"{replaced}."))):
            assert module.training == modes[name], name
    for name, parameter in new.model.named_parameters():
        assert parameter.requires_grad == flags.get(name, parameter.requires_grad), name
        assert parameter.dtype == next(model.parameters()).dtype


@law(5, 300, networks(), seeds, st.sampled_from(["sgd", "adam"]))
def test_the_optimizer_follows(net: Net, seed: int, kind: str) -> None:
    model = net.build()
    x = net.input().float()
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        if kind == "sgd"
        else torch.optim.AdamW(model.parameters(), lr=1e-3)
    )
    step(model.train(), optimizer, x)
    arch = read(model, x)
    generator = np.random.default_rng(seed)
    edits = [draw_edit(arch, generator) for _ in range(2)]
    before = state_of(optimizer)
    new = attempt(arch, *edits, optimizer=optimizer)
    if new is None:
        assert str(state_of(optimizer)) == str(before), "a refused edit changed the optimizer"
        return
    event(" ".join(sorted(type(e).__name__ for e in edits)))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in new.model.parameters()}
    assert set(optimizer.state) <= set(held)
    for parameter, state in optimizer.state.items():
        for value in state.values():
            assert not isinstance(value, Tensor) or value.ndim == 0 or value.shape == parameter.shape
    step(new.model, optimizer, torch.zeros(new.example_input.shape).add(0.5).repeat(2, 1, 1, 1))


def state_of(optimizer: torch.optim.Optimizer) -> list:
    return [
        [(id(p), {k: float(v.sum()) if isinstance(v, Tensor) else v for k, v in optimizer.state[p].items()})
         for p in group["params"]]
        for group in optimizer.param_groups
    ]  # fmt: skip


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    sum(t.square().mean() for t in tensors_of(model(x))).backward()
    optimizer.step()

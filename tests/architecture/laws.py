"""Laws that every channel analysis must obey, checked by surgery and by perturbation, without the edits package."""

import copy

import numpy as np
import torch
from torch import nn

from convwright.architecture import read

from .networks import randomised


def roles(arch, name):
    """Return the members of a layer's group as {(tensor, axis): (role, entries per channel)}."""
    return {(m.tensor, m.axis): (m.role, m.per_channel) for m in arch.group(name).members}


def where(arch, group_name):
    """Return {(tensor, axis): channel of each index, -1 for other groups'} over one group's members."""
    graph = arch.channels
    wanted = graph.index[group_name]
    found = {}
    for member in graph.group(group_name).members:
        channels = graph.channels_of(graph.axis_labels((member.tensor, member.axis)))
        mine = (channels >= 0) & (graph.group_of[channels] == wanted)
        found[member.tensor, member.axis] = np.where(mine, graph.rank[channels], -1)
    return found


def check_bookkeeping(arch):
    """Every index of every labelled axis lies in one group; sizes, counts and members agree."""
    graph = arch.channels
    assert len(graph.index) == len(graph.groups)
    for group in graph.groups:
        assert group.size == group.units * group.step
        assert bool(group.reason) == group.frozen
        index = graph.index[group.name]
        assert (graph.group_of == index).sum() == group.units
        ranks = np.sort(graph.rank[graph.group_of == index])
        assert (ranks == np.arange(group.units)).all()
        for (tensor, axis), places in where(arch, group.name).items():
            per_channel = next(m for m in group.members if (m.tensor, m.axis) == (tensor, axis)).per_channel
            counts = np.bincount(places[places >= 0], minlength=group.units)
            assert (counts == per_channel).all(), (group.name, tensor, axis)
    listed = {(m.tensor, m.axis) for group in graph.groups for m in group.members}
    for axis in listed:
        channels = graph.channels_of(graph.axis_labels(axis))
        assert (graph.group_of[channels] >= 0).all(), f"{axis} is only partly covered"


def check_independence(arch, group_name, channel, seed=0):
    """When nothing reads a channel any more, what makes it does not matter: no reader was overlooked."""
    group = arch.channels.group(group_name)
    silent = silenced(arch, group_name, channel)
    before = output(silent, arch.example_input)
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(silent.named_parameters()) | dict(silent.named_buffers())
    for member in group.members:
        if member.role == "in":
            continue
        places = index_of(arch, group_name, member, channel)
        chosen = tensors[member.tensor]
        noise = torch.rand(chosen.shape, generator=generator, dtype=chosen.dtype)
        with torch.no_grad():
            chosen.index_copy_(member.axis, places, noise.index_select(member.axis, places))
    assert_close(output(silent, arch.example_input), before)


def check_removal(arch, group_name, channel):
    """Cut out of every member, a channel leaves a network that runs, and equals the silenced one."""
    cut = copy.deepcopy(arch.model)
    for member in arch.channels.group(group_name).members:
        gone = set(index_of(arch, group_name, member, channel).tolist())
        shrink(cut, member.tensor, member.axis, gone)
    result = output(cut, arch.example_input)
    if not arch.channels.group(group_name).across:
        assert_close(result, output(silenced(arch, group_name, channel), arch.example_input))


def silenced(arch, group_name, channel):
    """Return a copy in which every reader of the channel multiplies it by zero."""
    model = copy.deepcopy(arch.model)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for member in arch.channels.group(group_name).members:
        if member.role == "in":
            with torch.no_grad():
                places = index_of(arch, group_name, member, channel)
                tensors[member.tensor].index_fill_(member.axis, places, 0.0)
    return model


def index_of(arch, group_name, member, channel):
    places = where(arch, group_name)[member.tensor, member.axis]
    return torch.from_numpy(np.flatnonzero(places == channel))


def shrink(model, tensor, axis, gone):
    """Drop indices of one axis of a parameter or buffer, and repair what torch's modules store."""
    owner_name, _, leaf = tensor.rpartition(".")
    owner = model.get_submodule(owner_name)
    old = getattr(owner, leaf)
    keep = torch.tensor([i for i in range(old.shape[axis]) if i not in gone])
    new = old.detach().index_select(axis, keep)
    if leaf in owner._parameters:
        setattr(owner, leaf, nn.Parameter(new))
    else:
        owner._buffers[leaf] = new
    depthwise = isinstance(owner, nn.Conv2d) and owner.groups > 1 and owner.weight.shape[1] == 1
    if depthwise and leaf == "weight":
        owner.groups = owner.groups * len(keep) // old.shape[0]
    if isinstance(owner, nn.LayerNorm):
        owner.normalized_shape = tuple(new.shape)
    if isinstance(owner, nn.GroupNorm):
        owner.num_channels = len(keep)
    if isinstance(owner, nn.RNNBase):
        owner.input_size, owner.hidden_size = owner.weight_ih_l0.shape[1], owner.weight_hh_l0.shape[1]


def output(model, example):
    with torch.no_grad():
        result = model(example)
    return result["logits"] if isinstance(result, dict) else result


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def read_random(model, shape, seed=0):
    """Read a network with random weights and statistics and a random example, in float64."""
    generator = torch.Generator().manual_seed(seed)
    example = torch.rand(shape, generator=generator, dtype=torch.float64)
    return read(randomised(model, seed), example)


def check_all(arch, removal=True):
    """Check every law on the first and the last channel of every free group."""
    check_bookkeeping(arch)
    for group in arch.free_groups:
        for channel in {0, group.units - 1}:
            if not hidden_input(group):
                check_independence(arch, group.name, channel)
            if removal and not group.tied and group.units > 1:
                check_removal(arch, group.name, channel)


def hidden_input(group):
    """Whether silencing fails: a statistic runs across the channels, so others see what a silent one holds."""
    return bool(group.across)

"""Importances of the weights alone: norms, the scale of batch norm, chance."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from convwright.architecture import Architecture, ChannelGroup
from convwright.architecture.channels import Member
from convwright.devices import to_host
from convwright.edits.importance.gates import Scores, entries_of
from convwright.edits.importance.registry import importance


def _per_channel(group: ChannelGroup, architecture: Architecture, power: int) -> Iterator[tuple[Member, Scores]]:
    """Yield, per parameter axis of a group, the sum of |weight| ** power of each channel, shape (units,)."""
    for member in group.members:
        if member.tensor not in architecture.capture.parameters:
            continue
        weight = architecture.model.get_parameter(member.tensor).detach()
        mine, ranks = entries_of(architecture, group, member)
        sums = to_host(_sums(weight, member.axis, power).double()).numpy()
        yield member, np.bincount(ranks, sums[mine], minlength=group.units).astype(np.float64, copy=False)


def _sums(weight: Tensor, axis: int, power: int) -> Tensor:
    """Return the sums of |weight| ** power along an axis; torch's own reductions are slow on all axes but the first."""
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))  # squares of half precision overflow
    if axis == 0:
        norms: Tensor = torch.linalg.vector_norm(weight.reshape(len(weight), -1), power, dim=1)
        return norms.pow(power)
    rows = weight.reshape(math.prod(weight.shape[:axis]), -1)
    total = torch.zeros_like(rows[0])
    for piece in torch.split(rows, max(1, 2**18 // rows.shape[1])):  # small enough for the processor's cache
        total += piece.abs().pow(power).sum(0)
    return total.view(weight.shape[axis], -1).sum(1)


def _group_norm(group: ChannelGroup, architecture: Architecture, power: int) -> Scores:
    """Sum over a group's members, each over its own mean, so that a layer with large weights does not decide alone."""
    total = np.zeros(group.units)
    for _, summed in _per_channel(group, architecture, power):
        total += summed / max(float(summed.mean()), 1e-30)
    return total


@importance("l2")
def l2(group: ChannelGroup, architecture: Architecture) -> Scores:
    """Root of the summed squares of all parameters that belong to a channel, group-wide (Fang et al. 2023)."""
    return np.sqrt(_group_norm(group, architecture, 2))


@importance("l1")
def l1(group: ChannelGroup, architecture: Architecture) -> Scores:
    """Sum of the absolute values of all parameters that belong to a channel, group-wide (Li et al. 2017)."""
    return _group_norm(group, architecture, 1)


@importance("bn-scale")
def bn_scale(group: ChannelGroup, architecture: Architecture) -> Scores:
    """Sum of the absolute scales of a channel's batch norms (Liu et al. 2017); L2 where a group has none."""
    total, found = np.zeros(group.units), False
    for member, summed in _per_channel(group, architecture, 1):
        owner, _, name = member.tensor.rpartition(".")
        if name == "weight" and isinstance(architecture.model.get_submodule(owner), _BatchNorm):
            total, found = total + summed, True
    return total if found else l2(group, architecture)


@importance("random")
def chance(group: ChannelGroup, architecture: Architecture) -> Scores:
    """Random numbers in 0..1, the same for the same group: the control of every other importance."""
    seed = sum(ord(letter) * 31**place % 2**31 for place, letter in enumerate(group.name))
    return np.random.default_rng(seed).random(group.units)


@importance("first")
def first(group: ChannelGroup, architecture: Architecture) -> Scores:
    """Keep the first channels: for networks without trained weights."""
    return np.arange(group.units, 0, -1, dtype=np.float64)

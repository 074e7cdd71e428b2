"""Gates: a factor of 1 on every channel where it is consumed, by sample, whose gradient tells what silencing costs.

The derivative of the loss by a factor on a channel is the sum over the weights that read it of weight x gradient. A
gate at each consumer's input gives that sum sample by sample in one backward pass, whatever the consumer does with its
weights (standardise, share, compute them). Members and roles say who consumes: residual sums, depthwise layers,
concatenations and shared modules need no case of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from convwright.architecture import Architecture, ChannelGroup
from convwright.architecture.channels import Ints, Member
from convwright.devices import to_host

Scores = npt.NDArray[np.float64]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class GateSite:
    """One place where channels of a group are consumed, or produced where nothing with weights consumes them.

    Attributes:
        group: name of the group.
        member: the parameter axis.
        module: the module that owns it; None: it is reached by the parameter alone.
        output: whether the gate is on the module's output.
        entries: which entries of the axis are the group's, shape (k,).
        ranks: the channel of each of them, shape (k,).
    """

    group: str
    member: Member
    module: str | None
    output: bool
    entries: Ints
    ranks: Ints


def sites_of(architecture: Architecture, group: ChannelGroup) -> tuple[GateSite, ...]:
    """Return where a group's channels are consumed; where nothing with weights does, where they are born."""
    chosen, output = [m for m in group.members if m.role == "in"], False
    if not chosen:
        born = [m for m in group.members if m.role == "out"]
        first = born[0].tensor.rpartition(".")[0] if born else ""
        chosen, output = [m for m in born if m.tensor.rpartition(".")[0] == first], True
    return tuple(
        GateSite(group.name, m, _owner(architecture.model, m, output), output, *entries_of(architecture, group, m))
        for m in chosen
        if m.tensor in architecture.capture.parameters
    )


def entries_of(architecture: Architecture, group: ChannelGroup, member: Member) -> tuple[Ints, Ints]:
    """Return which entries of a parameter's axis are a group's, and the channel of each of them; shape (k,)."""
    graph = architecture.channels
    channels = graph.channels_of(graph.axis_labels((member.tensor, member.axis)))
    entries = np.flatnonzero(graph.group_of[channels] == graph.index[group.name])
    return entries, graph.rank[channels[entries]]


def _owner(model: nn.Module, member: Member, output: bool) -> str | None:
    """Return the convolution or linear layer whose weight this is, also where it is computed from the parameter."""
    name = member.tensor.split(".parametrizations.")[0].rpartition(".")[0] if "." in member.tensor else ""
    module = model.get_submodule(name)
    if not isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
        return None
    produced = 0 if isinstance(module, nn.Linear) or not getattr(module, "transposed", False) else 1
    weight_axis = produced if output else 1 - produced
    return name if member.axis == weight_axis or (output and member.tensor.endswith("bias")) else None


@dataclass(frozen=True, eq=False)
class Passed:
    """What one call of a module let through.

    Attributes:
        rows: length of its first axis: samples, or parts of samples.
        gate: the factor, shape (rows, channels); None where only activations are looked at.
        moments: mean and mean square of each channel over all positions, two of shape (rows, channels).
    """

    rows: int
    gate: Tensor | None = None
    moments: tuple[Tensor, Tensor] | None = None


@dataclass(eq=False)
class Gates:
    """The gates of one network: hooks while it is `hooked`, and what they saw of the present batch.

    Attributes:
        architecture: the network as it was read.
        model: the network in use, of the same structure, on any device.
        sites: where the gates are.
        passed: what the present batch let through, by module and side.
        gradients: of the present batch's loss by parameters, where they are needed.
        count: samples in the present batch.
    """

    architecture: Architecture
    model: nn.Module
    sites: tuple[GateSite, ...]
    passed: dict[tuple[str, bool], list[Passed]] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    @classmethod
    def of(cls, architecture: Architecture, model: nn.Module | None = None) -> Gates:
        """Return gates for every group that can change."""
        sites = [site for group in architecture.free_groups for site in sites_of(architecture, group)]
        return cls(architecture, model if model is not None else architecture.model, tuple(sites))

    @cached_property
    def units(self) -> Mapping[str, int]:
        """The number of channels of each group that can change."""
        return {group.name: group.units for group in self.architecture.free_groups}

    @contextmanager
    def hooked(self, gradients: bool) -> Iterator[None]:
        """Put the gates on; without `gradients` they only look at what passes."""
        with ExitStack() as stack:
            for key in self._by_module():
                for module in self._modules(key[0]):
                    stack.callback(_Hook(self, key, gradients).placed(module).remove)
            yield

    @contextmanager
    def silenced(self, gone: Mapping[str, npt.NDArray[np.bool_]]) -> Iterator[None]:
        """Multiply channels by 0 where they are consumed, as if they were cut.

        Args:
            gone: group -> which of its channels, shape (units,).
        """
        with ExitStack() as stack:
            for key, sites in self._by_module().items():
                for module in self._modules(key[0]):
                    stack.callback(_Hook(self, key, mask=self._mask(sites, gone)).placed(module).remove)
            yield

    def _modules(self, name: str) -> list[nn.Module]:
        """Return a module and all others with the very same weight: each of them reads its channels."""
        module = self.model.get_submodule(name)
        weight, kind = module._parameters.get("weight"), type(module)
        tied = [m for m in self.model.modules() if type(m) is kind and m._parameters.get("weight") is weight]
        return tied if weight is not None else [module]

    def _by_module(self) -> dict[tuple[str, bool], list[GateSite]]:
        found: dict[tuple[str, bool], list[GateSite]] = {}
        for site in self.sites:
            if site.module is not None and not site.member.tensor.endswith(".bias"):
                found.setdefault((site.module, site.output), []).append(site)
        return found

    def _mask(self, sites: Sequence[GateSite], gone: Mapping[str, npt.NDArray[np.bool_]]) -> Tensor:
        """Return 0 and 1 for the entries of a module's axis; those of no group here are 1."""
        weight = self.parameter(sites[0])
        mask = torch.ones(weight.shape[sites[0].member.axis], dtype=weight.dtype, device=weight.device)
        for site in sites:
            if site.group in gone:
                mask[torch.from_numpy(site.entries[gone[site.group][site.ranks]]).to(mask.device)] = 0
        return mask

    def begin(self, count: int) -> None:
        """Forget the last batch."""
        self.passed.clear()
        self.gradients.clear()
        self.count = count

    @property
    def factors(self) -> list[Tensor]:
        """The gates of the present batch."""
        return [each.gate for passes in self.passed.values() for each in passes if each.gate is not None]

    def parameter(self, site: GateSite) -> nn.Parameter:
        """Return the parameter of a site in the network in use."""
        return self.model.get_parameter(site.member.tensor)

    def ungated(self) -> tuple[GateSite, ...]:
        """Return the sites that no gate of the present batch saw: functional calls, attention, samples folded away."""
        return tuple(site for site in self.sites if not self.passes(site))

    def passes(self, site: GateSite) -> list[Passed]:
        """Return the calls of a site's module; none where they cannot be told apart by sample."""
        found = self.passed.get((site.module, site.output), []) if site.module is not None else []
        return [] if any(each.rows % self.count for each in found) else found

    def by_channel(self, site: GateSite, table: Tensor) -> Scores:
        """Return a table (rows, channels of the module) as (samples, channels of the group).

        Rows are added up by sample, and the parts of a grouped convolution by position.
        """
        length = self.parameter(site).shape[site.member.axis]
        by_sample = table.double().reshape(self.count, -1, table.shape[1]).sum(1)
        entries = to_host(by_sample.reshape(self.count, -1, length).sum(1)).numpy()[:, site.entries]
        total = np.zeros((self.units[site.group], self.count))
        np.add.at(total, site.ranks, entries.T)
        return total.T

    def by_weight(self, site: GateSite, table: Tensor) -> Scores:
        """Return a table of the shape of the site's parameter, summed by channel of the group, shape (1, units)."""
        others, table = [a for a in range(table.ndim) if a != site.member.axis], table.detach()
        sums = table.double().sum(dim=others) if others else table.double()
        total = np.zeros((1, self.units[site.group]))
        total[0] += np.bincount(site.ranks, to_host(sums).numpy()[site.entries], minlength=self.units[site.group])
        return total

    def changes(self) -> dict[str, Scores]:
        """Return per group the first-order change of each sample's loss when a channel is silenced, (samples, units).

        Where a consumer has no gate, the gradient of its weights gives the mean of the batch for every sample.
        """
        found = {name: np.zeros((self.count, units)) for name, units in self.units.items()}
        for site in self.sites:
            passes = self.passes(site)
            if not passes and site.member.tensor in self.gradients:
                found[site.group] += self.by_weight(site, self.parameter(site) * self.gradients[site.member.tensor])
            if site.member.tensor.endswith(".bias"):
                continue  # a gate on the output has it already
            for gate in (each.gate for each in passes):
                if gate is not None and gate.grad is not None:
                    found[site.group] += self.by_channel(site, gate.grad.flatten(1) * self.count)
        return found


@dataclass(frozen=True, eq=False)
class _Hook:
    gates: Gates
    key: tuple[str, bool]
    gradients: bool = False
    mask: Tensor | None = None  # instead of a gate

    def placed(self, module: nn.Module) -> RemovableHandle:
        if self.key[1]:
            return module.register_forward_hook(lambda module, _, output: self.through(module, output))
        return module.register_forward_pre_hook(self.before)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.through(module, args[0]), *args[1:]) if args and isinstance(args[0], Tensor) else args

    def through(self, module: nn.Module, value: Tensor) -> Tensor:
        axis = value.ndim - 1 - len(getattr(module, "kernel_size", ()))
        if axis < 1:
            return value  # without a batch
        shape = [value.shape[a] if a == axis else 1 for a in range(value.ndim)]
        if self.mask is not None:  # of a grouped convolution: the same for all its parts
            return value * self.mask.repeat(shape[axis] // len(self.mask)).view(shape).to(value.dtype)
        passes, rows = self.gates.passed.setdefault(self.key, []), value.shape[0]
        if not self.gradients:
            flat = value.detach().float().movedim(axis, 1).unsqueeze(-1).flatten(2)
            passes.append(Passed(rows, moments=(flat.mean(2), flat.square().mean(2))))
            return value
        gate = torch.ones([rows, *shape[1:]], dtype=value.dtype, device=value.device, requires_grad=True)
        passes.append(Passed(rows, gate))
        return value * gate

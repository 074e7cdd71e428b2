"""Branch sparsity: residual branches that training can do without shrink to exactly 0, and can then be removed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from convwright.architecture import Architecture
from convwright.architecture.blocks import branch_ends
from convwright.architecture.reading import InputLike
from convwright.training.techniques.structural import as_architecture
from convwright.training.techniques.technique import Card, Effect, Technique, TechniqueContext, Training, technique

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def shrink_groups(groups: Iterable[Sequence[Tensor]], threshold: float) -> None:
    """Shorten each group of tensors, as one vector, by `threshold` times the root of its size; short ones become 0.

    This is the proximal step of the group lasso (Yuan and Lin, 2006), whose zeros are exact.

    Args:
        groups: The tensors of each group, changed in place.
        threshold: At least 0, per element.

    Examples:
        >>> scale, shift = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
        >>> shrink_groups([(scale, shift)], 0.5)  # the norm is 5, the root of the size 2
        >>> [round(value, 3) for value in (*scale.tolist(), *shift.tolist())]
        [2.4, 0.0, 0.0, 3.2]
    """
    with torch.no_grad():
        for group in groups:
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in group]))
            by = threshold * math.sqrt(sum(each.numel() for each in group))
            factor = torch.where(norm > by, 1 - by / norm, torch.zeros_like(norm))
            for each in group:
                each.mul_(factor)


def branch_scales(
    network: Architecture | nn.Module | str, example_input: InputLike = None
) -> dict[str, tuple[nn.Parameter, ...]]:
    """Return block -> the scales and shifts (channels,) of the normalisation that ends its residual branch.

    Blocks whose branch ends otherwise are left out.

    Args:
        network: A network, or its `Architecture`; the parameters are the network's own.
        example_input: As for `read`, where `network` has not been read.

    Examples:
        >>> import convwright as cw
        >>> scales = branch_scales("zoo:resnet20")
        >>> len(scales), [tuple(each.shape) for each in scales["layer3.2"]]
        (9, [(64,), (64,)])
    """
    arch = as_architecture(network, example_input)
    ends = {block: arch.model.get_submodule(name) for block, name in scaled_ends(arch)[0].items()}
    return {block: tuple(end.parameters(recurse=False)) for block, end in ends.items()}


def zero_branches(network: Architecture | nn.Module | str, example_input: InputLike = None) -> tuple[str, ...]:
    """Return the blocks whose branch gives exactly 0: `RemoveBlock` of these leaves the function as it is.

    Args:
        network: A network, or its `Architecture`.
        example_input: As for `read`, where `network` has not been read.
    """
    scales = branch_scales(network, example_input)
    return tuple(block for block, group in scales.items() if not any(bool(each.any()) for each in group))


class OnBranches(Technique):
    """Options of a technique that changes the scales at the ends of residual branches."""

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Warn of branches that have no scales in training."""
        found, missed = scaled_ends(setting.arch, trained=True)
        if not found:
            why = missed[0] if missed else "the network has no residual block"
            return (f"techniques.{self.name} has no effect: {why}",)
        if missed:
            return (f"techniques.{self.name} leaves {len(missed)} of {len(found) + len(missed)}: {missed[0]}",)
        return ()


@technique(
    "branch_sparsity",
    Card(
        does="After each step, shortens the scales and shifts of the batch norm that ends a residual branch, as one "
        "vector; branches that the loss does not hold up become exactly 0, and their blocks are then removed without "
        "any change to the function. It may begin later and end earlier than the training, or end when enough branches "
        "are at 0: those then stay there, and the others recover.",
        cost="A few vector operations per block and step. Some accuracy, by the strength.",
        helps="Deep residual networks from which blocks shall go without fine-tuning.",
        hurts="Networks with no block to spare. Networks without residual blocks, or whose branches do not end in a "
        "normalisation with a scale: no effect.",
        source="Huang and Wang 2018 (sparse structure selection; there with one factor per block), by a group lasso.",
    ),
)
class BranchSparsity(OnBranches):
    """Options of branch sparsity.

    Attributes:
        strength: Weight of the penalty: per branch, this times the root of the number of its scales and shifts times
            their norm is added to the loss.
        since: Share of the training before which it does nothing.
        until: Share of the training after which it only holds at 0 what is at 0.
        enough: The same as soon as this share of the branches is at 0; None: it does not end by that.
    """

    strength: float = Field(0.005, gt=0)
    since: float = Field(0.0, ge=0, lt=1)
    until: float = Field(1.0, gt=0, le=1)
    enough: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.since >= self.until:
            raise ValueError(f"since={self.since:g} is not before until={self.until:g}")
        return self

    def effect(self, training: Training) -> Effect:
        """Return the effect on the scales and shifts."""
        ends = map(training.model.get_submodule, scaled_ends(training.setting.arch, trained=True)[0].values())
        groups = [tuple(each for each in end.parameters(recurse=False) if each.requires_grad) for end in ends]
        return _BranchSparsityEffect(self, training.setting.steps, training.optimizer, groups)


class _BranchSparsityEffect(Effect):
    """Pulls at the groups; when that is over, `still` are the numbers of those that stay at 0."""

    def __init__(
        self,
        asked: BranchSparsity,
        steps: int,
        optimizer: torch.optim.Optimizer,
        groups: Sequence[tuple[nn.Parameter, ...]],
    ) -> None:
        self.strength, self.enough, self.groups = asked.strength, asked.enough, groups
        self.first, self.last = round(asked.since * steps), round(asked.until * steps)
        self.options = options_of_each(optimizer, [group[0] for group in groups])
        self.still: tuple[int, ...] | None = None

    def after_step(self, step: int) -> None:
        if self.still is not None:
            with torch.no_grad():
                for each in (each for number in self.still for each in self.groups[number]):
                    each.zero_()
            return
        if self.first <= step < self.last:
            for group, options in zip(self.groups, self.options, strict=True):
                shrink_groups([group], self.strength * float(options["lr"]))
        if self.first <= step:
            self._end(step + 1 >= self.last)

    def _end(self, due: bool) -> None:
        if not due and self.enough is None:
            return
        zero = tuple(n for n, group in enumerate(self.groups) if not any(bool(each.any()) for each in group))
        if due or (self.enough is not None and len(zero) >= self.enough * len(self.groups)):
            self.still = zero

    def state_dict(self) -> dict[str, Any]:
        return {} if self.still is None else {"still": torch.tensor(self.still, dtype=torch.int64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.still = tuple(int(number) for number in state["still"]) if "still" in state else None


def scaled_ends(arch: Architecture, trained: bool = False) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return block -> normalisation that ends its branch, and the blocks that have none (in training), with reasons."""
    found, missed = dict[str, str](), list[str]()
    for end in branch_ends(arch):
        if end.module and _scaled(arch.model.get_submodule(end.module), trained):
            found[end.block] = end.module
        else:
            why = end.reason or f"its branch ends in {end.module}, which has no scales in training"
            missed.append(f"{end.block} ({why})")
    return found, tuple(missed)


def options_of_each(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Return the optimizer's group that each parameter is in."""
    options_of = {id(each): options for options in optimizer.param_groups for each in options["params"]}
    return [options_of[id(each)] for each in parameters]


def _scaled(module: nn.Module, trained: bool) -> bool:
    """Whether a module is a normalisation with scales, and with scales in training where that is asked."""
    scale = getattr(module, "weight", None)
    return isinstance(module, _NORMS) and scale is not None and (scale.requires_grad or not trained)


@technique(
    "branch_decay",
    Card(
        does="After each step, multiplies the scales of the batch norm that ends a residual branch by 1 - strength * "
        "learning rate; branches that the loss does not hold up become small, none becomes 0.",
        cost="One vector operation per block and step. Some accuracy, by the strength.",
        helps="Deep residual networks from which blocks shall go without fine-tuning: the control of branch_sparsity.",
        hurts="Networks with no block to spare. Networks without residual blocks, or whose branches do not end in a "
        "normalisation with a scale: no effect. The shifts stay, so that a small branch may still add a constant.",
        source="Weight decay decoupled from the gradient (Loshchilov and Hutter 2019), on one scale per branch.",
    ),
)
class BranchDecay(OnBranches):
    """Options of branch decay.

    Attributes:
        strength: Share of the scales that goes per step, divided by the learning rate; 0: nothing.
    """

    strength: float = Field(0.01, ge=0, allow_inf_nan=False)

    def effect(self, training: Training) -> Effect:
        """Return the effect on the scales."""
        names = scaled_ends(training.setting.arch, trained=True)[0].values()
        scales = [training.model.get_submodule(name).get_parameter("weight") for name in names]
        return _BranchDecayEffect(self.strength, training.optimizer, scales)


class _BranchDecayEffect(Effect):
    def __init__(self, strength: float, optimizer: torch.optim.Optimizer, scales: Sequence[nn.Parameter]) -> None:
        self.strength, self.scales = strength, scales
        self.options = options_of_each(optimizer, scales)

    def after_step(self, step: int) -> None:
        with torch.no_grad():
            for scale, options in zip(self.scales, self.options, strict=True):
                scale.mul_(max(0.0, 1 - self.strength * float(options["lr"])))

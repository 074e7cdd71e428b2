"""Stochastic depth: residual branches are left out at random during training."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from convwright.architecture import Architecture
from convwright.architecture.blocks import branch_ends
from convwright.architecture.reading import InputLike
from convwright.errors import RecipeError
from convwright.training.techniques.structural import as_architecture, options_of
from convwright.training.techniques.technique import Card, Effect, Technique, TechniqueContext, Training, technique

_OF_ITS_OWN = ("DropPath", "StochasticDepth")  # timm's class, torchvision's class


class StochasticDepthWarning(UserWarning):
    """Some residual blocks keep their branches, or all do."""


class DroppedBranches(contextlib.ExitStack):
    """Stochastic depth on a network: until it is closed, training mode leaves branches out.

    Attributes:
        rates: Module at the end of a branch -> share of images for which the branch is left out.
    """

    def __init__(self, model: nn.Module, rates: Mapping[str, float]) -> None:
        super().__init__()
        self.rates: Mapping[str, float] = MappingProxyType(dict(rates))
        self._drops = [_Drop(model, name, rate) for name, rate in rates.items()]
        for each in self._drops:
            self.enter_context(model.get_submodule(each.name).register_forward_hook(each))

    def scale(self, share: float) -> None:
        """Use so much of each rate from now on: 0 leaves nothing out, 1 is all of it."""
        for each in self._drops:
            each.share = share


class _Drop:
    """A forward hook. It holds the network, whose copies copy it, so that each copy asks for its own mode."""

    def __init__(self, model: nn.Module, name: str, rate: float) -> None:
        self.model, self.name, self.rate, self.share = model, name, rate, 1.0

    def __call__(self, module: nn.Module, inputs: object, output: object) -> Tensor | None:
        if not self.model.training:
            return None
        if not isinstance(output, Tensor):
            raise RecipeError(
                f"stochastic_depth: {self.name} gives a {type(output).__name__}, not a tensor, in training mode; "
                "train this network without stochastic_depth"
            )
        # Here, not above: importing torchvision takes long.
        from torchvision.ops import stochastic_depth as drop_rows

        dropped: Tensor = drop_rows(output, self.share * self.rate, "row")
        return dropped


def stochastic_depth(
    network: Architecture | nn.Module | str, example_input: InputLike = None, rate: float = 0.2
) -> DroppedBranches:
    """Leave residual branches out at random in training mode, until the returned handle is closed.

    Per image, a branch's output is 0 with its block's rate p, else divided by 1 - p, as in
    torchvision.ops.stochastic_depth (mode `row`). Rates rise linearly: block l of L has rate * l / L. Eval mode, the
    weights and the names of the state dict stay as they are.

    Args:
        network: A network, or its `Architecture`; hooks are put on the network itself.
        example_input: As for `read`, where `network` has not been read.
        rate: Of the last block, above 0 and below 1.

    Returns:
        A handle, also a context manager: ``with stochastic_depth(model, (1, 3, 32, 32)): train(...)``.

    Raises:
        RecipeError: The rate is out of its range.

    Examples:
        >>> import convwright as cw
        >>> from convwright.training.techniques.stochastic_depth import stochastic_depth
        >>> arch = cw.read("zoo:resnet20")
        >>> with stochastic_depth(arch, rate=0.18) as dropped:
        ...     [(name, round(rate, 3)) for name, rate in dropped.rates.items()][:2]
        [('layer1.0.bn2', 0.02), ('layer1.1.bn2', 0.04)]
    """
    options = options_of(StochasticDepth, rate=rate)
    arch = as_architecture(network, example_input)
    for text in options.remarks(arch):
        warnings.warn(text, StochasticDepthWarning, stacklevel=2)
    return DroppedBranches(arch.model, options.rates(arch))


@technique(
    "stochastic_depth",
    Card(
        does="Leaves the branch of each residual block out for a random part of the images in each step; the share "
        "rises linearly over the depth, or is the same for all; it may also rise from 0 over the training. Evaluation "
        "uses all blocks.",
        cost="None that can be measured; the branches are computed and multiplied by zero. More epochs pay.",
        helps="Deep residual networks that overfit.",
        hurts="Networks of few blocks and short trainings, which underfit. Networks without residual blocks: no "
        "effect. With another drop path of the network's own both apply.",
        source="Huang et al. 2016; torchvision.ops.stochastic_depth.",
    ),
)
class StochasticDepth(Technique):
    """Options of stochastic depth.

    Attributes:
        rate: Share of images for which the last block's branch is left out.
        profile: `linear`: block l of L has rate * l / L; `uniform`: every block has the rate.
        rise: Share of the training over which the rates rise linearly from 0; 0: they are constant.
    """

    rate: float = Field(0.2, gt=0, lt=1)
    profile: Literal["linear", "uniform"] = "linear"
    rise: float = Field(0.0, ge=0, le=1)

    def rates(self, arch: Architecture) -> dict[str, float]:
        """Return the rate of each branch, by the module at its end, in execution order."""
        blocks = [block.name for block in arch.blocks if block.join]
        shares = {name: number / len(blocks) for number, name in enumerate(blocks, start=1)}
        rates = {name: self.rate * (share if self.profile == "linear" else 1) for name, share in shares.items()}
        return {end.module: rates[end.block] for end in branch_ends(arch) if end.module}

    def remarks(self, arch: Architecture) -> tuple[str, ...]:
        """Return what a person should know of this network: blocks that keep their branches, drop paths of its own."""
        ends = branch_ends(arch)
        missed = [f"{end.block} ({end.reason})" for end in ends if not end.module]
        if len(missed) == len(ends):
            why = f": {missed[0]}" if missed else ": the network has no residual block"
            return (f"techniques.stochastic_depth has no effect{why}",)
        found = []
        if missed:
            found.append(f"techniques.stochastic_depth leaves {len(missed)} of {len(ends)} branches: {missed[0]}")
        own = next((name for name, module in arch.model.named_modules() if _drops(module)), None)
        if own is not None:
            found.append(
                f"techniques.stochastic_depth: the network drops paths of its own ({own}); both apply. Set one of the "
                "two to 0"
            )
        return tuple(found)

    def check(self, setting: TechniqueContext) -> tuple[str, ...]:
        """Warn of blocks that keep their branches, and of drop paths that the network has itself."""
        return self.remarks(setting.arch)

    def effect(self, training: Training) -> StochasticDepthEffect:
        """Return the effect: hooks on the network until it is closed."""
        dropped = DroppedBranches(training.model, self.rates(training.setting.arch))
        return StochasticDepthEffect(dropped, self.rise * training.setting.steps)


class StochasticDepthEffect(Effect):
    """Holds the hooks during a training; their rates rise over its first steps."""

    def __init__(self, dropped: DroppedBranches, rising: float = 0.0) -> None:
        self.dropped, self.rising = dropped, rising

    def rate(self, factor: float, step: int) -> float:
        """Leave the learning rate as it is: this is what is called before each step, also of a resumed training."""
        self.dropped.scale(1.0 if step >= self.rising else step / self.rising)
        return factor

    def close(self) -> None:
        """Take the hooks off."""
        self.dropped.close()


def _drops(module: nn.Module) -> bool:
    """Whether a module drops paths with a rate above 0."""
    if type(module).__name__ not in _OF_ITS_OWN:
        return False
    with contextlib.suppress(TypeError, ValueError):
        return float(getattr(module, "drop_prob", None) or getattr(module, "p", None) or 0) > 0
    return True

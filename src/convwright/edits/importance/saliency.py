"""Saliency: what each channel is worth by calibration batches and a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convwright.architecture import Architecture
from convwright.architecture.capture.graph import kept_modes
from convwright.architecture.capture.pytrees import rows_of, run_model, samples_in
from convwright.edits.depth import RemoveBlock
from convwright.edits.importance.gates import Gates, GateSite, Scores
from convwright.edits.importance.registry import IMPORTANCE, OBSERVERS, Observer
from convwright.errors import ConvwrightError, EditError, did_you_mean


@dataclass(frozen=True)
class BatchLoss:
    """A loss of the network itself and a batch (inputs, targets), where an output alone does not tell it.

    Attributes:
        function: Returns the mean over the samples of the batch.
    """

    function: Callable[[nn.Module, tuple[Any, Any]], Tensor]


Batches = Iterable[tuple[Any, Any]]
Loss = Callable[[Any, Any], Tensor] | BatchLoss


def _loss_of(loss: Loss, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
    if isinstance(loss, BatchLoss):
        return loss.function(model, (inputs, targets))
    return loss(run_model(model, inputs), targets)


def saliency(
    architecture: Architecture,
    batches: Batches = (),
    loss: Loss | None = None,
    kind: str = "taylor",
    *,
    model: nn.Module | None = None,
) -> dict[str, Scores]:
    """Score every channel that can go: higher means that the network misses it more.

    The network is in eval mode meanwhile; weights, gradients, modes and random state are as before afterwards. For
    mixed precision, call it under ``torch.autocast``.

    Args:
        architecture: the network.
        batches: calibration batches (inputs (n, ...), targets), on the network's device; a tuple of inputs is all
            arguments of the network, a dictionary names them, and a list holds one entry per sample.
        loss: of an output and targets, or a `BatchLoss`; the mean over the batch, as usual in training.
        kind: ``taylor`` (per sample), ``taylor-batch``, ``fisher``, ``activation-mean``, ``activation-variance``, or
            one of the weights alone: ``l2``, ``l1``, ``bn-scale``, ``random``.
        model: the network in use where it is another object of the same structure; None: ``architecture.model``.

    Returns:
        Scores by group name, each of shape (units of the group,).

    Raises:
        ConvwrightError: unknown kind, no batches or no loss for a kind that needs them, or a loss that is not finite.

    Examples:
        >>> import torch, convwright as cw
        >>> arch = cw.read("zoo:resnet20")
        >>> batch = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
        >>> scores = cw.saliency(arch, [batch], torch.nn.functional.cross_entropy)
        >>> scores["layer1.0.conv1"].shape
        (16,)
    """
    if kind in IMPORTANCE:
        used = architecture if model is None else architecture.evolved(model=model)
        return {group.name: IMPORTANCE[kind](group, used) for group in architecture.free_groups}
    if kind not in OBSERVERS:
        hint = did_you_mean(kind, [*OBSERVERS, *IMPORTANCE])
        raise ConvwrightError(f"there is no saliency {kind!r}; there are {', '.join([*OBSERVERS, *IMPORTANCE])}.{hint}")
    gates = Gates.of(architecture, model)
    found = OBSERVERS[kind](gates)
    if found.gradients and loss is None:
        raise ConvwrightError(f"saliency {kind!r} is of a loss: give one, such as torch.nn.functional.cross_entropy")
    seen = 0
    with evaluated(gates.model), gates.hooked(found.gradients), ExitStack() as stack:
        for inputs, targets in map(_pair, batches if gates.units else ()):
            if not seen:  # a first look at two samples
                first, wanted = rows_of((inputs, targets), slice(2))
                gates.begin(samples_in(first))
                with torch.no_grad():
                    if isinstance(loss, BatchLoss):
                        loss.function(gates.model, (first, wanted))
                    else:
                        run_model(gates.model, first)
                ungated = gates.ungated()
                stack.enter_context(_with_gradients_of(gates, gates.sites if found.parameters else ungated))
            seen += samples_in(inputs)
            # Where only weights tell what a channel is worth, they tell it of all samples together.
            count = samples_in(inputs) if found.single and ungated else 0
            singles = [rows_of((inputs, targets), slice(n, n + 1)) for n in range(count)]
            for part, wanted in singles or [(inputs, targets)]:
                _see(found, part, wanted, loss if found.gradients else None)
    if not seen and gates.units:
        raise ConvwrightError(f"saliency {kind!r} looks at data: give at least one calibration batch")
    return found.scores()


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise ConvwrightError(f"saliency takes batches (inputs, targets), and one of them is a {type(batch).__name__}")
    return batch[0], batch[1]


@contextmanager
def _with_gradients_of(gates: Gates, sites: Sequence[GateSite]) -> Iterator[None]:
    """Let the gradient reach the parameters of some sites and no others, which is most of the work saved."""
    wanted = {id(gates.parameter(site)) for site in sites}
    before = [(parameter, parameter.requires_grad) for parameter in gates.model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def _see(found: Observer, inputs: Any, targets: Any, loss: Loss | None) -> None:
    gates = found.gates
    gates.begin(samples_in(inputs))
    if loss is None:
        with torch.no_grad():
            run_model(gates.model, inputs)
        return found.see()
    with torch.enable_grad():
        value = _loss_of(loss, gates.model, inputs, targets)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise ConvwrightError(
            "the loss of a calibration batch must be one number with a gradient: computed by torch from the network's "
            "output, averaged over the batch, and not in torch.inference_mode"
        )
    if not math.isfinite(value.item()):
        raise ConvwrightError(
            f"the loss of a calibration batch is {value.item()}: look for NaN in the data and the weights"
        )
    sites = {site.member.tensor: gates.parameter(site) for site in gates.sites}
    parameters, factors = {name: p for name, p in sites.items() if p.requires_grad}, gates.factors
    gradients = torch.autograd.grad(value, [*factors, *parameters.values()], allow_unused=True)
    for factor, gradient in zip(factors, gradients, strict=False):
        factor.grad = gradient
    of_weights = zip(parameters, gradients[len(factors) :], strict=True)
    gates.gradients.update((name, gradient) for name, gradient in of_weights if gradient is not None)
    return found.see()


def mean_loss(model: nn.Module, batches: Batches, loss: Loss) -> float:
    """Return the mean loss over all samples, without gradients, in eval mode."""
    total = count = 0.0
    with evaluated(model), torch.no_grad():
        for inputs, targets in batches:
            samples = samples_in(inputs)
            total += float(_loss_of(loss, model, inputs, targets)) * samples
            count += samples
    return total / max(1.0, count)


def block_losses(
    architecture: Architecture, batches: Batches, loss: Loss, model: nn.Module | None = None
) -> dict[str, float]:
    """Measure what each block that can go is worth: how much the loss rises when its branch is zeroed.

    Args:
        architecture: the network.
        batches: calibration batches; they are passed over once per block.
        loss: as of `saliency`.
        model: as of `saliency`.

    Returns:
        Rise of the mean loss by name of the block; below 0 where the network is better without it.
    """
    batches = list(batches)
    used = architecture if model is None else architecture.evolved(model=model)
    before, found = mean_loss(used.model, batches, loss), {}
    for block in architecture.blocks:
        try:
            without = used.apply(RemoveBlock(block.name), verify=False)
        except EditError:
            continue
        found[block.name] = mean_loss(without.model, batches, loss) - before
    return found


def loss_curve(
    architecture: Architecture,
    batches: Batches,
    loss: Loss,
    scores: Mapping[str, Scores],
    model: nn.Module | None = None,
    shares: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
) -> list[tuple[float, float]]:
    """Measure how saliency that is lost turns into loss: what brings blocks and resolution into its unit.

    Shares of all channels, those of least saliency first, are silenced where they are consumed.

    Returns:
        (saliency lost, rise of the mean loss), both rising, from (0, 0) on.
    """
    gates, batches = Gates.of(architecture, model), list(batches)
    before, order = mean_loss(gates.model, batches, loss), np.sort(np.concatenate(list(scores.values())))
    curve = [(0.0, 0.0)]
    for share in shares if len(order) else ():
        most = order[min(len(order) - 1, int(share * len(order)))]
        gone = {name: values < most for name, values in scores.items()}
        with gates.silenced(gone):
            rise = mean_loss(gates.model, batches, loss) - before
        curve.append((float(order[order < most].sum()), max(rise, curve[-1][1])))
    return curve


@contextmanager
def evaluated(*models: nn.Module) -> Iterator[None]:
    """Put networks into eval mode, and their modes and the random state back afterwards."""
    devices = {p.device for model in models for p in model.parameters() if p.device.type == "cuda"}
    with kept_modes(*models), torch.random.fork_rng(list(devices)):
        for model in models:
            model.eval()
        yield

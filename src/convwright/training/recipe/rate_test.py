"""The learning rate range test: a short training in which the rate rises tells which rate a network bears."""

from __future__ import annotations

import copy
import math
from itertools import chain, repeat

import torch
from torch import nn

from convwright.architecture.capture.pytrees import samples_in
from convwright.errors import RecipeError
from convwright.training.batches import Batch
from convwright.training.recipe.recipe import Recipe
from convwright.training.settings import Settings, autocast, to_layout, untouched_random
from convwright.training.tasks.base import BaseTask
from convwright.training.tasks.loader import loader_of

_LOW, _HIGH, _STEPS = 1e-6, 10.0, 70  # a quarter more in each step
_SMOOTH = 0.8
_FIRST = 5  # losses whose mean tells where a training begins
_DIVERGED = 3.0  # times the least loss so far
_SHARE = 0.1  # of the rate at which the loss is least
_SURE = 20  # step of 1e-4, which weights bear that are trained: with these, what lies below it is passed over
# Times the least loss. With it, a half of EfficientNet-Lite0 gets about 2e-3 and a quarter about 9e-3. Of fixed rates
# from 1e-3 to 1.6e-2, the best on validation images were 1e-3 for the half and 8e-3 for the quarter.
_BORNE = 1.15
# Or this share of the way from there to the loss of a guess, where a cut left little more than one and no rate makes it
# worse: 2.3e-2 without, for a network of 20 %, came to 34 % where 8e-3 came to 67 % (on validation images).
_TOWARDS = 0.15


def rate_test(model: nn.Module, data: BaseTask, recipe: Recipe, settings: Settings) -> float:
    """Return a highest learning rate for a recipe: a tenth of that at which the loss of a rising rate is least.

    For trained weights, such as those that a recipe fine-tunes, it is the highest one that they bear, at which the loss
    stays near its least: the more of a network was cut, the higher.

    A copy of the network is trained from its present weights by the recipe's optimizer on its own batches, without
    techniques, with a rate that rises from 1e-6 until the smoothed loss is three times its least (Smith 2017; the
    tenth is fast.ai's rule). Network and random generators stay as they are.

    Args:
        model: On the device of the training.
        data: Normalised as in the training.
        recipe: Everything but its rate counts.
        settings: Precision and layout.

    Raises:
        RecipeError: The loss does not fall at any rate.
    """
    device = next(model.parameters()).device
    with untouched_random(device):
        torch.manual_seed(recipe.seed)
        losses = _losses(copy.deepcopy(model), data, recipe, settings, device)
    if losses and _trained([*losses.values()], data.guess, recipe.fine_tunes):
        # The first are means of few batches: one of 1.0 before others of 1.3 left a rate of 3e-5 in place of 1e-2.
        lowest = min([*losses.values()][_FIRST - 1 :] or losses.values())
        allowed = (_BORNE - 1) * abs(lowest)
        most = lowest + (min(allowed, _TOWARDS * max(0.0, data.guess - lowest)) if data.guess is not None else allowed)
        borne = max(step for step, loss in losses.items() if loss <= most)
        return float(f"{_rate(borne):.2g}")
    least = min(losses, key=losses.__getitem__, default=0)
    if not least:
        raise RecipeError("recipe field lr=auto: the loss falls at no rate from 1e-6 to 10; give a number")
    return float(f"{_SHARE * _rate(least):.2g}")


def _trained(losses: list[float], guess: float | None, fine_tuned: bool) -> bool:
    """Whether losses begin far below that of a guess, or below it without falling much at any rate.

    What is fine-tuned was trained, and may have been cut until it only guesses: unless its loss falls from there as it
    does where the head is new.
    """
    first = sum(losses[:_FIRST]) / len(losses[:_FIRST])
    if guess is None:  # what is fine-tuned was trained
        return fine_tuned
    if fine_tuned:
        return first < 0.9 * guess or min(losses) > 0.75 * first
    return first < 0.5 * guess or 0.9 * first < min(losses) < 0.9 * guess


def _rate(step: int) -> float:
    return math.exp(math.log(_LOW) + step / (_STEPS - 1) * math.log(_HIGH / _LOW))


def _losses(
    model: nn.Module, data: BaseTask, recipe: Recipe, settings: Settings, device: torch.device
) -> dict[int, float]:
    """Train while the rate rises; return the smoothed losses by step until they diverge."""
    from convwright.training.recipe.optimizers import build_optimizer

    to_layout(model.train(), settings.layout)
    optimizer = build_optimizer(model, recipe.updated(lr=_LOW))
    shares = [group["lr"] / _LOW for group in optimizer.param_groups]
    augment, channels_last = recipe.augment, settings.channels_last
    loader = loader_of(
        data.train, recipe.batch_size, augment=augment, seed=recipe.seed, device=device, channels_last=channels_last
    )
    average, found, step, loss_of = 0.0, dict[int, float](), -1, data.training_loss(recipe)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    for batch in chain.from_iterable(repeat(loader)):
        known = len(found) == _FIRST and data.guess is not None and sum(found.values()) < 0.5 * _FIRST * data.guess
        step = _SURE if known else step + 1
        if step == _STEPS:
            break
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = _rate(step) * share
        whole, loss = Batch(batch[0], batch[1], batch[1], samples_in(batch[0])), 0.0
        optimizer.zero_grad()
        for piece in whole.parts(recipe.accumulate):
            with autocast(device, settings.precision):
                mean = loss_of(model, (piece.inputs, piece.targets))
            share = len(piece) / whole.whole
            torch.autograd.backward(scaler.scale(mean if share == 1 else mean * share))
            loss += mean.item() * share
        scaler.step(optimizer)
        scaler.update()
        average = _SMOOTH * average + (1 - _SMOOTH) * loss
        smoothed = average / (1 - _SMOOTH ** (len(found) + 1))
        if not math.isfinite(smoothed) or smoothed > _DIVERGED * min(found.values(), default=math.inf):
            break
        found[step] = smoothed
    return found

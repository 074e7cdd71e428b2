"""Channels merged: what stays stands in, linearly combined, for what an edit has removed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from convwright.architecture.capture.pytrees import samples_in
from convwright.edits.importance import evaluated
from convwright.edits.surgery import named_tensors
from convwright.repair.consumers import (
    Consumer,
    Forward,
    Moments,
    Repaired,
    checked,
    consumers,
    kept_of_original,
    shift,
    watched,
)

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.architecture.channels import Ints


def merge(
    original: Architecture,
    pruned: Architecture,
    images: Iterable[Tensor],
    *,
    ridge: float = 1e-2,
    positions: int = 20,
    forward: Forward | None = None,
) -> tuple[Repaired, ...]:
    """Replace each removed input channel of a layer by the best linear combination of those that stay.

    The cheap alternative to `refit`: one pass of the original over the images and one small solve per layer, whatever
    the size of its kernel. It does not see what the cuts before a layer do to its inputs.

    Args:
        original: The network that the edits began with, unedited and with its weights.
        pruned: What edits made of it; its model is changed in place, weights and biases alone. Layers that have lost
            inputs begin with the original's weights, so that a network may be cut and merged again and again.
        images: Batches (n, ...) as the original takes them, on its device.
        ridge: Strength, as a share of the mean square of a layer's inputs.
        positions: How many positions to sample per channel that stays, spread evenly over the images.
        forward: How to run the model on a batch, e.g. in mixed precision; None: ``model(batch)``.

    Returns:
        The layers that have lost inputs, with the share of these that is lacking before and after. The same layers are
        left alone as by `refit`.

    Raises:
        EditError: `pruned` was not made from `original` by edits.
        ConvwrightError: Activations are not finite, there are no images, or an option has no sense.

    Examples:
        >>> import torch, convwright as cw
        >>> from convwright.repair import merge
        >>> arch = cw.read("zoo:mnist-m1")
        >>> pruned = arch.apply(cw.Width(arch.free_groups[-1].name, 8))
        >>> len(merge(arch, pruned, torch.randn(2, 8, *arch.example_input.shape[1:])))
        1
    """
    batches = checked(images, "merge", ridge, positions, original.model)
    theirs, ours = named_tensors(original.model), named_tensors(pruned.model)
    gone = {s: np.setdiff1d(np.arange(theirs[s.source].shape[1]), s.inputs) for s in consumers(original, pruned)}
    sites = {site: inputs for site, inputs in gone.items() if len(inputs)}
    moments, count = {site: Moments(site.constant) for site in sites}, sum(map(samples_in, batches))
    with evaluated(original.model), torch.no_grad():
        for number, batch in enumerate(batches):
            calls = watched(original.model, {site.source: len(site.nodes) for site in sites}, batch, forward)
            for site, lost in sites.items():
                for call in calls[site.source]:
                    seen = call.weight[0, 0].numel() * len(calls[site.source]) * count
                    at = call.drawn(math.ceil(positions * (len(site.inputs) + site.constant) / seen), number)
                    entering = call.entering(at).movedim(-1, 1).flatten(0, 1)  # what a kernel sees: each a row
                    stays, goes = (entering[..., torch.from_numpy(i).to(entering.device)] for i in (site.inputs, lost))
                    moments[site].add(stays, goes, goes)
        for name in {name for site in sites for name in (site.weight, site.bias or site.mean) if name}:
            ours[name].copy_(kept_of_original(theirs, pruned, name))
        return tuple(_merged(site, lost, moments[site], theirs, ours, ridge) for site, lost in sites.items())


def _merged(
    site: Consumer, gone: Ints, moments: Moments, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], ridge: float
) -> Repaired:
    """Add to a layer's weights what those of the removed inputs are worth on the ones that stay."""
    share, repaired = moments.solved(site.layer, ridge)  # (groups, inputs that stay, inputs that are gone)
    weight, inputs = ours[site.weight], len(site.inputs)
    lost = theirs[site.source].index_select(0, torch.from_numpy(site.outputs).to(weight.device))
    lost = lost.index_select(1, torch.from_numpy(gone).to(weight.device)).to(share.dtype)
    lost = lost.reshape(len(share), -1, len(gone), weight[0, 0].numel())  # (groups, outputs, gone, kernel)
    weight.add_(torch.einsum("gojk,gij->goik", lost, share[:, :inputs]).reshape(weight.shape).to(weight.dtype))
    if site.constant:
        shift(site, ours, torch.einsum("gojk,gj->go", lost, share[:, inputs]).flatten())
    return repaired

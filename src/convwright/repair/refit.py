"""Weights of a cut network refitted: each layer answers its own inputs as the original answered the whole ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convwright.architecture.capture.pytrees import samples_in
from convwright.edits.importance import evaluated
from convwright.edits.surgery import named_tensors
from convwright.repair.consumers import (
    Consumer,
    Forward,
    LayerCall,
    Moments,
    Repaired,
    checked,
    consumers,
    kept_of,
    kept_of_original,
    shift,
    watched,
)
from convwright.repair.replay import Replay

if TYPE_CHECKING:
    from convwright.architecture import Architecture

HELD = 2**28  # bytes of the original's sampled responses that wait until the layers before theirs are done
_COMPARED = 64  # positions per image at which responses tell whether an edit reaches a layer

Wanted = Mapping[tuple[str, int, int], Tensor]  # (weight, batch, call) -> responses


def refit(
    original: Architecture,
    pruned: Architecture,
    images: Iterable[Tensor],
    *,
    ridge: float | None = None,
    positions: int = 20,
    forward: Forward | None = None,
) -> tuple[Repaired, ...]:
    """Fit the weights of what sums over channels to the original's responses, by ridge regression on data.

    Layer by layer in the order of the graph, on what the pruned network computes up to there, so that a layer also
    makes good what the ones before it could not. The ridge holds back the change of a weight, so that the error on
    these images never grows. Sums of products are streamed: activations of one batch are held at a time, and of the
    original's responses the sampled ones of some layers.

    Depthwise layers are left alone, and so are computed weights (parametrised, standardised), weights that other
    operators read, too, and layers of more than 8,192 inputs. A layer without bias is shifted by the running mean of
    the batch norm behind it.

    Args:
        original: The network that the edits began with, unedited and with its weights.
        pruned: What edits made of it; its model is changed in place, weights and biases alone.
        images: Batches (n, ...) as the networks take them, on their device; they are gone through several times.
        ridge: Strength, as a share of the mean square of a layer's inputs; None: chosen for each layer on the half of
            the images that it was not fitted on, where a step that does not help there is not taken.
        positions: How many positions to sample per unknown of a layer, spread evenly over the images.
        forward: How to run a model on a batch, e.g. in mixed precision; None: ``model(batch)``.

    Returns:
        The layers that an edit reaches, in order, with their errors on the images before and after. An error before is
        that of the cut weights on the repaired inputs.

    Raises:
        EditError: `pruned` was not made from `original` by edits.
        ConvwrightError: Activations are not finite, there are no images, or an option has no sense.

    Examples:
        >>> import torch, convwright as cw
        >>> from convwright.repair import refit
        >>> arch = cw.read("zoo:mnist-m1")
        >>> pruned = arch.apply(cw.Width(arch.free_groups[-1].name, 8))
        >>> images = torch.randn(2, 8, *arch.example_input.shape[1:])
        >>> all(layer.after <= layer.before for layer in refit(arch, pruned, images))
        True
    """
    batches = checked(images, "refit", ridge, positions, original.model)
    calibration = _Calibration(original, pruned, batches, positions, forward)
    done = []
    with evaluated(original.model, pruned.model), torch.no_grad():
        # Whatever an edit reaches is fitted, not what has lost inputs alone: it makes good errors that have added up.
        # Running statistics stay the original's: the responses that are fitted are meant for those. Re-estimating them
        # on the way was no better on EfficientNet-Lite0; afterwards it is, the more is cut.
        sites = calibration.reached(consumers(original, pruned))
        # A merge, or an estimate after an earlier cut, has moved them: no part of the responses that are fitted.
        theirs = named_tensors(original.model)
        calibration.means = {s.mean: kept_of_original(theirs, pruned, s.mean) for s in sites if s.mean}
        levels = _levels(pruned, sites)
        if not sites:
            return ()
        again = Replay(pruned.model, calibration.batches, forward, _counted(sites))
        for together in calibration.held_together(levels):
            wanted = calibration.responses([site for level in together for site in level])
            for level in together:
                done += calibration.refitted(level, wanted, ridge, again)
    return tuple(done)


class _Calibration:
    def __init__(
        self, original: Architecture, pruned: Architecture, batches: list[Any], positions: int, forward: Forward | None
    ) -> None:
        self.original, self.pruned, self.batches, self.forward = original.model, pruned.model, batches, forward
        self.tensors, self.positions = named_tensors(pruned.model), positions
        self.images = sum(map(samples_in, batches))
        self.means: Mapping[str, Tensor] = {}

    def each(self, site: Consumer) -> int:
        """Return how many positions of each image a layer is fitted on, in each of its calls."""
        unknowns = self.tensors[site.weight][0].numel() + site.constant
        return math.ceil(self.positions * unknowns / (self.images * len(site.nodes)))

    def reached(self, sites: Sequence[Consumer]) -> list[Consumer]:
        """Return the layers whose responses on the first images are no longer the original's."""
        batch = self.batches[0]
        theirs = watched(self.original, {site.source: len(site.nodes) for site in sites}, batch, self.forward)
        ours = watched(self.pruned, _counted(sites), batch, self.forward)
        return [site for site in sites if _differ(site, theirs[site.source], ours[site.weight])]

    def held_together(self, levels: Sequence[Sequence[Consumer]]) -> Iterator[Sequence[Sequence[Consumer]]]:
        """Put levels together for which the original runs once."""
        together, size = list[Sequence[Consumer]](), 0
        for level in levels:
            rows = (self.each(site) * self.images * len(site.nodes) * len(site.outputs) for site in level)
            more = self.tensors[level[0].weight][0].element_size() * sum(rows)
            if together and size + more > HELD:
                yield together
                together, size = [], 0
            together, size = [*together, level], size + more
        if together:
            yield together

    def responses(self, sites: Sequence[Consumer]) -> Wanted:
        """Return what the original answers at the positions that each layer is fitted on."""
        found = {}
        for number, batch in enumerate(self.batches):
            calls = watched(self.original, {site.source: len(site.nodes) for site in sites}, batch, self.forward)
            for site in sites:
                for turn, call in enumerate(calls[site.source]):
                    at = call.drawn(self.each(site), number)
                    found[site.weight, number, turn] = kept_of(site, call.responses(at))
        return found

    def refitted(self, level: Sequence[Consumer], wanted: Wanted, ridge: float | None, again: Replay) -> list[Repaired]:
        """Refit layers of which none sees what another one gives."""
        moments = {site.weight: Moments(site.constant) for site in level}
        for number in range(len(self.batches)):
            calls = again.watched(number, _counted(level))
            for site in level:
                for turn, call in enumerate(calls[site.weight]):
                    at = call.drawn(self.each(site), number)
                    target = wanted[site.weight, number, turn]
                    x = call.entering(at).flatten(2)
                    parts = (len(x), call.groups, -1)
                    lacking = target - call.responses(at)
                    moments[site.weight].add(x, lacking.reshape(parts), target.reshape(parts))
        return [self._fitted(site, moments[site.weight], ridge) for site in level]

    def _fitted(self, site: Consumer, moments: Moments, ridge: float | None) -> Repaired:
        step, repaired = moments.solved(site.layer, ridge)
        weight = self.tensors[site.weight]
        inputs = step.shape[1] - site.constant
        weight.add_(step[:, :inputs].mT.reshape(weight.shape).to(weight.dtype))
        if site.mean:
            self.tensors[site.mean].copy_(self.means[site.mean])
        if site.constant:
            shift(site, self.tensors, step[:, inputs].flatten())
        return repaired


def _counted(sites: Sequence[Consumer]) -> dict[str, int]:
    return {site.weight: len(site.nodes) for site in sites}


def _differ(site: Consumer, theirs: Sequence[LayerCall], ours: Sequence[LayerCall]) -> bool:
    """Whether an edit reaches a layer; not one that is run otherwise than in the graph, or on maps of another size."""
    pairs = list(zip(theirs, ours, strict=False))
    if not len(theirs) == len(ours) == len(site.nodes) or any(a.places != b.places for a, b in pairs):
        return False
    drawn = ((a, b, a.drawn(_COMPARED, 0)) for a, b in pairs)
    return not all(torch.equal(kept_of(site, a.responses(at)), b.responses(at)) for a, b, at in drawn)


def _levels(pruned: Architecture, sites: Sequence[Consumer]) -> list[list[Consumer]]:
    """Put neighbours together of which none sees what another one gives: one pass serves them all."""
    # A pass per block would be fewer, and was worse: its later layers were fitted on inputs that its first ones change.
    flow = pruned.flow
    levels: list[list[Consumer]] = []
    for site in sites:
        before: set[int] = set()
        waiting = [flow.place[node] for node in site.nodes]
        while waiting:
            new = set(flow.feeds[waiting.pop()]) - before
            before |= new
            waiting += new
        if levels and not any(flow.place[node] in before for other in levels[-1] for node in other.nodes):
            levels[-1].append(site)
        else:
            levels.append([site])
    return levels

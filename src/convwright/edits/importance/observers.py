"""Importances that look at calibration batches: Taylor terms, the Fisher diagonal, activations."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from convwright.edits.importance.gates import Gates, Scores
from convwright.edits.importance.registry import Observer, observer


class _Mean(Observer):
    def __init__(self, gates: Gates) -> None:
        super().__init__(gates)
        self.total = {name: np.zeros(units) for name, units in gates.units.items()}
        self.seen = 0

    def scores(self) -> dict[str, Scores]:
        return {name: total / max(1, self.seen) for name, total in self.total.items()}


@observer("taylor")
class Taylor(_Mean):
    """Squared first-order change of each sample's loss when a channel is silenced, averaged over samples.

    Molchanov et al. 2019 at the gates of the consumers instead of batch norm's scale; the same as the empirical Fisher
    information of a channel's factor (Theis et al. 2018).
    """

    single: ClassVar[bool] = True

    def see(self) -> None:
        """Add up the batch."""
        for name, changes in self.gates.changes().items():
            self.total[name] += (changes**2).sum(axis=0)
        self.seen += self.gates.count


@observer("taylor-batch")
class TaylorOfBatches(_Mean):
    """The squared change of the mean loss of a batch: cheaper where consumers have no gate; changes cancel in it."""

    def see(self) -> None:
        """Add up the batch."""
        for name, changes in self.gates.changes().items():
            self.total[name] += changes.mean(axis=0) ** 2
        self.seen += 1


@observer("fisher")
class FisherDiagonal(_Mean):
    """Sum over the weights that read a channel of weight² x squared gradient of the batch (Fisher diagonal).

    As a weight pruner counts (LeCun et al. 1990 with the empirical Fisher): weights of a channel are taken to be
    independent of each other, which they are not when all of them go at once.
    """

    parameters: ClassVar[bool] = True

    def see(self) -> None:
        """Add up the batch."""
        gates = self.gates
        for site in gates.sites:
            gradient = gates.gradients.get(site.member.tensor)
            if gradient is not None:
                self.total[site.group] += gates.by_weight(site, (gates.parameter(site) * gradient) ** 2)[0]
        self.seen += 1


class _Activation(_Mean):
    """What passes a channel's consumers; the mean over those consumers that have a gate."""

    gradients: ClassVar[bool] = False

    def __init__(self, gates: Gates) -> None:
        super().__init__(gates)
        self.moments = {name: np.zeros((2, units)) for name, units in gates.units.items()}
        self.passes = dict.fromkeys(gates.units, 0)

    def see(self) -> None:
        for site in self.gates.sites:
            for moments in (each.moments for each in self.gates.passes(site)):
                if moments is not None:
                    rows = moments[0].shape[0] // self.gates.count
                    sums = [self.gates.by_channel(site, moment / rows).sum(axis=0) for moment in moments]
                    self.moments[site.group] += np.stack(sums)
                    self.passes[site.group] += self.gates.count

    def _means(self) -> dict[str, tuple[Scores, Scores]]:
        return {name: tuple(table / max(1, self.passes[name])) for name, table in self.moments.items()}


@observer("activation-mean")
class ActivationMean(_Activation):
    """Mean of a channel's activations, without sign."""

    def scores(self) -> dict[str, Scores]:
        """Return one score per channel, by group name."""
        return {name: np.abs(mean) for name, (mean, _) in self._means().items()}


@observer("activation-variance")
class ActivationVariance(_Activation):
    """Variance of a channel's activations over samples and positions."""

    def scores(self) -> dict[str, Scores]:
        """Return one score per channel, by group name."""
        return {name: np.maximum(square - mean**2, 0) for name, (mean, square) in self._means().items()}

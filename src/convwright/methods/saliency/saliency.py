"""The method for trained networks: cut what the loss misses least, in rounds, then fine-tune."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from convwright.cost.budget import Limits
from convwright.edits import Plan
from convwright.edits.importance import IMPORTANCE, OBSERVERS
from convwright.errors import ConvwrightError, did_you_mean
from convwright.methods.base import Candidate, register
from convwright.methods.options import MethodOptions
from convwright.methods.saliency.allocate import allocation
from convwright.methods.saliency.rounds import Cutting, Start
from convwright.methods.script import Script, Scripted


class SaliencyOptions(MethodOptions):
    """Options of method ``saliency``.

    Attributes:
        kind: How channels are scored: ``taylor``, ``taylor-batch``, ``fisher``, ``activation-mean``,
            ``activation-variance``, ``l2``, ``l1``, ``bn-scale`` or ``random``.
        rounds: In how many steps the network is cut; channels are scored anew after each.
        epochs_between: Epochs of training after each cut but the last; they are taken from those of the last.
        blocks: Whether whole blocks may go, too.
    """

    kind: str = "taylor"
    rounds: int = Field(4, ge=1)
    epochs_between: int = Field(0, ge=0)
    # EfficientNet-Lite0 on clothing at half the MACs, validation after 6 epochs, one seed: 91.2 % without, 88.3 % with.
    blocks: bool = False


@register("saliency")
class Saliency(Scripted):
    """Cuts the channels and blocks that a trained network misses least, by exact costs, then fine-tunes.

    1. The untouched network, trained or given, says by gradients on calibration images what each channel is worth, and
       by measured losses what each block is worth.
    2. The widths and blocks that lose the least within the budget go (`convwright.allocate`). In several rounds, each a
       part of the way: what is left is scored anew after each, on the repaired network.
    3. The result is fine-tuned, and the untouched network beside it for as long. Where that made it worse on validation
       images, the result is what was repaired.

    Sources: first-order Taylor terms (Molchanov et al. 2017 and 2019), per sample at the consumers of a channel; the
    allocation by marginal cost and the rounds without training are ours.

    Raises:
        BudgetError: No widths and blocks meet the limits.
        ConvwrightError: The network has nothing that could change, or an option is wrong.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.read("zoo:resnet20")
        >>> limits = cw.parse_budget("macs<=50%").resolve(arch.profile())
        >>> method = cw.methods.Saliency(arch, limits, epochs=0, tune_epochs=3)
        >>> [(c.role, c.epochs, c.probes) for c in method.ask()]
        [('base', 0, ('saliency',))]
    """

    Options = SaliencyOptions
    options: SaliencyOptions
    limits: Limits  # never None here
    needs_budget = "cuts a trained network to a budget; give one, such as macs<=50%"

    def set_up(self) -> None:
        """Refuse, before any training, what cannot be cut."""
        kind, known = self.options.kind, [*OBSERVERS, *IMPORTANCE]
        if kind not in known:
            raise ConvwrightError(
                f"option kind={kind!r} of method saliency: give one of {', '.join(known)}.{did_you_mean(kind, known)}"
            )
        if not self.arch.free_groups:
            raise ConvwrightError(f"{self.arch.source} has no channels that could change; `convwright doctor` says why")
        flat = {group.name: np.ones(group.units) for group in self.arch.free_groups}
        allocation(self.arch, flat, self.limits, divisor=self.terms.divisor)

    def _run(self) -> Script:
        terms, options = self.terms, self.options
        cutting = Cutting(self.arch, self.limits, terms.divisor, options.kind, options.rounds, options.blocks)
        (base,) = yield (
            Candidate(Plan.empty(self.arch), None, terms.epochs, terms.seed, role="base", probes=cutting.probes),
        )
        cuts = max(1, options.rounds - 1)
        between = min(options.epochs_between, max(0, terms.tune_epochs - 1) // cuts)
        cut = yield from cutting.run(Start(Plan.empty(self.arch), self.arch, base), terms.seed, between)
        if cut is None:
            self._note("cut", f"there is nothing to begin with, {base.message}")
            return
        for words in cut.words:
            self._note("cut", words)
        left = terms.tune_epochs - between * cuts
        untouched = Candidate(Plan.empty(self.arch), 0, terms.tune_epochs, terms.seed + 1, role="baseline")
        _, final = yield (untouched, Candidate(cut.plan, cut.parent, left, terms.seed + 1))
        if self._meets(final) and final.before_training is not None and final.before_training > final.score:
            trained = f"{final.metric.shown(final.before_training)} before the training and {final.shown} after it"
            (final,) = yield (Candidate(cut.plan, cut.parent, 0, terms.seed + 1),)
            self._note("end", f"{trained}: kept as it was repaired; give the training more epochs or a lower rate")
        self._final = final.trial if self._meets(final) else None

"""Repair of an edited network before it is trained or judged: its consumers, then batch norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import nn

from convwright.devices import device_of
from convwright.edits import Plan, Width
from convwright.repair import merge, refit
from convwright.training.statistics import calibration

if TYPE_CHECKING:
    from convwright.architecture import Architecture
    from convwright.training.data.images import Images
    from convwright.training.tasks.base import TaskPart


@dataclass(frozen=True)
class Repairs:
    """What is repaired where an edit changed the function.

    Attributes:
        merge: Whether removed channels are stood in for by the kept ones.
        refit: Whether the weights that read from a cut are refitted to the original's responses.
        reestimate: Whether batch norm is re-estimated, also after trainings that are too short for it.
        images: Calibration images of the first two, and of probes that look at some.
    """

    merge: bool = False
    refit: bool = False
    reestimate: bool = True
    images: int = 512

    def steps(
        self,
        original: Architecture | None,
        edited: Architecture,
        images: Images | TaskPart,
        norms: Callable[[nn.Module], int],
        *,
        channels_last: bool = False,
    ) -> Mapping[str, Callable[[], int]]:
        """Return what is to be done, by name and in order; each returns the number of images that it used.

        Args:
            original: The untouched network with its weights; None where it is not known which channels are left of it.
            edited: What edits made of it; its weights are changed in place.
            images: The training images.
            norms: Re-estimates batch norm.
            channels_last: Layout of the batches: on a CPU, forward passes of most networks take half the time in it.
        """

        @cache  # both repairs see the same images, read once
        def batches() -> list[Any]:
            return calibration(images, self.images, device_of(edited.model), channels_last=channels_last)

        found: dict[str, Callable[[], int]] = {}
        if original is not None and self.merge:
            found["merging"] = lambda: len(merge(original, edited, batches())) and self.images
        if original is not None and self.refit:
            found["refit"] = lambda: len(refit(original, edited, batches())) and self.images
        if self.reestimate:
            found["batch norm"] = lambda: norms(edited.model)
        return found


def traceable(plan: Plan) -> bool:
    """Return whether a plan says which channels are left: widths by the weights of a trained parent do not."""
    return all(edit.keep is not None for edit in plan.edits if isinstance(edit, Width))

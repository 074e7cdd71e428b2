"""Several labels per image: which of the classes it shows."""
# ruff: noqa: D102 - as of DatasetTask

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from convwright.errors import DataError
from convwright.ranking import Metric
from convwright.training.tasks.dataset import DatasetTask, bootstrap, library, output_like
from convwright.training.tasks.sources import npz

_ROUNDS = 30  # of the bootstrap: each sorts all scores
_JUDGES = {"mAP": "multilabel_average_precision", "F1": "multilabel_f1_score"}


class Multilabel(DatasetTask):
    """Images that show several classes: binary cross-entropy, judged by mAP (mean average precision) or F1.

    A target has a 0 or 1 for each class. Sources: ``npz:``.

    Args:
        data: As of `DatasetTask`.
        rank: What ranks networks: ``mAP``, or ``F1`` at a probability of one half.
        options: As of `DatasetTask`.
    """

    kind: ClassVar[str] = "multilabel"
    sources = {"npz": npz}  # noqa: RUF012
    guess = math.log(2)

    def __init__(self, data: Any, *, rank: Literal["mAP", "F1"] = "mAP", **options: Any) -> None:
        super().__init__(data, **options)
        self.metric = Metric(rank)

    def target(self, value: Any, size: tuple[int, int], where: str) -> Tensor:
        labels = torch.as_tensor(value, dtype=torch.float32)
        if labels.ndim != 1 or (self.class_names and len(labels) != len(self.class_names)):
            raise DataError(f"{where}: labels of shape {tuple(labels.shape)}; give a 0 or 1 for each class")
        if len(wrong := labels[(labels != 0) & (labels != 1)]):
            raise DataError(f"{where}: a label is {float(wrong[0]):g}; give a 0 or 1 for each class")
        return labels

    def loss_of(self, output: Any, targets: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(output_like(output, targets, self.name), targets)

    def measured(self, output: Any, targets: Any) -> Tensor:
        return torch.stack([output_like(output, targets, self.name).sigmoid(), targets], 1)

    def summary(self, rows: Tensor) -> dict[str, float]:
        found = {name: float(_judged(rows, name)) for name in _JUDGES}
        error = bootstrap(rows, partial(_judged, name=self.metric.name), _ROUNDS)
        return {**found, f"{self.metric.name}_stderr": error}


def _judged(rows: Tensor, name: str) -> Tensor:
    """Return the mean over the classes that some sample shows; NaN where there is none."""
    scores, labels = rows[..., rows[:, 1].any(0)].unbind(1)
    if not labels.shape[1]:
        return scores.new_tensor(math.nan)
    judge = getattr(library("functional.classification"), _JUDGES[name])
    found: Tensor = judge(scores, labels.long(), labels.shape[1], validate_args=False)
    return found

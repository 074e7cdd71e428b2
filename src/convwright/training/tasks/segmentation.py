"""A class for each pixel."""
# ruff: noqa: D102 - as of DatasetTask

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors

from convwright.errors import DataError
from convwright.ranking import Metric
from convwright.training.settings import single_tensor
from convwright.training.tasks.base import Batch, Loss
from convwright.training.tasks.dataset import DatasetTask, bootstrap, library
from convwright.training.tasks.losses import distillation_loss
from convwright.training.tasks.sources import coco_masks, folder_pairs, npz, read_mask, voc_masks

if TYPE_CHECKING:
    from convwright.training.recipe.recipe import Recipe

_AUXILIARY = 0.5  # weight of further outputs, as torchvision trains its networks


class Segmentation(DatasetTask):
    """Masks of class numbers (h, w): cross-entropy, judged by mIoU, the mean over classes of intersection over union.

    Outputs (n, classes, h, w) of another size are resized to the mask. Of a dictionary of outputs, ``out`` is judged;
    others, such as torchvision's ``aux``, count half in the loss. Sources: ``folder:`` with ``images/`` and ``masks/``
    (or ``train/images/`` ...), ``coco:``, ``voc:`` and ``npz:``.

    Args:
        data: As of `DatasetTask`.
        ignore_index: Number of pixels that do not count.
        weights: Of the classes in the loss; None: all alike.
        numbers: Class numbers by what stands for them in masks, such as ``{255: 1}``; then nothing is ignored that it
            names. None: ``{255: 1}`` where all training masks are black and white (0 and 255), else nothing.
        options: As of `DatasetTask`; where nothing names the classes, the training masks are read once to count them.
    """

    kind: ClassVar[str] = "segmentation"
    metric = Metric("mIoU")
    sources = {  # noqa: RUF012
        "folder": lambda root: folder_pairs(root, "images", "masks", read_mask),
        "coco": coco_masks, "voc": voc_masks, "npz": npz,
    }  # fmt: skip

    def __init__(
        self,
        data: Any,
        *,
        ignore_index: int = 255,
        weights: Sequence[float] | None = None,
        numbers: Mapping[int, int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data, **options)
        self.ignore_index, self.weights, self.numbers = ignore_index, weights, dict(numbers or {})
        if numbers is None and "train" in self.parts and not self._loads("train") and self._black_and_white():
            self.numbers = {255: 1}
        self.fill = {tv_tensors.Mask: ignore_index, "others": 0}
        self.class_names = self.class_names or tuple(map(str, range(self._count())))
        if weights is not None and len(weights) != self.num_classes:
            raise DataError(f"{self.name}: {len(weights)} weights and {self.num_classes} classes; give one for each")

    def _masks(self) -> Iterator[Tensor]:
        where, samples = f"{self.name}: train", self.data["train"]
        return (self._mask(self.pair(samples[i], where)[1], where) for i in range(len(samples)))

    def _black_and_white(self) -> bool:
        """Say whether all training masks hold 0 and 255 alone; the first with another number ends the look."""
        seen = set[int]()
        for mask in self._masks():
            seen |= set(mask.unique().tolist())  # type: ignore[no-untyped-call]
            if not seen <= {0, 255}:
                return False
        return seen == {0, 255}

    def _count(self) -> int:
        if self._loads("train"):
            raise DataError(f"{self.name}: nothing says how many classes there are; give classes")
        found = max(int(mask.masked_fill(mask == self.ignore_index, 0).max()) for mask in self._masks())
        if found < 1:
            raise DataError(
                f"{self.name}: train: all pixels are class 0 or ignored ({self.ignore_index}); the masks are empty, or "
                "give numbers={VALUE: 1} for what stands for class 1"
            )
        return found + 1

    def _mask(self, value: Any, where: str) -> Tensor:
        mask = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
        if mask.is_floating_point() or mask.ndim != 2:
            raise DataError(f"{where}: a mask is {tuple(mask.shape)} {mask.dtype}; give whole class numbers (h, w)")
        found = mask.long()
        for given, number in self.numbers.items():
            found = found.masked_fill(mask == given, number)
        return found

    @property
    def guess(self) -> float:  # type: ignore[override]
        return math.log(self.num_classes)

    def target(self, value: Any, size: tuple[int, int], where: str) -> Tensor:
        mask = self._mask(value, where)
        if tuple(mask.shape) != size:
            these, those = ("x".join(map(str, each)) for each in (mask.shape, size))
            raise DataError(f"{where}: the mask is {these} and the image {those}; make both alike")
        wrong = mask[(mask != self.ignore_index) & ((mask < 0) | (mask >= self.num_classes))]
        if len(wrong):
            raise DataError(
                f"{where}: class {int(wrong[0])} in the mask is outside 0..{self.num_classes - 1}; give classes, or "
                f"ignore_index (now {self.ignore_index}) for what does not count"
            )
        found: Tensor = tv_tensors.Mask(mask)
        return found

    def training_loss(self, recipe: Recipe) -> Loss:
        return partial(self.loss, label_smoothing=recipe.label_smoothing)

    def loss(self, model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        output, found = self.forward(model, batch[0]), list[Tensor]()
        more = [each for name, each in output.items() if name != "out"] if isinstance(output, Mapping) else []
        for each in (output, *more):
            found.append(self.loss_of(each, batch[1], label_smoothing))
        return found[0] + _AUXILIARY * torch.stack(found[1:]).sum() if more else found[0]

    def loss_of(self, output: Any, targets: Any, label_smoothing: float = 0.0) -> Tensor:
        scores = self._scores(output, targets)
        weight = None if self.weights is None else scores.new_tensor(self.weights)
        how: dict[str, Any] = {"ignore_index": self.ignore_index, "label_smoothing": label_smoothing}
        none = bool((targets == self.ignore_index).all())  # the mean over no pixel would be NaN
        return scores.sum() * 0 if none else F.cross_entropy(scores, targets, weight, **how)

    def _scores(self, output: Any, targets: Tensor) -> Tensor:
        (scores,) = self.outputs(output)
        if scores.ndim != 4 or scores.shape[1] != self.num_classes:
            wanted = f"(n, {self.num_classes}, h, w), a score for each class and pixel"
            raise DataError(f"{self.name}: the network returns {tuple(scores.shape)}; it must be {wanted}")
        size = targets.shape[1:]
        return scores if scores.shape[2:] == size else F.interpolate(scores, size, mode="bilinear")

    def measured(self, output: Any, targets: Any) -> Tensor:
        judge, rows = library("functional.classification").multiclass_confusion_matrix, list[Tensor]()
        how: dict[str, Any] = {"ignore_index": self.ignore_index, "validate_args": False}
        for found, wanted in zip(self._scores(output, targets).argmax(1), targets, strict=True):
            table = judge(found, wanted, self.num_classes, **how)
            hit = table.diagonal()
            rows.append(torch.stack([hit, table.sum(0) + table.sum(1) - hit, table.sum(1)]))
        return torch.stack(rows)

    def summary(self, rows: Tensor) -> dict[str, float]:
        hit, _, pixels = rows.sum((0, 2)).tolist()
        iou = {"mIoU": float(_mean_iou(rows)), "mIoU_stderr": bootstrap(rows, _mean_iou)}
        return {**iou, "pixel_accuracy": hit / max(pixels, 1)}

    def outputs(self, output: Any) -> Sequence[Tensor]:
        named = isinstance(output, Mapping) and "out" in output
        return [(output["out"] if named else single_tensor(output)).float()]

    def distance(self, own: Sequence[Tensor], taught: Sequence[Tensor], temperature: float) -> Tensor:
        return distillation_loss(own[0], taught[0], temperature)


def _mean_iou(rows: Tensor) -> Tensor:
    """Return mIoU from intersections, unions and pixels (n, 3, classes), over classes that are shown or told."""
    hit, union, _ = rows.double().sum(0)
    found: Tensor = (hit / union)[union > 0].mean()
    return found

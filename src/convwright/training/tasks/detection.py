"""Boxes around objects, and what they are."""
# ruff: noqa: D102 - as of DatasetTask

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torchvision import tv_tensors

from convwright.errors import DataError
from convwright.ranking import Metric
from convwright.training.tasks.base import Batch, training_code
from convwright.training.tasks.dataset import DatasetTask, library, plain, size_of
from convwright.training.tasks.sources import coco_boxes, voc_boxes

_BATCH = 8  # images that are judged at once: detectors make them large


class _Whole:
    """A list that Fabric does not take for one: in mixed precision, it would round the boxes in it to bfloat16."""

    def __init__(self, held: list[Any]) -> None:
        self.held = held

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, place: int) -> Any:
        return self.held[place]


class Detection(DatasetTask):
    """Boxes with labels, judged by COCO's mAP (mean over overlaps of 0.50 to 0.95) and mAP50.

    A target is a dictionary of ``boxes`` (n, 4), as x1, y1, x2, y2 in pixels, and ``labels`` (n,), where 0 is the
    background. The network gets a list of images (c, h, w) in 0..1, as torchvision's detectors do. Such a detector
    returns its losses when it is called with targets in training mode. Sources: ``coco:`` and ``voc:``.

    Args:
        data: As of `DatasetTask`.
        loss: Of what any other network returns in training mode and of the targets: a tensor, or a dictionary of them.
        decode: Makes of what it returns in eval mode a list of dictionaries of boxes, labels and scores.
        stacked: Whether images, which are then of one size, are given as one tensor (n, c, h, w).
        rank: What ranks networks.
        options: As of `DatasetTask`.
    """

    kind: ClassVar[str] = "detection"
    sources = {"coco": coco_boxes, "voc": voc_boxes}  # noqa: RUF012
    follows = frozenset({"hflip", "crop_padding", "resized_crop"})
    reflects, normalises = False, False

    def __init__(
        self,
        data: Any,
        *,
        loss: Callable[[Any, Any], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
        stacked: bool = False,
        rank: Literal["mAP", "mAP50"] = "mAP",
        **options: Any,
    ) -> None:
        super().__init__(data, **options)
        self.criterion, self.decode, self.stacked, self.metric = loss, decode, stacked, Metric(rank)

    def target(self, value: Any, size: tuple[int, int], where: str) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not {"boxes", "labels"} <= value.keys():
            raise DataError(f"{where}: the target is no dictionary of boxes and labels")
        boxes = torch.as_tensor(value["boxes"], dtype=torch.float32).reshape(-1, 4)
        labels = torch.as_tensor(value["labels"], dtype=torch.int64).reshape(-1)
        if len(boxes) != len(labels):
            raise DataError(f"{where}: {len(boxes)} boxes and {len(labels)} labels; give one label for each box")
        limit = torch.tensor(size[::-1] * 2, dtype=torch.float32)
        wrongs = {
            f"has a label outside 0..{self.num_classes - 1}": (labels < 0) | (labels >= (self.num_classes or 2**31)),
            "is empty": ~(boxes[:, 2:] > boxes[:, :2]).all(1),
            # Annotations are rounded: a pixel beyond the border is no mistake.
            f"is outside the image of {size[1]}x{size[0]}": ((boxes < -1) | (boxes > limit + 1)).any(1),
        }
        for what, wrong in wrongs.items():
            if bool(wrong.any()):
                shown = ", ".join(f"{each:g}" for each in boxes[wrong][0].tolist())
                raise DataError(f"{where}: the box {shown} {what}; boxes are x1, y1, x2, y2 in pixels, labels numbers")
        boxes = boxes.clamp(torch.zeros(4), limit)
        return {"boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size), "labels": labels}

    def finished(self, inputs: Any, target: Any) -> tuple[Any, Any]:
        limit = torch.tensor(size_of(inputs)[::-1] * 2, dtype=torch.float32)
        boxes = plain(target["boxes"]).clamp(torch.zeros(4), limit)
        kept = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)  # transforms may leave less than a pixel
        return self.seen(inputs), {"boxes": boxes[kept], "labels": target["labels"][kept]}

    def collated(self, part: str, samples: Sequence[tuple[int, Any, Any]]) -> Batch:
        targets = [target for _, _, target in samples]
        if self.stacked:
            return super().collated(part, [(*each[:2], None) for each in samples])[0], targets
        return [image for _, image, _ in samples], targets

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        images, targets = batch
        with training_code(model):
            if self.criterion is not None:
                found = self.criterion(self.forward(model, images), targets)
            else:
                found = model(images, _Whole(targets) if isinstance(model, _FabricModule) else targets)
        if self.criterion is None and not isinstance(found, Mapping):
            raise DataError(
                f"{self.name}: called with images and targets, the network returns a {type(found).__name__}, not a "
                "dictionary of losses; give loss and decode"
            )
        total: Tensor = sum(found.values()) if isinstance(found, Mapping) else found  # type: ignore[assignment]
        return total

    def metrics(self, model: nn.Module, part: str) -> Mapping[str, float]:
        judge = library("detection").MeanAveragePrecision()
        judge.warn_on_many_detections = False
        for images, targets in self.on_device(model, part, _BATCH):
            output = self.forward(model, images)
            found = output if self.decode is None else self.decode(output)
            judge.update(
                [{**each, "boxes": each["boxes"].float(), "scores": each["scores"].float()} for each in found], targets
            )
        shown = judge.compute()
        if float(shown["map"]) < 0:
            raise DataError(f"{self.name}: no image of {part} has a box; what finds none cannot be judged")
        return {"mAP": float(shown["map"]), "mAP50": float(shown["map_50"])}

    def watched(self, model: nn.Module) -> nn.Module:
        """Return the head of torchvision's one-stage detectors, the backbone of two-stage ones, else the network."""
        inner = getattr(model, "module", model)
        parts = (getattr(inner, name, None) for name in ("head", "backbone") if self.criterion is None)
        return next((part for part in parts if isinstance(part, nn.Module)), model)

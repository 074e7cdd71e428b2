"""What detectors, segmenters and backbones add to the support matrix: their losses, and torch-pruning's users' way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from support_networks import CLASSES, family_of
from torch import Tensor, nn

from convwright.architecture.capture.pytrees import Inputs
from convwright.edits.surgery import tensors_in

_IMAGES = 2  # batch norm over a map of one pixel wants two


def own_loss(name: str, model: nn.Module, inputs: Inputs) -> Tensor:
    """Return a network's own loss in training mode, for random images and made-up targets."""
    generator = torch.Generator().manual_seed(0)
    shape = (_IMAGES, *inputs.tensors[0].shape[-3:])
    images = torch.rand(shape, generator=generator)
    losses = _LOSSES[family_of(name)](model.train(), images, name)
    return sum((t.float().sum() for t in tensors_in(losses)), torch.zeros(()))


def _classes(model: nn.Module) -> int:
    names = getattr(model, "names", None)
    return len(names) if isinstance(names, dict) else 2


def _yolo(model: nn.Module, images: Tensor, name: str) -> Any:
    """Ultralytics' loss, for one box in the middle of each image."""
    count, side = len(images), images.shape[-1]
    batch = {
        "img": images,
        "cls": torch.arange(count).float().reshape(-1, 1) % _classes(model),
        "bboxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]]).repeat(count, 1),
        "batch_idx": torch.arange(count).float(),
        "masks": torch.ones(count, side // 4, side // 4),
        "sem_masks": torch.zeros(count, side // 4, side // 4, dtype=torch.long),
        "keypoints": torch.tensor([0.5, 0.5, 2.0]).repeat(count, 17, 1),
    }
    if name.endswith("-cls"):
        batch["cls"] = torch.arange(count)
    return model.loss(batch)[0]  # type: ignore[operator]


def _detector(model: nn.Module, images: Tensor, name: str) -> Any:
    """The losses of torchvision's detectors, for one box in the middle of each image."""
    side = images.shape[-1]
    box = torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * side
    target = {"boxes": box, "labels": torch.ones(1, dtype=torch.long)}
    target |= {"masks": torch.ones(1, side, side, dtype=torch.uint8)} if "mask" in name else {}
    target |= {"keypoints": torch.tensor([side / 2, side / 2, 1.0]).repeat(1, 17, 1)} if "keypoint" in name else {}
    return model(list(images), [dict(target) for _ in images])


def _segmenter(model: nn.Module, images: Tensor, name: str) -> Any:
    """Cross-entropy on each map that it gives, an auxiliary one included."""
    target = torch.arange(images[:, 0].numel()).reshape(images[:, 0].shape) % CLASSES
    return [nn.functional.cross_entropy(each, target) for each in tensors_in(model(images))]


def _backbone(model: nn.Module, images: Tensor, name: str) -> Any:
    """A backbone has no loss of its own: the mean square of each map."""
    return [each.square().mean() for each in tensors_in(model(images))]


_LOSSES: dict[str, Callable[[nn.Module, Tensor, str], Any]] = {
    "ultralytics": _yolo,
    "detection": _detector,
    "segmentation": _segmenter,
    "smp": _segmenter,
    "timm-features": _backbone,
}


# ------------------------------------------------------------------ torch-pruning beside us


def ignored_by_hand(name: str, model: Any) -> list[nn.Module]:
    """Return the layers that torch-pruning's users leave out: what makes the outputs.

    Of torchvision's detectors as torch-pruning's own benchmark does (``tests/test_torchvision_models.py``).
    """
    family = family_of(name)
    if family == "ultralytics":
        return [model.model[-1]]
    if family == "smp":
        return [model.segmentation_head]
    if family == "segmentation":
        heads = [getattr(model, part, None) for part in ("classifier", "aux_classifier", "head")]
        found = [[m for m in head.modules() if isinstance(m, nn.Conv2d)] for head in heads if head is not None]
        return [m for convolutions in found for m in convolutions if m.out_channels == CLASSES]
    if family == "timm-features":
        return []
    if "rcnn" in name:
        return [model.backbone.fpn, model.rpn.head.cls_logits, model.rpn.head.bbox_pred, model.roi_heads]
    return [model.head]

"""Numbers for each image, or the places of points in it."""
# ruff: noqa: D102 - as of DatasetTask

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors

from convwright.architecture.capture.pytrees import mapped
from convwright.errors import DataError
from convwright.ranking import Metric
from convwright.training.settings import single_tensor
from convwright.training.tasks.dataset import DatasetTask, mean_of, output_like, plain, size_of
from convwright.training.tasks.sources import npz

_NEAR = 0.05  # share of the longer side within which a point counts as found


class Regression(DatasetTask):
    """Numbers for each sample, judged by the mean absolute error.

    A target is a vector, which cannot follow a flip or a crop: of the recipe's random changes only cutout is made. Give
    those that leave the target as it is as `transforms`. Sources: ``npz:``.

    Args:
        data: As of `DatasetTask`.
        loss: Of outputs and targets (n, numbers).
        unit: Of the numbers.
        options: As of `DatasetTask`.
    """

    kind: ClassVar[str] = "regression"
    sources = {"npz": npz}  # noqa: RUF012
    follows = frozenset({"cutout"})

    def __init__(
        self, data: Any, *, loss: Callable[..., Tensor] = F.smooth_l1_loss, unit: str = "", **options: Any
    ) -> None:
        super().__init__(data, **options)
        self.metric, self.criterion = Metric("mae", higher_is_better=False, unit=unit), loss

    def target(self, value: Any, size: tuple[int, int], where: str) -> Tensor:
        numbers = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
        if len(wrong := numbers[~torch.isfinite(numbers)]):
            raise DataError(f"{where}: the target holds {float(wrong[0])}; correct it, or leave the sample out")
        return numbers

    def loss_of(self, output: Any, targets: Any) -> Tensor:
        return self.criterion(output_like(output, targets, self.name), targets)

    def measured(self, output: Any, targets: Tensor) -> Tensor:
        return output_like(output, targets, self.name) - targets

    def summary(self, rows: Tensor) -> dict[str, float]:
        return {**mean_of("mae", rows.abs().mean(1)), "rmse": float(rows.square().mean().sqrt())}


class Keypoints(DatasetTask):
    """Points in images, which the network shows as heat maps (n, points, h, w) of any size.

    The loss is the squared difference from Gaussians, relative to that of an empty map: a sum over pixels, for which
    AdamW fits, or SGD with a low rate. Judged by the mean distance in
    pixels of the input, and PCK, the share of points within 5 % of the longer side. A target is (points, 2) of x and y,
    or (points, 3) with 1 for a point that is there, else 0. No image is mirrored: left and right would be mistaken.
    Sources: ``npz:``.

    Args:
        data: As of `DatasetTask`.
        sigma: Of the Gaussians, in pixels of the heat map.
        options: As of `DatasetTask`.
    """

    kind: ClassVar[str] = "keypoints"
    sources = {"npz": npz}  # noqa: RUF012
    metric = Metric("distance", higher_is_better=False, unit="px")
    guess = 1.0
    follows, reflects = frozenset({"crop_padding", "resized_crop", "cutout"}), False

    def __init__(self, data: Any, *, sigma: float = 2.0, **options: Any) -> None:
        super().__init__(data, **options)
        self.sigma = sigma

    def target(self, value: Any, size: tuple[int, int], where: str) -> dict[str, Tensor]:
        points = torch.as_tensor(value, dtype=torch.float32)
        if points.ndim != 2 or points.shape[1] not in (2, 3) or not bool(torch.isfinite(points).all()):
            raise DataError(f"{where}: points are {tuple(points.shape)} or NaN; give finite (points, 2) or (points, 3)")
        there = points[:, 2] > 0 if points.shape[1] == 3 else torch.ones(len(points), dtype=torch.bool)
        return {"points": tv_tensors.KeyPoints(points[:, :2], canvas_size=size), "there": there}

    def finished(self, inputs: Any, target: Any) -> tuple[Any, Any]:
        points, sides = plain(target["points"]), torch.tensor(size_of(inputs)[::-1], dtype=torch.float32)
        there = target["there"] & ((points >= 0) & (points < sides)).all(1)
        return mapped(inputs, self.seen), {"points": torch.cat([points, there[:, None].float()], 1), "sides": sides}

    def loss_of(self, output: Any, targets: Any) -> Tensor:
        maps, points = single_tensor(output).float(), targets["points"]
        places = points[..., :2] / targets["sides"][:, None] * maps.new_tensor(maps.shape[:1:-1]) - 0.5
        wanted = torch.exp(-_apart(maps, places) / (2 * self.sigma**2))
        lost = (maps - wanted).square().sum((2, 3)) / (torch.pi * self.sigma**2)
        found: Tensor = (lost * points[..., 2]).sum() / points[..., 2].sum().clamp_min(1)
        return found

    def measured(self, output: Any, targets: Any) -> Tensor:
        maps, sides, width = single_tensor(output).float(), targets["sides"], output.shape[3]
        top = maps.flatten(2).argmax(2)
        peak = torch.stack([top % width, top // width], 2)
        near = maps.clamp_min(1e-9) * (_apart(maps, peak) <= (2 * self.sigma) ** 2)  # the centre of each peak
        rows, columns = (torch.arange(side, device=maps.device) for side in maps.shape[2:])
        sums = torch.stack([(near.sum(2) * columns).sum(2), (near.sum(3) * rows).sum(2)], 2)
        found = (sums / near.sum((2, 3))[..., None] + 0.5) / maps.new_tensor(maps.shape[:1:-1]) * sides[:, None]
        apart, shown = (found - targets["points"][..., :2]).norm(dim=2), targets["points"][..., 2]
        hit = (apart <= _NEAR * sides.amax(1, keepdim=True)).float()
        return torch.stack([(each * shown).sum(1) / shown.sum(1) for each in (apart, hit)], 1)

    def summary(self, rows: Tensor) -> dict[str, float]:
        rows = rows[~rows.isnan().any(1)]  # of images in which there is no point
        return {**mean_of("distance", rows[:, 0]), **mean_of("pck", rows[:, 1])}


def _apart(maps: Tensor, places: Tensor) -> Tensor:
    """Return squared distances (n, points, h, w) of the pixels of maps from places (n, points, 2)."""
    rows, columns = (torch.arange(side, device=maps.device) for side in maps.shape[2:])
    across, down = ((each - places[..., axis, None]).square() for axis, each in enumerate((columns, rows)))
    return across[..., None, :] + down[..., :, None]

"""Images from worse ones: super-resolution, denoising, and the like."""
# ruff: noqa: D102 - as of DatasetTask

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from convwright.errors import DataError
from convwright.ranking import Metric
from convwright.training.data.images import as_image
from convwright.training.tasks.dataset import DatasetTask, library, mean_of, output_like
from convwright.training.tasks.sources import as_read, folder_images, folder_pairs, npz

_MOST = 100.0  # dB; of an image restored exactly it would be infinite, and so would the mean of all
_BEYOND = 0.5  # by which interpolation may leave 0..1; what is further out has another range
_SMOOTH = 1e-3  # below which Charbonnier's loss is quadratic


def _folder(root: Path) -> Any:
    """Read ``input/`` with ``target/``; where there are none, good images alone."""
    paired = any((folder / "input").is_dir() for folder in (root, root / "train"))
    return folder_pairs(root, "input", "target", as_read) if paired else folder_images(root)


class Restoration(DatasetTask):
    """Images to be restored, judged by PSNR in dB and SSIM; inputs and targets are in 0..1.

    A sample is a pair of a bad image and a good one, which may be larger by a whole factor. With `scale` or `noise`,
    good images are enough: bad ones are made of them, with new noise in each epoch. Sources: ``folder:`` with
    ``input/`` and ``target/``, or of good images; ``npz:``.

    Args:
        data: As of `DatasetTask`.
        scale: Factor by which good images are made smaller, bicubic, as inputs.
        noise: Standard deviation of the Gaussian noise that is added to inputs, in units of 0..1.
        loss: ``l1``, or ``charbonnier``, which is smooth at 0.
        options: As of `DatasetTask`; `transforms` change good images before bad ones are made.
    """

    kind: ClassVar[str] = "restoration"
    metric = Metric("PSNR", unit="dB")
    sources = {"folder": _folder, "npz": npz}  # noqa: RUF012
    follows = frozenset({"hflip"})
    normalises = False

    def __init__(
        self,
        data: Any,
        *,
        scale: int = 1,
        noise: float = 0.0,
        loss: Literal["l1", "charbonnier"] = "charbonnier",
        **options: Any,
    ) -> None:
        super().__init__(data, **options)
        self.scale, self.noise, self.form, self.makes = scale, noise, loss, scale > 1 or noise > 0
        if self.size is not None and not self.makes:
            raise DataError(f"{self.name}: pairs of images cannot be brought to one size; leave size (--input) out")

    def pair(self, item: Any, where: str) -> tuple[Any, Any]:
        if self.makes:
            return (item[0] if isinstance(item, tuple | list) else item), None
        return super().pair(item, where)

    def target(self, value: Any, size: tuple[int, int], where: str) -> Any:
        if self.makes:
            return None
        if value is None:
            raise DataError(f"{where}: there is no good image; give scale or noise, and bad ones are made of these")
        good = tv_tensors.Image(as_image(value, where))
        height, width = good.shape[1:]
        if height % size[0] or (height // size[0] * size[0], height // size[0] * size[1]) != (height, width):
            sides = f"the target is {height}x{width} and the input {size[0]}x{size[1]}"
            raise DataError(f"{where}: {sides}; both sides must be larger by the same whole factor")
        return good

    def finished(self, inputs: Any, target: Any) -> tuple[Any, Any]:
        good = self.seen(inputs if self.makes else target)
        if bool((good < -_BEYOND).any()) or bool((good > 1 + _BEYOND).any()):
            raise ValueError(f"values from {good.min():g} to {good.max():g}; give bytes, or floats in 0..1")
        if not self.makes:
            return self.seen(inputs), good
        small = [side // self.scale for side in good.shape[1:]]
        good = good[:, : small[0] * self.scale, : small[1] * self.scale]
        bad = good if self.scale == 1 else tv.resize(good, small, InterpolationMode.BICUBIC).clamp(0, 1)
        return bad + self.noise * torch.randn(bad.shape), good

    def loss_of(self, output: Any, targets: Any) -> Tensor:
        found = output_like(output, targets, self.name)
        smooth = ((found - targets).square() + _SMOOTH**2).sqrt().mean()
        return F.l1_loss(found, targets) if self.form == "l1" else smooth

    def measured(self, output: Any, targets: Any) -> Tensor:
        judge, found = library("functional.image"), output_like(output, targets, self.name).clamp(0, 1)
        how: dict[str, Any] = {"data_range": 1.0, "reduction": "none"}
        psnr = judge.peak_signal_noise_ratio(found, targets, dim=(1, 2, 3), **how).clamp_max(_MOST)
        return torch.stack([psnr, judge.structural_similarity_index_measure(found, targets, **how).view(-1)], 1)

    def summary(self, rows: Tensor) -> dict[str, float]:
        return {**mean_of("PSNR", rows[:, 0]), **mean_of("SSIM", rows[:, 1])}

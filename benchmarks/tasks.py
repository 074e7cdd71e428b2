"""One real run per kind of task: train a network, halve its MACs by `compress`, hold it beside the untouched one.

    python benchmarks/tasks.py --data-dir DATA [--only segmentation] [--seeds 1] [--threads 1]

DATA holds cifar10.npz, mnist.npz, clothing/ and bccd/. The untouched network of each row is tuned as long as the
result, by the same recipe, from the same trained weights. Each finished run is added to results/tasks.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import FeaturePyramidNetwork

import convwright as cw
from convwright import tasks
from convwright.runs.directory.provenance import machine, versions

RESULTS = Path(__file__).parent / "results" / "tasks.json"


@dataclass(frozen=True)
class Case:
    """One kind of task on real data.

    Attributes:
        make: Takes the folder of the data and a seed; returns network and task.
        recipe: Of the first training.
        tune: Fields that differ in the fine-tuning.
        budget: Of `compress`.
    """

    make: Callable[[Path, int], tuple[nn.Module, Any]]
    recipe: dict[str, Any]
    tune: dict[str, Any]
    budget: str = "macs<=50%"


class Made(Dataset[tuple[Any, Any]]):
    """Samples that a function makes of their number."""

    def __init__(self, count: int, make: Callable[[int], tuple[Any, Any]]) -> None:
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.make(index)


def cifar(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return images (n, 3, 32, 32) uint8 and labels of the parts train, val and test, which share no photograph."""
    with np.load(folder / "cifar10.npz") as file:
        images = {part: torch.from_numpy(file[f"x_{part}"]).permute(0, 3, 1, 2) for part in ("train", "test")}
        labels = {part: torch.from_numpy(file[f"y_{part}"]).long().flatten() for part in ("train", "test")}
    return {
        "train": (images["train"][:40000], labels["train"][:40000]),
        "val": (images["train"][40000:], labels["train"][40000:]),
        "test": (images["test"], labels["test"]),
    }


def drawn(seed: int, index: int) -> np.random.Generator:
    """Return the generator of one sample."""
    return np.random.default_rng([seed, index])


# ------------------------------------------------------------------ networks


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Body(nn.Sequential):
    """Eight convolutions with three strides, then the mean over the map."""

    def __init__(self, channels: int = 3, width: int = 24) -> None:
        widths = [width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        layers, before = [], channels
        for number, each in enumerate(widths):
            layers.append(block(before, each, 2 if number in (0, 2, 4) else 1))
            before = each
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.outputs = before


class UNet(nn.Module):
    """Three levels with skip connections."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [self._pair(3, width), self._pair(width, 2 * width), self._pair(2 * width, 4 * width)]
        )
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)]
        )
        self.join = nn.ModuleList([self._pair(4 * width, 2 * width), self._pair(2 * width, width)])
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _pair(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(block(inputs, outputs), block(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (n, classes, h, w)."""
        held = []
        for level, layers in enumerate(self.down):
            x = layers(x if level == 0 else F.max_pool2d(x, 2))
            held.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(held[:-1]), strict=True):
            x = join(torch.cat([up(x), skip], 1))
        return self.head(x)


class SuperResolution(nn.Module):
    """Residual blocks at the small size, then pixel shuffle, added to the bilinear enlargement."""

    def __init__(self, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, 1, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, 12, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return images of twice the height and width."""
        y = self.first(x)
        for each in self.blocks:
            y = y + each(y)
        return F.pixel_shuffle(self.last(y), 2) + F.interpolate(x, scale_factor=2, mode="bilinear")


class Siamese(nn.Module):
    """One body sees both images; the head compares."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.head = nn.Sequential(nn.Linear(2 * self.body.outputs, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        """Return the logit that both show one class, (n,)."""
        a, b = self.body(one), self.body(two)
        return self.head(torch.cat([(a - b).abs(), a * b], 1)).flatten()


# ------------------------------------------------------------------ own task: two inputs


class SameClass(cw.Task):
    """Do two photographs show the same class?"""

    parts = ("train", "val", "test")
    metric = cw.Metric("accuracy of pairs")

    def __init__(self, folder: Path, seed: int) -> None:
        self.images, self.seed, self.passes = cifar(folder), seed, 0
        self.counts = {"train": 8000, "val": 2000, "test": 4000}

    def _pairs(self, part: str, seed: int) -> tuple[Tensor, Tensor]:
        labels = self.images[part][1]
        generator = np.random.default_rng(seed)
        count = self.counts[part]
        one = generator.integers(len(labels), size=count)
        two = generator.integers(len(labels), size=count)
        of_class = {int(c): np.flatnonzero(labels.numpy() == int(c)) for c in labels.unique()}
        for k in range(0, count, 2):  # every other pair is of one class
            two[k] = generator.choice(of_class[int(labels[one[k]])])
        return torch.from_numpy(one), torch.from_numpy(two)

    def batches(self, part: str) -> Any:
        """Return the batches of one pass; each pass of the training part has pairs of its own."""
        images, labels = self.images[part]
        # In training the seed comes from NumPy's generator, which the trainer seeds by epoch.
        one, two = self._pairs(part, int(np.random.randint(2**31)) if part == "train" else 7)
        return _Batches(images, labels, one, two)

    def sizes(self, part: str, batch_size: int) -> list[int]:
        """Return the sizes of the batches without making them."""
        return [min(100, self.counts[part] - at) for at in range(0, self.counts[part], 100)]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the binary cross-entropy."""
        return F.binary_cross_entropy_with_logits(self.forward(model, batch[0]).float(), batch[1])

    def metrics(self, model: nn.Module, part: str) -> dict[str, float]:
        """Return the share of pairs that are told right."""
        right = torch.cat([(self.forward(model, x) > 0) == (y > 0.5) for x, y in self.on_device(model, part)]).float()
        share = float(right.mean())
        error = math.sqrt(share * (1 - share) / len(right))
        return {"accuracy of pairs": share, "accuracy of pairs_stderr": error}


class _Batches:
    def __init__(self, images: Tensor, labels: Tensor, one: Tensor, two: Tensor) -> None:
        self.images, self.labels, self.one, self.two = images, labels, one, two

    def __iter__(self) -> Any:
        for at in range(0, len(self.one), 100):
            i, j = self.one[at : at + 100], self.two[at : at + 100]
            same = (self.labels[i] == self.labels[j]).float()
            yield (_normal(self.images[i]), _normal(self.images[j])), same


def _normal(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.47) / 0.25


# ------------------------------------------------------------------ samples of the ready-made tasks


def pair_sample(images: Tensor, labels: Tensor, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return a function that puts two photographs side by side: (3, 32, 64) and which classes are there."""

    def make(index: int) -> tuple[Tensor, Tensor]:
        i, j = drawn(seed, index).integers(len(labels), size=2)
        there = torch.zeros(10)
        there[labels[i]] = there[labels[j]] = 1
        return torch.cat([images[i], images[j]], 2), there

    return make


def pose_sample(digits: Tensor, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return a function that turns and shifts a digit on 40x40 pixels; the target is its pose.

    The target is (shift right, shift down, angle), in units of 6 pixels and of 60 degrees.
    """
    from torchvision.transforms.v2 import functional as tv

    def make(index: int) -> tuple[Tensor, Tensor]:
        generator = drawn(seed, index)
        pose = generator.uniform(-1, 1, size=3)
        digit = F.pad(digits[int(generator.integers(len(digits)))][None], (6, 6, 6, 6))
        shift = [round(6 * pose[0]), round(6 * pose[1])]
        image = tv.affine(digit, float(60 * pose[2]), shift, 1.0, [0.0, 0.0], tv.InterpolationMode.BILINEAR)
        return image, torch.tensor([shift[0] / 6, shift[1] / 6, pose[2]], dtype=torch.float32)

    return make


def shapes_sample(images: Tensor, seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return a function that lays discs, squares and triangles of one photograph over another.

    (3, 64, 64), and the mask (64, 64): 0 is the ground, 1 a disc, 2 a square, 3 a triangle.
    """
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")

    def make(index: int) -> tuple[Tensor, Tensor]:
        generator = drawn(seed, index)
        ground, *others = (
            F.interpolate(images[int(k)][None].float(), (64, 64), mode="bilinear")[0]
            for k in generator.integers(len(images), size=4)
        )
        image, mask = ground.clone(), torch.zeros(64, 64, dtype=torch.long)
        for texture in others[: int(generator.integers(1, 4))]:
            kind, size = int(generator.integers(1, 4)), float(generator.uniform(7, 16))
            y, x = generator.uniform(12, 52, size=2)
            turn = float(generator.uniform(0, math.pi))
            u = (columns - x) * math.cos(turn) + (rows - y) * math.sin(turn)
            v = (rows - y) * math.cos(turn) - (columns - x) * math.sin(turn)
            inside = {
                1: u**2 + v**2 < size**2,
                2: (u.abs() < 0.85 * size) & (v.abs() < 0.85 * size),
                3: (v < 0.6 * size) & (v > 1.7 * u.abs() - 1.1 * size),
            }[kind]
            image[:, inside] = 0.75 * texture[:, inside] + 0.25 * (255 - ground[:, inside])
            mask[inside] = kind
        return image.round().to(torch.uint8), mask

    return make


def photo_sample(files: list[Path], seed: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return a function that cuts 96x96 pixels from a photograph: half the size (area mean), and the whole."""
    from torchvision.io import ImageReadMode, decode_image

    def make(index: int) -> tuple[Tensor, Tensor]:
        photo = decode_image(str(files[index % len(files)]), ImageReadMode.RGB)
        generator = drawn(seed, index)
        top, left = (int(generator.integers(0, size - 95)) for size in photo.shape[1:])
        large = photo[:, top : top + 96, left : left + 96]
        small = F.avg_pool2d(large[None].float(), 2)[0].round().to(torch.uint8)
        return small, large

    return make


# ------------------------------------------------------------------ a detector


class Levels(nn.Module):
    """A small body with a feature pyramid, as torchvision's detectors take it: maps at 1/8, 1/16 and 1/32."""

    def __init__(self, width: int = 24, outputs: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, width, 2), block(width, width, 2))
        self.stages = nn.ModuleList(
            nn.Sequential(
                block(width * 2**k, width * 2 ** (k + 1), 2), block(width * 2 ** (k + 1), width * 2 ** (k + 1))
            )
            for k in range(3)
        )
        self.pyramid = FeaturePyramidNetwork([width * 2 ** (k + 1) for k in range(3)], outputs)
        self.out_channels = outputs

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps by level."""
        x, maps = self.stem(x), {}
        for number, stage in enumerate(self.stages):
            maps[str(number)] = x = stage(x)
        return self.pyramid(maps)


def detector(classes: int) -> nn.Module:
    """Return an FCOS of torchvision that sees photographs at 168 by 224 pixels."""
    body = Levels()
    anchors = AnchorGenerator(sizes=((8,), (16,), (32,)), aspect_ratios=((1.0,),) * 3)
    head = FCOSHead(body.out_channels, 1, classes, num_convs=2)
    return FCOS(body, classes, min_size=168, max_size=224, anchor_generator=anchors, head=head)


# ------------------------------------------------------------------ the cases


def parts_of(make: Callable[[str], Callable[[int], Any]], train: int, val: int, test: int) -> dict[str, Any]:
    """Return data sets of so many made samples."""
    return {part: Made(count, make(part)) for part, count in (("train", train), ("val", val), ("test", test))}


def multilabel(folder: Path, seed: int) -> tuple[nn.Module, Any]:
    """Which of ten classes are on two photographs side by side?"""
    images = cifar(folder)
    data = parts_of(lambda part: pair_sample(*images[part], seed=len(part)), 12000, 2000, 3000)
    body = Body()
    return nn.Sequential(body, nn.Linear(body.outputs, 10)), tasks.Multilabel(data, classes=10)


def regression(folder: Path, seed: int) -> tuple[nn.Module, Any]:
    """Where is a digit, and how is it turned?"""
    with np.load(folder / "mnist.npz") as file:
        digits = {part: torch.from_numpy(file[f"x_{part}"]).reshape(-1, 28, 28) for part in ("train", "test")}
    digits = {"train": digits["train"][:50000], "val": digits["train"][50000:], "test": digits["test"]}
    data = parts_of(lambda part: pose_sample(digits[part], len(part)), 12000, 2000, 3000)
    body = Body(1, 16)
    return nn.Sequential(body, nn.Linear(body.outputs, 3)), tasks.Regression(data, mean=(0.08,), std=(0.25,))


def segmentation(folder: Path, seed: int) -> tuple[nn.Module, Any]:
    """Discs, squares and triangles of photographs on photographs."""
    images = cifar(folder)
    data = parts_of(lambda part: shapes_sample(images[part][0], len(part)), 1000, 200, 400)
    return UNet(4), tasks.Segmentation(data, classes=("ground", "disc", "square", "triangle"))


def detection(folder: Path, seed: int) -> tuple[nn.Module, Any]:
    """Blood cells, in COCO's form."""
    task = tasks.Detection(f"coco:{folder / 'bccd'}", rank="mAP50")
    return detector(task.num_classes), task


def super_resolution(folder: Path, seed: int) -> tuple[nn.Module, Any]:
    """Photographs of clothing at twice their size."""
    files = {part: sorted((folder / "clothing" / part).rglob("*.jpg")) for part in ("train", "validation", "test")}
    named = {"train": "train", "val": "validation", "test": "test"}
    data = parts_of(lambda part: photo_sample(files[named[part]], len(part)), 1500, 200, 372)
    return SuperResolution(), tasks.Restoration(data)


def siamese(folder: Path, seed: int) -> tuple[nn.Module, Any]:
    """Do two photographs show the same class?"""
    return Siamese(), SameClass(folder, seed)


PLAIN = {
    "precision": "fp32",
    "memory_format": "channels_last",
    "crop_padding": 0,
    "hflip": False,
    "label_smoothing": 0.0,
}
ADAM = {**PLAIN, "optimizer": "adamw", "weight_decay": 1e-2, "nesterov": False}
CASES = {
    "multilabel": Case(multilabel, {**PLAIN, "lr": 0.1, "epochs": 8}, {"lr": 0.03, "epochs": 3}),
    "regression": Case(regression, {**ADAM, "lr": 3e-3, "epochs": 8}, {"lr": 1e-3, "epochs": 3}),
    "segmentation": Case(
        segmentation, {**ADAM, "lr": 3e-3, "epochs": 40, "batch_size": 16}, {"lr": 1e-3, "epochs": 12}
    ),
    "detection": Case(
        detection, {**ADAM, "lr": 2e-3, "epochs": 20, "batch_size": 8, "hflip": True}, {"lr": 1e-3, "epochs": 6}
    ),
    "super-resolution": Case(
        super_resolution, {**ADAM, "lr": 1e-3, "epochs": 6, "batch_size": 16}, {"lr": 5e-4, "epochs": 3}
    ),
    "siamese": Case(siamese, {**PLAIN, "lr": 0.05, "epochs": 8}, {"lr": 0.02, "epochs": 3}),
}
SEEDS = {"detection": 3}


def run(name: str, case: Case, folder: Path, seed: int) -> dict[str, Any]:
    """Train, compress, and return what is compared."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    model, task = case.make(folder, seed)
    recipe = cw.Recipe(**case.recipe, seed=seed)
    trained = cw.train(model, task, recipe, test=True)
    baseline = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as out:
        tuning = recipe.updated(**case.tune)
        result = cw.compress(model, task, case.budget, out=out, seed=seed, recipe=tuning, tune_epochs=tuning.epochs)
        sides = {side: _side(result.data[side]) for side in ("baseline", "result")}
    shown = {"task": name, "seed": seed, "metric": vars(task.metric), "budget": case.budget}
    return {
        **shown,
        "recipe": recipe.model_dump(mode="json"),
        "tuned_with": tuning.model_dump(mode="json"),
        "trained": dict(trained.test.values),
        **sides,
        "before_tuning": result.best.before_training,
        "samples": {part: len(getattr(task, part)) for part in ("train", "val", "test")},
        "seconds": {"training": baseline, "all": time.perf_counter() - start},
    }


def _side(side: dict[str, Any]) -> dict[str, Any]:
    return {"costs": side["costs"], "validation": side["validation"], "test": side["test"]}


def main() -> None:
    """Run what is asked for, each finished run saved at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--only", choices=CASES, action="append")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    for name in asked.only or CASES:
        for seed in range(asked.seeds or SEEDS.get(name, 1)):
            found = run(name, CASES[name], asked.data_dir, seed)
            rows = json.loads(asked.out.read_text())["rows"] if asked.out.is_file() else []
            rows = [row for row in rows if (row["task"], row["seed"]) != (name, seed)]
            own = {"command": " ".join(["python", "benchmarks/tasks.py", "--only", name]), "threads": asked.threads}
            rows.append({**found, **own, "versions": versions(), "machine": machine()})
            asked.out.write_text(json.dumps({"rows": sorted(rows, key=lambda row: (row["task"], row["seed"]))}) + "\n")
            print(name, seed, found["baseline"]["test"], found["result"]["test"], file=sys.stderr)


if __name__ == "__main__":
    main()

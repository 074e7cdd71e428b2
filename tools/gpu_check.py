"""Check convwright on a machine with a GPU, in ten minutes at most.

usage: python tools/gpu_check.py [--name NAME]

Runs the tests that need a GPU, trains and compresses one network on the embedded data, and measures how many images a
second the trainer trains beside a bare loop. Writes benchmarks/results/gpu/NAME.json, NAME being the device's unless
given. Exits with 0 if all is well, 1 if a check fails, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
from torch import nn  # noqa: E402

import convwright as cw  # noqa: E402
from convwright.training import ArrayImages, ImageData, Loader, Recipe, train  # noqa: E402
from convwright.training.recipe.optimizers import build_optimizer  # noqa: E402
from convwright.training.settings import autocast, to_layout  # noqa: E402

LIMIT = 360  # seconds for the tests
BATCH, STEPS, EPOCHS, REPEATS = 512, 40, 4, 3


def tests() -> dict:
    """Run the tests marked gpu, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
        text, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        text, code = f"{(error.stdout or b'').decode()}\nstopped after {LIMIT} s", 124
    print(text, flush=True)
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", text)}
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", text, re.M)
    return {"exit_code": code, **counts, "failures": failed, "seconds": round(time.perf_counter() - start, 1)}


def compressed() -> dict:
    """Train ResNet-20 on the embedded images, and halve it."""
    start = time.perf_counter()
    network = cw.zoo.create("resnet20", in_channels=1)
    before = train(network, "fashion-mini", Recipe.preset("default").updated(epochs=6), progress=False)
    trained = time.perf_counter()
    recipe = Recipe.preset("finetune").updated(epochs=4)
    with tempfile.TemporaryDirectory() as folder:
        how = {"recipe": recipe, "progress": False, "out": folder}
        result = cw.compress(network, "fashion-mini", "macs<=50%", **how)
        metrics = {key: value for key, value in result.metrics.items() if isinstance(value, int | float | str)}
    seconds = {"train": round(trained - start, 1), "compress": round(time.perf_counter() - trained, 1)}
    settings = {"precision": before.settings.precision, "memory_format": before.settings.memory_format}
    return {"test_accuracy_before": before.test.accuracy, "metrics": metrics, "settings": settings, "seconds": seconds}


def noise() -> ImageData:
    """Images as large as CIFAR's."""
    count = BATCH * STEPS
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    part = ArrayImages(images, torch.randint(0, 10, (count,)), (0.5,) * 3, (0.25,) * 3)
    return ImageData("noise", part, None, tuple("0123456789"))


def bare(model: nn.Module, data: ImageData, recipe: Recipe) -> list[float]:
    """Train with nothing around it; return the seconds of each epoch."""
    device = torch.device("cuda", 0)
    to_layout(model.to(device).train(), torch.channels_last)
    optimizer, seconds = build_optimizer(model, recipe), []
    loader = Loader(data.train, BATCH, augment=recipe.augment, device=device, channels_last=True)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    for _ in range(recipe.epochs):
        start = time.perf_counter()
        for images, labels in loader:
            with autocast(device, recipe.precision):
                scores = model(images)
            criterion(scores.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def ours(model: nn.Module, data: ImageData, recipe: Recipe) -> list[float]:
    """Train with the trainer; return the seconds of each epoch."""
    found = train(model, data, recipe, accelerator="cuda", progress=False)
    return [record.seconds for record in found.history]


def throughput() -> dict:
    """Return images a second, of the trainer and of the bare loop in turn; the first epochs warm up."""
    data, rates = noise(), {"trainer": [], "bare_loop": []}
    how = {"precision": "bf16", "memory_format": "channels_last", "crop_padding": 4, "hflip": True}
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, lr=0.05, **how)
    for _ in range(REPEATS):
        for name, way in (("bare_loop", bare), ("trainer", ours)):
            seconds = way(cw.zoo.create("resnet20"), data, recipe)
            rates[name] += [BATCH * STEPS / each for each in seconds[1:]]
    found = {f"{name}_images_per_second": round(statistics.median(each)) for name, each in rates.items()}
    ratio = found["bare_loop_images_per_second"] / found["trainer_images_per_second"]
    return {"network": "resnet20", "batch_size": BATCH, "precision": "bf16", **found, "overhead": round(ratio - 1, 4)}


def tried(name: str, check: Callable[[], dict]) -> dict:
    """Return what a check finds, or the error that it ends with."""
    try:
        found = check()
    except Exception as error:  # the next check goes on; the file tells of both
        found = {"error": f"{type(error).__name__}: {error}"}
    print(f"{name}: {json.dumps(found, default=str)}", flush=True)
    return found


def main() -> int:
    """Check, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", help="of the file; default: the device's name")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("tools/gpu_check.py: there is no CUDA device here; run it on a machine that has one", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_properties(0)
    name = asked.name or re.sub(r"[^a-z0-9]+", "-", card.name.lower()).strip("-")
    report = {
        "command": " ".join(["python", "tools/gpu_check.py", *sys.argv[1:]]),
        "versions": {
            "convwright": cw.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "python": platform.python_version(),
        },
        "machine": {
            "gpu": card.name,
            "gpus": torch.cuda.device_count(),
            "capability": f"{card.major}.{card.minor}",
            "memory_gib": round(card.total_memory / 2**30, 1),
            "system": platform.system(),
        },
        "throughput": tried("throughput", throughput),
        "compress": tried("compress", compressed),
        "tests": tried("tests", tests),
    }
    file = ROOT / "benchmarks" / "results" / "gpu" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2, default=str) + "\n")
    print(file)
    broken = report["tests"].get("exit_code") or any("error" in report[part] for part in ("throughput", "compress"))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""Judge a trained network in 8 bits beside itself: accuracy, distance of the outputs, latency, per runtime.

The run directory is that of ``convwright train`` or ``optimize``. Each runtime quantizes with its own library, on the
same 128 training images, and is judged on the test and validation images, one at a time. Latencies are of one image
on one thread, all programs in turns; ratios are paired turn by turn.

``lite0.safetensors`` are the ImageNet weights of EfficientNet-Lite0 under timm's names, with a drawn head (``STARTS``
in ``experiments/papers/compress/baseline.py``), and ``lite0-clothing.yaml`` lies there, too::

    convwright train timm:tf_efficientnet_lite0 --weights lite0.safetensors --data folder:clothing-dataset-small
        --input 3x96x96 --recipe lite0-clothing.yaml --epochs 5 --out runs/lite0

Run ``python benchmarks/int8.py DIR --data folder:PATH``; the numbers go to ``results/int8.json``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from convwright.architecture.capture.pytrees import Inputs
from convwright.cost.latency import in_turns, spread, wall_timer
from convwright.cost.runtimes import RunnableProgram, Target, program
from convwright.export import open_run
from convwright.export.quantize import data_of
from convwright.runs.directory.provenance import machine
from convwright.runs.quantized import IMAGES
from convwright.training.statistics import calibration
from convwright.training.tasks.loader import loader_of

RESULTS = Path(__file__).parent / "results" / "int8.json"
TARGETS = ("onnxruntime", "onnxruntime,int8", "openvino", "openvino,int8")
PACKAGES = ("convwright", "torch", "timm", "onnx", "onnxruntime", "openvino", "nncf")


def outputs(made: RunnableProgram, part: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores (n, classes) and labels (n,) of a part, image by image."""
    found = [(made.outputs(image)[0], label) for image, label in loader_of(part, 1, shuffle=False)]
    scores, labels = zip(*found, strict=True)
    return torch.cat(scores), torch.cat(labels)


def judged(made: RunnableProgram, wanted: torch.Tensor, parts: dict[str, Any]) -> dict[str, Any]:
    """Return accuracies, and how far the scores of the test images are from the network's own."""
    found = {name: outputs(made, part) for name, part in parts.items()}
    accuracy = {name: float((scores.argmax(1) == labels).double().mean()) for name, (scores, labels) in found.items()}
    error = (found["test"][0] - wanted).double()
    same = float((found["test"][0].argmax(1) == wanted.argmax(1)).double().mean())
    snr = float(10 * torch.log10(wanted.double().square().sum() / error.square().sum()))
    return {"accuracy": accuracy, "snr": snr, "same_class": same}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", help="default: the data that the run records")
    parser.add_argument("--seconds", type=float, default=30.0, help="of the latencies")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = open_run(args.folder)
    data = data_of(run, args.data)
    parts = {"test": data.test, "validation": data.val}
    images = [Inputs.of(each) for each in calibration(data.train, IMAGES, batch=1)]
    targets = [Target.of(f"{name},threads=1") for name in TARGETS]
    made = {str(target): program(run.title, run.model, images[0], target, images) for target in targets}
    wanted = outputs(program(run.title, run.model, images[0], Target("eager")), data.test)[0]
    rows = {name: judged(each, wanted, parts) for name, each in made.items()}
    timer = wall_timer(torch.device("cpu"))
    for each in made.values():
        each.time(10, timer)
    turns = in_turns({name: partial(each.time, 1, timer) for name, each in made.items()}, args.seconds, 1000)
    for name, row in rows.items():
        own, base = turns[name], turns[name.replace(",int8", "")]
        row["latency"] = vars(spread(own))
        row["ratio"] = vars(spread([a / b for a, b in zip(own, base, strict=True)]))
        shown = ", ".join(f"{part} {value:.2%}" for part, value in row["accuracy"].items())
        print(f"{name:30} {shown}, {row['snr']:.1f} dB, {1e3 * row['latency']['median']:.2f} ms")
    content = {
        "command": f"python benchmarks/int8.py {args.folder} --data folder:clothing-dataset-small",
        "machine": machine() | {"threads": 1, "load": os.getloadavg()},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "network": run.plan.model,
        "input": "x".join(map(str, run.input_shape)),
        "calibrated_on": len(images),
        "samples": {name: len(part) for name, part in parts.items()},
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

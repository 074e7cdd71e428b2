"""YOLOv8n and YOLO11n on blood cells (BCCD), trained by Ultralytics from new weights, at half their MACs.

    python benchmarks/yolo.py --data-dir DATA --work FOLDER [--only yolov8n] [--seeds 0 1] [--ways WAY]

DATA holds bccd/ with images and COCO files. Every way starts from the same trained network, and Ultralytics trains all
for as many further epochs, with its own settings. The test part is looked at once per row, at the end. A finished row
is a file in FOLDER, and is not run again; so are the networks trained first.

torch-pruning stands beside as its users apply it to YOLOv8: blocks that split one convolution's output in two are
rewritten, the head (and attention) is left alone, and channels go by magnitude in one step.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convwright.adapters.ultralytics import compress, to_yolo
from convwright.architecture.capture.graph import first_line
from convwright.cost import count_by_torch
from convwright.cost.runtimes.onnxruntime import onnx_session
from convwright.runs.directory.provenance import machine, versions

RESULTS = Path(__file__).parent / "results" / "yolo.json"
SIDE, FIRST, TUNE, BUDGET = 160, 300, 100, 0.5
NETWORKS = ("yolov8n", "yolo11n")
SMALLER = 112  # pixels a side: half the MACs of 160, in steps of 16 that all levels divide
HOW: dict[str, Any] = {"batch": 16, "workers": 0, "device": "cpu", "plots": False, "verbose": False, "exist_ok": True}


def converted(source: Path, out: Path) -> Path:
    """Write BCCD's COCO files as Ultralytics' folders, and return the file that names them."""
    for part in ("train", "val", "test") if not (out / "bccd.yaml").is_file() else ():
        found = json.loads((source / f"{part}.json").read_text())
        numbers = {each["id"]: number for number, each in enumerate(sorted(found["categories"], key=lambda c: c["id"]))}
        lines: dict[int, list[str]] = {image["id"]: [] for image in found["images"]}
        sizes = {image["id"]: (image["width"], image["height"]) for image in found["images"]}
        for each in found["annotations"]:
            (x, y, w, h), (width, height) = each["bbox"], sizes[each["image_id"]]
            box = (x + w / 2) / width, (y + h / 2) / height, w / width, h / height
            lines[each["image_id"]].append(" ".join([str(numbers[each["category_id"]]), *(f"{b:.6f}" for b in box)]))
        for folder in ("images", "labels"):
            (out / folder / part).mkdir(parents=True, exist_ok=True)
        for image in found["images"]:
            name = Path(image["file_name"]).name
            (out / "images" / part / name).write_bytes((source / "images" / name).read_bytes())
            (out / "labels" / part / name).with_suffix(".txt").write_text("\n".join(lines[image["id"]]) + "\n")
        names = [each["name"] for each in sorted(found["categories"], key=lambda c: c["id"])]
    if not (out / "bccd.yaml").is_file():
        text = f"path: {out.absolute()}\ntrain: images/train\nval: images/val\ntest: images/test\nnames: {names}\n"
        (out / "bccd.yaml").write_text(text)
    return out / "bccd.yaml"


def trained_first(name: str, seed: int, data: Path, work: Path) -> Any:
    """Train a network from new weights, or take it up where that is done."""
    from ultralytics import YOLO

    folder = work / "bases" / f"{name}-{seed}"
    if not (folder / "done").exists():
        how = {**HOW, "data": str(data), "epochs": FIRST, "imgsz": SIDE, "seed": seed, "patience": FIRST}
        YOLO(f"{name}.yaml").train(**how, project=str(folder.parent.absolute()), name=folder.name)
        (folder / "done").touch()
    return YOLO(folder / "weights" / "best.pt")


# ------------------------------------------------------------------ the ways


def tuned(yolo: Any, data: Path, work: Path, seed: int, side: int = SIDE) -> Any:
    """Train a network on, whatever it is."""
    network = copy.deepcopy(yolo.model)

    class Given(yolo._smart_load("trainer")):  # type: ignore[misc]
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            return network.float().train().requires_grad_()

    how = {**HOW, "data": str(data), "epochs": TUNE, "imgsz": side, "seed": seed}
    yolo.train(trainer=Given, **how, project=str(work.absolute()), name="train")
    return yolo


def untouched(yolo: Any, data: Path, work: Path, seed: int) -> tuple[Any, int]:
    """The network as it was, trained on for as long."""
    return tuned(yolo, data, work, seed), SIDE


def smaller_images(yolo: Any, data: Path, work: Path, seed: int) -> tuple[Any, int]:
    """The network as it was, on smaller images."""
    return tuned(yolo, data, work, seed, SMALLER), SMALLER


def by(method: str, **more: Any) -> Callable[..., tuple[Any, int]]:
    """Return the way of a method of ours."""

    def way(yolo: Any, data: Path, work: Path, seed: int) -> tuple[Any, int]:
        how = {**HOW, **more, "epochs": TUNE, "imgsz": SIDE, "seed": seed}
        result = compress(yolo, f"macs<={BUDGET:.0%}", data, work / "run", method=method, **how)
        return to_yolo(result), SIDE

    return way


class Apart(nn.Module):
    """A block of C2f's kind whose first convolution is two: torch-pruning cannot follow one that is split."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.i, self.f, self.type = block.i, block.f, block.type
        self.left, self.right, self.cv2, self.m = copy.deepcopy(block.cv1), block.cv1, block.cv2, block.m
        half = block.cv1.conv.out_channels // 2
        for part, rows in ((self.left, slice(0, half)), (self.right, slice(half, None))):
            part.conv.out_channels = part.bn.num_features = half
            part.conv.weight = nn.Parameter(part.conv.weight[rows].detach().clone())
            for name in ("weight", "bias"):
                setattr(part.bn, name, nn.Parameter(getattr(part.bn, name)[rows].detach().clone()))
            for name in ("running_mean", "running_var"):
                setattr(part.bn, name, getattr(part.bn, name)[rows].clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As of the block."""
        found = [self.left(x), self.right(x)]
        for each in self.m:
            found.append(each(found[-1]))
        return self.cv2(torch.cat(found, 1))


def torch_pruning(yolo: Any, data: Path, work: Path, seed: int) -> tuple[Any, int]:
    """Magnitude pruning in one step, at the least ratio that meets the budget."""
    import torch_pruning as tp
    from ultralytics.nn.modules import C2PSA, C2f, Detect

    model, x = yolo.model, torch.rand(1, 3, SIDE, SIDE)
    for number, block in enumerate(model.model):
        if isinstance(block, C2f):
            model.model[number] = Apart(block)
    full = count_by_torch(copy.deepcopy(model).eval(), x)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for step in range(1, 40):
        cut = copy.deepcopy(model).eval()
        left = [each for each in cut.modules() if isinstance(each, Detect | C2PSA)]
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        tp.pruner.BasePruner(cut, x, importance, pruning_ratio=step / 40, ignored_layers=left).step()
        if count_by_torch(cut, x) <= BUDGET * full:
            break
    yolo.model = cut
    return tuned(yolo, data, work, seed), SIDE


WAYS: dict[str, Callable[..., tuple[Any, int]]] = {
    "untouched, trained on": untouched,
    "convwright": by("saliency"),
    "convwright, distilled": by("saliency", distill=True),
    "one ratio for all widths": by("uniform"),
    "smaller images": smaller_images,
    "torch-pruning": torch_pruning,
}

# ------------------------------------------------------------------ measured


def apart(yolo: Any) -> Any:
    """Return a copy, for what changes the network that a ``YOLO`` holds: judging and exporting fuse it."""
    other = copy.copy(yolo)
    other._modules = {"model": copy.deepcopy(yolo.model)}
    return other


def judged(yolo: Any, data: Path, part: str, side: int, work: Path) -> dict[str, float]:
    """Return mAP at 50 and from 50 to 95 %, in percent."""
    found = apart(yolo).val(data=str(data), split=part, imgsz=side, project=str(work.absolute()), name="val", **HOW).box
    return {"mAP50": 100 * float(found.map50), "mAP": 100 * float(found.map)}


def exported(yolo: Any, side: int, file: Path) -> None:
    """Have Ultralytics write an ONNX file."""
    other = apart(yolo)
    other.model.pt_path = str(file.with_suffix(".pt").absolute())
    other.export(format="onnx", imgsz=side, simplify=False)


def latency_ratio(one: Path, other: Path, repeats: int = 200) -> float:
    """Return how long one file takes over another one on ONNX Runtime, in turns: the median over pairs of runs."""
    sessions = [onnx_session(file.read_bytes()) for file in (one, other)]
    inputs = [torch.rand(*session.get_inputs()[0].shape).numpy() for session in sessions]
    ratios = []
    for _ in range(repeats):
        seconds = []
        for session, x in zip(sessions, inputs, strict=True):
            start = time.perf_counter()
            session.run(None, {"images": x})
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def measured(name: str, seed: int, way: str, data: Path, work: Path) -> dict[str, Any]:
    """Return a row, and leave the ONNX files whose latencies are compared once nothing else runs."""
    base, start = trained_first(name, seed, data, work.parent), time.perf_counter()
    row: dict[str, Any] = {"network": name, "seed": seed, "way": way, "first": judged(base, data, "test", SIDE, work)}
    row["first validation"] = judged(base, data, "val", SIDE, work)
    full = count_by_torch(copy.deepcopy(base.model).eval(), torch.rand(1, 3, SIDE, SIDE))
    exported(base, SIDE, work / "base")
    try:
        yolo, side = WAYS[way](base, data, work, seed)
    except Exception as error:  # a rival that stops is a result
        return {**row, "failed": f"{type(error).__name__}: {first_line(error)}"}
    macs = count_by_torch(copy.deepcopy(yolo.model).float().eval(), torch.rand(1, 3, side, side))
    exported(yolo, side, work / "edited")
    tests = {part: judged(yolo, data, part, side, work) for part in ("val", "test")}
    return {**row, **tests, "macs": macs / full, "seconds": time.perf_counter() - start}


def main() -> None:
    """Run what is left of what is asked for, and collect all finished rows with their latencies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", choices=NETWORKS, action="append")
    parser.add_argument("--ways", choices=WAYS, action="append")
    parser.add_argument("--seeds", type=int, nargs="*", default=(0, 1, 2), help="none: only collect what is finished")
    asked = parser.parse_args()
    os.environ.setdefault("YOLO_OFFLINE", "true")
    torch.set_num_threads(1)
    data = converted(asked.data_dir / "bccd", asked.work / "data")
    for seed in asked.seeds:
        for name in asked.only or NETWORKS:
            for way in asked.ways or WAYS:
                folder = asked.work / f"{name}-{seed}-{way.replace(' ', '-').replace(',', '')}"
                if not (folder / "row.json").exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    row = measured(name, seed, way, data, folder)
                    own = {"versions": {**versions(), **_others()}, "machine": machine(), "threads": 1}
                    (folder / "row.json").write_text(json.dumps({**row, **own}, indent=1) + "\n")
    _collect(asked.work)


def _others() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("ultralytics", "torch-pruning", "onnxruntime")}


def _collect(work: Path) -> None:
    """Add the folder's finished rows to those that are committed: they may come from several machines."""
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    rows = {(row["network"], row["seed"], row["way"]): row for row in known}
    for file in sorted(work.glob("*/row.json")):
        row = json.loads(file.read_text())
        if "failed" not in row:
            row["latency"] = latency_ratio(file.parent / "edited.onnx", file.parent / "base.onnx")
        rows[row["network"], row["seed"], row["way"]] = row
    shown = {"command": "python benchmarks/yolo.py --data-dir DATA --work FOLDER", "pixels": SIDE}
    told = {**shown, "first_epochs": FIRST, "epochs": TUNE, "rows": [rows[key] for key in sorted(rows)]}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()

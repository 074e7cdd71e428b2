"""Count the networks of the support matrix that are exported to plain Python, and to ONNX, and compute the same.

Each network is built with random weights and statistics, exported at a small input, and compared with the original in
float32 eval mode, on batches of one and of three images:

* ``python``: the written source, run; done if the largest difference is at most 1e-6 times the largest output, or
  1e-6 where that is below one;
* ``onnx``: the file, run in ONNX Runtime; done if the largest difference is at most a thousandth of the largest output.

Run ``python benchmarks/export.py`` (``--target onnx``, ``--only timm:resnet18``, ``--every 10``); results are kept in
``results/export.json`` network by network, so that it can be stopped and continued. Exit code 1 if less than 95 % of
the networks that were tried were exported.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "export.json"
SHARE = 0.95
SIDE, SIDES = 64, (64, 96, 128, 224, 256, 299)  # the smallest that the network takes
TOGETHER = 8  # networks per process: most of the time of a small one is torch's start
LIMITS = {"python": 1e-6, "onnx": 1e-3}

Row = dict[str, Any]


def networks() -> list[str]:
    """Return the networks of the support matrix, and those of the zoo."""
    sys.path.insert(0, str(HERE.parent / "tools"))
    from support_networks import networks as matrix

    from convwright import zoo

    return [*matrix(), *(f"zoo:{name}" for name in zoo.names())]


# ------------------------------------------------------------------ one network, in its own process


def measure(name: str, target: str) -> Row:
    """Export one network and return what came of it."""
    import torch

    from convwright.architecture import create
    from convwright.errors import ConvwrightError

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, shape, _ = create(name)
    _randomise(model.eval())
    channels = (shape or (3,))[0]
    usual = (shape or (3, 224, 224))[-1]
    example, scale = _smallest(model, channels, usual)
    start = time.perf_counter()
    row: Row = {"network": name, "target": target, "input": "x".join(map(str, example.shape[1:]))}
    try:
        row |= _python(model, example) if target == "python" else _onnx(model, example)
    except ConvwrightError as error:
        return row | {"done": False, "reason": " ".join(str(error).split())[:300]}
    row["done"] = row["max_difference"] <= LIMITS[target] * max(1.0, scale)
    return row | {"largest_output": scale, "seconds": round(time.perf_counter() - start, 2)}


def _randomise(model: Any) -> None:
    """Give norms statistics and scales that are not all one and zero."""
    import torch
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)


def _smallest(model: Any, channels: int, usual: int) -> tuple[Any, float]:
    """Return an input of the smallest size that the network takes, and the largest output on it."""
    import torch

    for side in (*(s for s in SIDES if s < usual), usual):
        example = torch.zeros(1, channels, side, side)
        try:
            with torch.no_grad():
                return example, float(model(torch.randn_like(example)).abs().max())
        except (RuntimeError, AssertionError, ValueError):
            continue
    raise RuntimeError(f"runs on no input up to {usual} pixels")


def _python(model: Any, example: Any) -> Row:
    from convwright.export import python_source

    made = python_source(model, example)
    same = made.state.keys() == model.state_dict().keys()
    lines = made.source.text.count("\n")
    shape = {"lines": lines, "classes": len(made.source.classes), "full_names": list(made.source.operators)}
    return {"max_difference": made.difference, "same_state_dict": same, **shape}


def _onnx(model: Any, example: Any) -> Row:
    from convwright.export.programs import onnx_program, onnx_runner
    from convwright.export.registry import difference

    return {"max_difference": difference(model, onnx_runner(onnx_program(model, example)[0]), example)}


# ------------------------------------------------------------------ all of them


def tried(names: Sequence[str], target: str, seconds: float) -> Iterator[Row]:
    """Measure networks in one process; what did not end well there is measured in a process of its own.

    A network that fails there, too, is a failure with its reason. Together they have the time of one: most take a few
    seconds, and those left over when one hangs have theirs alone.
    """
    command = [sys.executable, "-W", "ignore", __file__, "--these", *names, "--target", target]
    reason = f"more than {seconds:.0f} s"
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        lines = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    else:
        lines = ran.stdout
        last = (ran.stderr.strip().splitlines() or ["no output"])[-1]
        reason = f"exit code {ran.returncode}: {last[:300]}"
    found: list[Row] = [json.loads(line) for line in lines.splitlines() if line.startswith("{") and line.endswith("}")]
    yield from found
    left = [name for name in names if name not in {row["network"] for row in found}]
    if len(names) == 1:
        yield from ({"network": name, "target": target, "done": False, "reason": reason} for name in left)
        return
    for name in left:
        yield from tried([name], target, seconds)


def main() -> int:
    """Measure what was asked for, print and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=tuple(LIMITS), default="python")
    parser.add_argument("--only", nargs="*", help="names of networks")
    parser.add_argument("--every", type=int, default=1, help="take every n-th network of the list")
    parser.add_argument("--again", action="store_true", help="measure those that are recorded, too")
    parser.add_argument("--seconds", type=float, default=600.0, help="limit of one network")
    parser.add_argument("--these", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.these:
        for name in args.these:
            print(json.dumps(measure(name, args.target)), flush=True)
        return 0
    content = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": []}
    rows: dict[tuple[str, str], Row] = {(r["network"], r["target"]): r for r in content["rows"]}
    wanted = args.only or networks()[:: args.every]
    open_ = [name for name in wanted if args.again or (name, args.target) not in rows]
    for start in range(0, len(open_), TOGETHER):
        for row in tried(open_[start : start + TOGETHER], args.target, args.seconds):
            rows[row["network"], args.target] = row
            said = f"{row['max_difference']:.1e}" if row["done"] else row.get("reason", f"{row.get('max_difference')}")
            print(f"{row['network']:45} {'done' if row['done'] else 'FAIL'} {said}", flush=True)
            _write(rows)
    found = [rows[name, args.target] for name in wanted]
    done = sum(row["done"] for row in found)
    print(f"{args.target}: {done} of {len(found)}")
    return 0 if done >= SHARE * len(found) else 1


def _write(rows: dict[tuple[str, str], Row]) -> None:
    counts = {t: [r["done"] for r in rows.values() if r["target"] == t] for t in LIMITS}
    summary = {t: {"done": sum(c), "of": len(c)} for t, c in counts.items()}
    machine = {"system": platform.system(), "architecture": platform.machine(), "threads": 1}
    versions = {n: importlib.metadata.version(n) for n in ("convwright", "torch", "torchvision", "timm")}
    content = {"command": "python benchmarks/export.py", "machine": machine, "versions": versions, "summary": summary}
    ordered = [rows[key] for key in sorted(rows)]
    RESULTS.write_text(json.dumps({**content, "rows": ordered}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

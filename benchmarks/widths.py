"""Width edits over torchvision's classification convnets: promises, parameters, time; beside torch-pruning.

Every network is read, every free group is changed at once (halved, doubled, grown by half), and the promise is measured
in float64 with random weights and statistics. Then a training step runs on the changed network. Networks of more than
100M parameters grow every third group only: doubled in float64 they would need more memory than this benchmark assumes.

    python benchmarks/widths.py [--only NAME ...] [--no-rival] [--out benchmarks/results/widths.json]

One process per network, so that one that hangs or runs out of memory costs only itself.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

RATIOS = (0.5, 2.0, 1.5)
LARGE = 100_000_000
EXACT = 1e-10
RIVAL_LIMIT = 120  # seconds


def networks() -> list[str]:
    """Return the names of torchvision's classification networks that are not transformers, small ones first."""
    from torchvision import models

    names = [n for n in models.list_models(module=models) if not n.startswith(("vit", "swin", "maxvit"))]
    return sorted(names, key=lambda n: models.get_model_weights(n).DEFAULT.meta["num_params"])


def side_of(name: str) -> int:
    """Small inputs keep the sweep short; the auxiliary heads need theirs."""
    return {"inception_v3": 299, "googlenet": 96}.get(name, 64)


def measure(name: str) -> dict[str, Any]:
    """Change one network every way and return its row."""
    import torch

    from convwright.architecture import read

    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    arch = read(f"torchvision:{name}", (3, side_of(name), side_of(name)))
    row: dict[str, Any] = {"network": name, "read_seconds": round(time.perf_counter() - started, 2)}
    row["params"] = arch.profile().params
    row["frozen"] = sum(g.frozen for g in arch.groups)
    row["statistics"] = sum(bool(g.across) for g in arch.free_groups)
    for ratio in RATIOS:
        row[f"x{ratio}"] = change(arch, ratio, row["params"] > LARGE)
    return row


def change(arch: Any, ratio: float, large: bool) -> dict[str, Any]:
    """Apply one ratio and return what came of it."""
    from convwright.edits import scale_widths
    from convwright.errors import ConvwrightError

    started = time.perf_counter()
    try:
        ratios = ratio
        if large and ratio > 1:
            ratios = {g.name: ratio for g in arch.free_groups[::3]}
        new = arch.apply(*scale_widths(arch, ratios))
        train_step(new.model, arch.example_input)
    except (ConvwrightError, RuntimeError, ValueError) as error:
        return {"ok": False, "error": f"{type(error).__name__}: {str(error)[:200]}"}
    return {
        "ok": True,
        "max_difference": new.changes[-1].max_difference,
        "exact": bool(new.changes[-1].exact),
        "params_share": round(new.profile().params / arch.profile().params, 4),
        "macs_share": round(new.profile().macs / arch.profile().macs, 4),
        "seconds": round(time.perf_counter() - started, 2),
    }


def train_step(model: Any, example: Any) -> None:
    """Run forward in training mode, backward, and an optimizer step."""
    import torch

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    outputs = model(torch.randn(2, *example.shape[1:]))
    tensors = [outputs] if isinstance(outputs, torch.Tensor) else [t for t in outputs if t is not None]
    sum(t.float().square().mean() for t in tensors).backward()
    optimizer.step()


def rival(name: str) -> dict[str, Any]:
    """torch-pruning's stock call at half the channels, its classifier protected by hand."""
    import torch
    import torch_pruning
    from torch import nn

    from convwright.architecture import create

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = create(f"torchvision:{name}")[0].eval()
    example = torch.randn(1, 3, side_of(name), side_of(name))
    before = sum(p.numel() for p in model.parameters())
    ignored = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    started = time.perf_counter()
    pruner = torch_pruning.pruner.BasePruner(
        model, example, torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=ignored
    )
    pruner.step()
    seconds = time.perf_counter() - started
    shape = tuple(model(example).shape)
    share = sum(p.numel() for p in model.parameters()) / before
    return {"ok": shape == (1, 1000) and share < 0.6, "params_share": round(share, 4), "seconds": round(seconds, 2)}


def in_process(task: str, name: str, limit: float) -> dict[str, Any]:
    """Run one task in a process of its own."""
    command = [sys.executable, __file__, "--task", task, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"no answer within {limit:g} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    said = done.stderr.strip().splitlines()
    return {"ok": False, "error": said[-1][:200] if said else f"ended with code {done.returncode}"}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Count what holds."""
    result: dict[str, Any] = {"networks": len(rows)}
    for ratio in RATIOS:
        cells = [r.get(f"x{ratio}", {"ok": False}) for r in rows]
        result[f"x{ratio}"] = {
            "ran": sum(c["ok"] for c in cells),
            "exact": sum(c.get("exact", False) for c in cells),
            "inexact_with_statistic": sum(
                c["ok"] and not c["exact"] and r["statistics"] > 0 for c, r in zip(cells, rows, strict=True)
            ),
        }
    halves = [r["x0.5"]["params_share"] for r in rows if r.get("x0.5", {}).get("ok")]
    result["x0.5"]["largest_params_share"] = max(halves, default=None)
    if any("torch_pruning" in r for r in rows):
        result["torch_pruning_x0.5"] = {"ran": sum(r.get("torch_pruning", {}).get("ok", False) for r in rows)}
    return result


def record(rows: list[dict[str, Any]], out: Path) -> None:
    """Write the rows so far, with what is needed to run them again."""
    import torch

    out.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "command": "python " + " ".join(sys.argv),
        "versions": {n: version(n) for n in ("convwright", "torch", "torchvision", "torch-pruning")},
        "machine": {"system": platform.system(), "cpu": platform.processor() or platform.machine(), "threads": 1},
        "seed": 0,
        "cuda": torch.cuda.is_available(),
        "summary": summary(rows),
        "rows": rows,
    }
    out.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Run the sweep, or one task of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="these networks")
    parser.add_argument("--no-rival", action="store_true", help="leave torch-pruning out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/widths.json"))
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        task, name = arguments.task
        print(json.dumps({"measure": measure, "rival": rival}[task](name)))
        return
    rows = []
    for name in arguments.only or networks():
        row = {"network": name, "statistics": 0, **in_process("measure", name, 1800)}
        if not arguments.no_rival:
            row["torch_pruning"] = in_process("rival", name, RIVAL_LIMIT)
        rows.append(row)
        print(json.dumps(row), flush=True)
        record(rows, arguments.out)
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()

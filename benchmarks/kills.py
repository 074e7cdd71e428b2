"""Kill -9 at random moments: a search that is killed again and again ends with the very result of an undisturbed one.

Each run searches a tiny network's widths on the embedded images. It is started again after every kill, with
``--resume`` once there is something to resume; with ``--jobs 2`` every other kill hits one of the workers, and the
driver goes on by itself. What is compared: plan, weights, and every trial's evidence but its seconds.

Run ``python benchmarks/kills.py``; the numbers go to ``results/kills.json``. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "kills.json"
NETWORK = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, padding=1, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1, stride=2)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))
"""
RECIPE = "epochs: 3\nbatch_size: 50\nmax_steps: 60\nprecision: fp32\nmemory_format: contiguous\n"


def command(out: Path, seed: int, jobs: int) -> list[str]:
    """Return the call of one search."""
    words = ["optimize", "net.py:Tiny", "--data", "fashion-mini", "--budget", "macs<=50%", "--method", "random"]
    words += ["--option", "trials=6", "--option", "trial_epochs=3", "--recipe", "recipe.yaml", "--epochs", "3"]
    words += ["--tune-epochs", "3", "--seed", str(seed), "--threads", "1", "--jobs", str(jobs), "--out", out.name]
    words += ["--resume"] if (out / "run.json").is_file() else []
    return [sys.executable, "-m", "convwright", *words]


def started(folder: Path, out: Path, seed: int, jobs: int) -> subprocess.Popen[bytes]:
    """Start a search, or go on with it."""
    log = (folder / f"{out.name}.log").open("ab")
    return subprocess.Popen(command(out, seed, jobs), cwd=folder, stdout=subprocess.DEVNULL, stderr=log)


def children(pid: int) -> list[int]:
    """Return the processes that a process started; none where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def killed(folder: Path, out: Path, seed: int, jobs: int, kills: int, draw: random.Random, span: float) -> dict:
    """Search and kill at random moments; return how often whom."""
    counts = {"driver": 0, "worker": 0, "starts": 1}
    process = started(folder, out, seed, jobs)
    while counts["driver"] + counts["worker"] < kills:
        end = time.monotonic() + draw.uniform(0, span)
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:  # finished before all kills: everything is done anew, and killed further
            break
        workers = children(process.pid) if jobs > 1 else []
        if workers and draw.random() < 0.5:
            victim = draw.choice(workers)
            counts["worker"] += 1
        else:
            victim = process.pid
            counts["driver"] += 1
        os.kill(victim, signal.SIGKILL)
        if victim == process.pid:
            process.wait()
            process = started(folder, out, seed, jobs)
            counts["starts"] += 1
    process.wait()
    return counts


def facts(out: Path) -> dict[str, Any]:
    """Return everything of a result that must not depend on how often the run was stopped."""
    data = json.loads((out / "result.json").read_text())
    trials = [{key: value for key, value in trial.items() if key != "seconds"} for trial in data["trials"]]
    kept = {key: data[key] for key in ("baseline", "result", "decisions", "budget_met")}
    weights = (out / "model.safetensors").read_bytes().hex()
    return {**kept, "trials": trials, "plan": (out / "plan.json").read_text(), "weights": weights}


def differences(whole: Path, killed: Path) -> list[str]:
    """Return what differs between an undisturbed run and one that was killed; its last words where it has no result."""
    if not (killed / "result.json").is_file():
        log = killed.with_name(f"{killed.name}.log").read_text(errors="replace").strip().splitlines()
        return [f"no result: {(log or ['no output'])[-1][:200]}"]
    one, other = facts(whole), facts(killed)
    return [name for name in one if one[name] != other.get(name)]


def compared(options: argparse.Namespace, folder: Path, number: int) -> dict[str, Any]:
    """Do one search undisturbed and one killed; return whether they agree."""
    jobs = 1 + number % 2
    whole, out = folder / f"whole{number}", folder / f"killed{number}"
    begun = time.monotonic()
    process = started(folder, whole, number, jobs)
    if process.wait():
        raise SystemExit(f"the undisturbed search failed:\n{(folder / f'{whole.name}.log').read_text()[-2000:]}")
    span = 0.6 * (time.monotonic() - begun)  # starting takes about half of it: several kills hit one search
    draw, total = random.Random(number), {"driver": 0, "worker": 0, "starts": 0}
    differs, rounds = list[str](), 0
    while sum(total[name] for name in ("driver", "worker")) < options.kills:
        this = out.with_name(f"{out.name}-{rounds}")
        left = options.kills - total["driver"] - total["worker"]
        counts = killed(folder, this, number, jobs, left, draw, span)
        total = {name: total[name] + counts[name] for name in total}
        differs += [f"{this.name}: {what}" for what in differences(whole, this)]
        rounds += 1
    return {"run": number, "jobs": jobs, "kills": total, "searches": rounds, "equal": not differs, "differs": differs}


def main() -> int:
    """Kill, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20, help="per run")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "net.py").write_text(NETWORK)
        (folder / "recipe.yaml").write_text(RECIPE)
        rows = [compared(options, folder, number) for number in range(options.runs)]
    record = {
        "command": f"python benchmarks/kills.py --runs {options.runs} --kills {options.kills}",
        "versions": {"python": platform.python_version()}
        | {p: importlib.metadata.version(p) for p in ("convwright", "torch", "optuna")},
        "machine": {"cores": os.cpu_count(), "system": platform.system()},
        "load": [round(number, 2) for number in os.getloadavg()],
        "rows": rows,
    }
    print(json.dumps(record, indent=2))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if all(row["equal"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Size of a report, how long making it takes, and how long a browser takes to show it.

usage: python benchmarks/report.py [--trials 200] [--rounds 5] [--keep DIR] [--seed 0]

A made-up search is recorded through the real storage: ResNet-20, widths of all channel groups drawn anew for each of
200 candidates, accuracies that follow the logarithm of the MACs with noise, conflicting bundles and channel quality
observed in every tenth trial, 20 epochs of training curves. No network is trained. Then

- making: `report_of(run).html()`, with the run directory read anew each time; the modules are imported before;
- opening: headless Chromium from the start of loading until all charts are drawn, by its own clock; left out where
  there is no Chromium.

Medians over the rounds. Prints a table and writes benchmarks/results/report.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import convwright as cw
from convwright.methods import Candidate, Evidence
from convwright.report import report_of
from convwright.runs.directory.files import write_json, write_text
from convwright.runs.directory.network_record import FILE as NETWORKS
from convwright.runs.directory.network_record import networks
from convwright.runs.directory.provenance import machine, portable, versions
from convwright.runs.directory.result import FORMAT
from convwright.runs.directory.study import Study
from convwright.runs.evaluate import HISTORY

RESULTS = Path(__file__).parent / "results" / "report.json"
LIMIT = 0.5  # of the MACs
LEAST = 500  # pixels: Chromium's windows are not narrower
WATCH = """<script>window.seen=[];window.onerror=(m)=>{window.seen.push(String(m))};
for(const k of ["error","warn"])console[k]=(...a)=>{window.seen.push(k+": "+a.join(" "))};</script>"""
TELL = """<script>(()=>{const d=document.documentElement,b=parent.document.createElement("meta");
const tell={ms:performance.now(),seen:window.seen,inner:window.innerWidth,scroll:d.scrollWidth,shown:d.dataset.shown,
drawn:document.querySelectorAll(".plot .main-svg").length,plots:document.querySelectorAll(".plot").length,
unfilled:[...document.querySelectorAll(".plot")].flatMap(p=>p.data.flatMap(t=>t.colorscale||[]))
.filter(c=>c[1].startsWith("var(")).length,fetched:performance.getEntriesByType("resource").map(e=>e.name).filter(n=>!n.startsWith("data:"))};
b.name="told";b.content=JSON.stringify(tell);parent.document.head.append(b);})()</script>"""


# ------------------------------------------------------------------ a made-up run


def make_run(folder: Path, trials: int, seed: int = 0, finished: bool = True) -> Path:
    """Record a search that never took place, through the storage that real ones use."""
    rng = np.random.default_rng(seed)
    arch = cw.read("zoo:resnet20", num_classes=10)
    model, whole = arch.cost_model(), arch.profile()
    groups = [group for group in arch.free_groups if group.size > 4]
    limit = int(LIMIT * whole.macs)
    empty = cw.Plan.empty(arch)
    with Study(folder, settings(arch, limit), command="convwright optimize zoo:resnet20 ...") as study:
        told: list[Evidence] = []
        for number in range(trials):
            ratios = np.clip(rng.normal(0.9 - 0.35 * number / trials, 0.12, len(groups)), 0.3, 1.2)
            widths = {g.name: max(4, round(g.size * r)) for g, r in zip(groups, ratios, strict=True)}
            plan = empty if number < 2 else empty.with_edits(*(cw.Width(name, n) for name, n in widths.items()))
            macs, params = (whole.macs, whole.params) if number < 2 else counted(model, widths)
            role: Any = ("base", "baseline")[number] if number < 2 else "candidate"
            candidate = Candidate(plan, None if number == 0 else 0, 20, number, role=role)
            score = 0.9 + 0.03 * math.log(macs / whole.macs) + float(rng.normal(0, 0.006))
            costs = {"macs": macs, "params": params, "activations": 150_000, "weights": 4 * params}
            probes = observed(groups, rng) if number % 10 == 1 else {}
            study.enter(number, candidate)
            if not finished and number == trials - 1:
                break
            evidence = Evidence(candidate, number, score, 0.009, costs, probes, seconds=12.5)
            study.finish(evidence)
            write_json(study.trial_folder(number) / HISTORY, epochs(rng))
            told.append(evidence)
        if finished:
            finish(study, arch, told, limit)
    return folder


def settings(arch: cw.Architecture, limit: int) -> dict[str, Any]:
    """Return what a run's settings hold."""
    return {
        "model": arch.source, "options": dict(arch.options), "architecture": "made up", "data": "made up",
        "budget": [f"macs<={LIMIT:.0%}"], "limits": {"macs": limit}, "method": "channel-search",
        "recipe": cw.Recipe().model_dump(mode="json"), "epochs": 20, "tune_epochs": 20, "divisor": 1, "seed": 0,
        "weights": None,
    }  # fmt: skip


def counted(model: Any, widths: dict[str, int]) -> tuple[int, int]:
    """Return MACs and parameters under widths."""
    return int(model.macs(widths)), int(model.params(widths))


def observed(groups: list[Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return what the two probes would have found, in their form."""
    names = [group.name for group in groups]
    shares = np.clip(rng.normal(0, 0.2, (9, len(names))), 0, 1).round(4).tolist()
    quality = rng.uniform(0.1, 0.9, (20, len(names), 2)).round(4).tolist()
    return {
        "bundles": {
            "own": {name: place for place, name in enumerate(names)},
            "excess": shares,
            "times": [{"event": "step", "epoch": 1, "step": 10 * n} for n in range(9)],
        },
        "channel-quality": {"layers": names, "metrics": {"qc": quality}},
    }


def epochs(rng: np.random.Generator) -> list[dict[str, float]]:
    """Return twenty epochs of a training that went well."""
    noise = rng.normal(0, 0.01, (20, 4))
    return [
        {
            "epoch": n + 1, "train_loss": 2 * math.exp(-n / 6) + 0.3 + noise[n, 0], "train_acc": 0.9 - 0.6 * 0.8**n,
            "val_loss": 1.9 * math.exp(-n / 7) + 0.35 + noise[n, 1], "val_acc": 0.9 - 0.6 * 0.82**n + noise[n, 2],
            "lr": 0.1, "seconds": 1.0,
        }
        for n in range(20)
    ]  # fmt: skip


def finish(study: Study, arch: cw.Architecture, told: list[Evidence], limit: int) -> None:
    """Write the files of a result."""
    fit = [e for e in told if e.candidate.role == "candidate" and e.costs["macs"] <= limit]
    best = max(fit, key=lambda e: e.score) if fit else told[-1]
    final = arch.apply(*best.candidate.plan.edits, verify=False)

    def side(trial: Evidence, drop: float) -> dict[str, Any]:
        counts = {name: {"convwright": trial.costs[name], "torch": trial.costs[name]} for name in ("macs", "params")}
        test = {"accuracy": trial.score - drop, "stderr": 0.003, "samples": 10_000}
        judged = {"validation": {"accuracy": trial.score, "stderr": 0.009}, "test": test}
        return {"trial": trial.trial, "costs": dict(trial.costs), "counts": counts, "uncounted": [], **judged}

    met = {"macs": {"limit": limit, "convwright": best.costs["macs"], "met": best.costs["macs"] <= limit}}
    content = {
        "format": FORMAT, "version": 1, **study.settings, "budget_met": met, "trained_with": study.settings["recipe"],
        "baseline": side(told[1], 0.004), "result": side(best, 0.006), "trials": [e.to_dict() for e in told],
        "decisions": [], "log": [f"trial {e.trial}: {e.score:.2%}, made up" for e in told[2:12]],
        "seconds": {"search": 2500.0}, "versions": versions(), "machine": machine(), "command": "made up",
    }  # fmt: skip
    write_text(study.folder / "plan.json", best.candidate.plan.to_json())
    write_json(study.folder / NETWORKS, networks(arch, final))
    write_json(study.folder / "result.json", content)


# ------------------------------------------------------------------ a browser


def browser() -> str | None:
    """Return the path of Chromium or Chrome, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def framed(page: str, width: int, height: int) -> str:
    """Return a page that shows another one in a frame, as narrow as asked for."""
    text = json.dumps(page).replace("<", "\\u003c")
    style = f"width:{width}px;height:{height}px;border:0"
    script = f"const f=document.createElement('iframe');f.style='{style}';f.srcdoc={text};document.body.append(f)"
    return f"<!doctype html><html><head></head><body><script>{script}</script></body></html>"


def opened(page: str, width: int = 1400, height: int = 1000, dark: bool = False) -> dict[str, Any]:
    """Open a page without network and return what happened.

    Returns:
        ``ms`` until all is drawn, ``seen`` (errors and warnings), ``fetched`` (addresses), ``inner`` and ``scroll``
        (widths of window and content), ``plots`` and ``drawn`` (charts), ``shown`` (light or dark).
    """
    program = browser()
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        head, tail = page.index("<head>") + 6, page.rindex("</body>")
        watched = page[:head] + WATCH + page[head:tail] + TELL + page[tail:]
        file.write_text(watched if width >= LEAST else framed(watched, width, height), encoding="utf-8")
        command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--window-size={width},{height}", f"--user-data-dir={folder}/profile",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []), file.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    told = re.search(r'<meta name="told" content="([^"]*)"', done.stdout)
    assert told is not None, f"the page's scripts did not run to their end: {done.stderr[-500:]}"
    content: dict[str, Any] = json.loads(told.group(1).replace("&quot;", '"').replace("&amp;", "&"))
    return content


# ------------------------------------------------------------------ measuring


def measure(run: Path, rounds: int) -> dict[str, Any]:
    """Return size and times of a run's report."""
    making, opening, page = [], [], ""
    report_of(run).html()  # what is imported and read once
    for _ in range(rounds):
        start = time.perf_counter()
        page = report_of(run).html()
        making.append(time.perf_counter() - start)
    if browser() is not None:
        opening = [opened(page)["ms"] / 1000 for _ in range(rounds)]
    return {
        "bytes": len(page.encode()),
        "making_seconds": statistics.median(making),
        "opening_seconds": statistics.median(opening) if opening else None,
        "making_all": making,
        "opening_all": opening,
    }


def main() -> None:
    """Make, measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="folder that the run and its report stay in")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep if given.keep is not None else Path(scratch) / "run"
        if not (folder / "result.json").is_file():
            make_run(folder, given.trials, given.seed)
        found = measure(folder, given.rounds)
        report_of(folder).save()
    content = {
        "command": portable(" ".join(["python", "benchmarks/report.py", *sys.argv[1:]])),
        "trials": given.trials, "rounds": given.rounds, **found, "load": os.getloadavg()[0],
        "versions": versions(), "machine": machine(),
    }  # fmt: skip
    write_json(RESULTS, content)
    opening = "no Chromium" if found["opening_seconds"] is None else f"{found['opening_seconds']:.2f} s"
    print(
        f"{given.trials} trials: {found['bytes']:,} bytes, made in {found['making_seconds']:.2f} s, opened in {opening}"
    )


if __name__ == "__main__":
    main()

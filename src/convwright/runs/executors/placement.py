"""Where a person wants candidates to be worked on, and the executor for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convwright.errors import ConvwrightError, RunError, brief, check_given_counts
from convwright.runs.evaluate import Evaluator
from convwright.runs.executors.executor import Executor, InProcess
from convwright.runs.executors.ray import LOCAL, OnRay
from convwright.runs.executors.worker import Processes, Setup

MOST_THREADS = 1024


@dataclass(frozen=True)
class Placement:
    """How many candidates are worked on at a time, and where.

    Attributes:
        jobs: Processes on this machine; 1: this process, unless `isolated`.
        threads: Threads of each training; None: one on Ray, else torch's number divided by `jobs`. A run keeps what it
            was started with, since sums depend on it by rounding.
        ray: ``local``, or the address of a Ray cluster; None: without Ray.
        cpus: Of a machine of the cluster, for each candidate; None: as many as threads.
        gpus: Likewise.
        isolated: Whether a candidate is worked on in another process than the driver's in any case, so that one that
            ends its process (out of memory, a fault in a library) does not end the run.
    """

    jobs: int = 1
    threads: int | None = None
    ray: str | None = None
    cpus: float | None = None
    gpus: float = 0.0
    isolated: bool = False

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ConvwrightError: Names the option.
        """
        check_given_counts(jobs=self.jobs, threads=self.threads)
        for name, count in (("jobs", self.jobs), ("threads", self.threads)):
            if count is not None and count > MOST_THREADS:
                raise ConvwrightError(f"--{name} {brief(count)} is beyond any machine; give {MOST_THREADS} at most")
        if self.ray is None and (self.cpus is not None or self.gpus):
            raise ConvwrightError("--cpus-per-trial and --gpus-per-trial are Ray's; give --ray, too")
        if self.ray is not None and self.jobs > 1:
            raise ConvwrightError("--jobs and --ray: give one of them; Ray takes what the cluster has")
        if (self.cpus is not None and self.cpus <= 0) or self.gpus < 0:
            raise ConvwrightError("--cpus-per-trial must be above 0, --gpus-per-trial not below it")

    def settled(self) -> int:
        """Return the threads of each training in a new run."""
        if self.threads is not None:
            return self.threads
        return 1 if self.ray is not None else max(1, torch.get_num_threads() // self.jobs)

    def threads_in(self, settled: Mapping[str, Any], folder: Path) -> int:
        """Return the threads of each training in a run.

        Args:
            settled: What the run settled; older runs say nothing about threads.
            folder: Of the run.

        Raises:
            RunError: The run was started with another number.
        """
        stored = settled.get("threads")
        if stored is None:
            return self.settled()
        if self.threads not in (None, stored):
            raise RunError(f"{folder}: the run was started with threads={stored}, not {self.threads}; give the same")
        return int(stored)

    def executor(
        self,
        evaluator: Evaluator,
        model: str | nn.Module,
        folder: Path,
        initial: Path,
        threads: int,
        say: Callable[[str], object],
    ) -> Executor:
        """Return what works on the candidates of a run.

        Args:
            evaluator: What does it in this process.
            model: As the run was given it.
            folder: Of the run.
            initial: The file of the weights that the run started from.
            threads: Of each training.
            say: Called with lines for a person.

        Raises:
            RunError: Ray is not there; network or data cannot be sent to another process.
        """
        if self.ray is None and self.jobs == 1 and not self.isolated:
            return InProcess(evaluator, threads)
        setup = Setup.of(evaluator, model, initial, threads)
        if self.ray is None:
            return Processes(self.jobs, setup, evaluator.study, say)
        cpus = float(threads) if self.cpus is None else self.cpus
        return OnRay(self.ray or LOCAL, setup, evaluator.study, folder / "run.json", cpus, self.gpus, say)

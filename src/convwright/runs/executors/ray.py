"""Candidates side by side on Ray: on this machine, or on all machines of a cluster."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from convwright.errors import RunError, first_line
from convwright.methods import Evidence
from convwright.runs.directory.files import digest, write
from convwright.runs.executors.executor import ATTEMPTS, Store, Task, lost
from convwright.runs.executors.worker import Setup, WorkerResult, WorkerTask, answered
from convwright.training.checkpoint import FILE as CHECKPOINT

LOCAL = "local"
_PATIENCE = 5.0  # seconds in which a cluster must answer
_QUIET = 60.0  # seconds without an answer after which it is looked whether anything was begun


class OnRay:
    """Works on as many candidates at a time as the cluster has room for.

    Setup and parents' weights lie in Ray's object store; a machine fetches them once. A worker that sees the run
    directory works in it, and goes on from a checkpoint there; any other works in a folder of its own and sends back
    what is to be kept. A lost worker's candidate is begun again on another one, at most `ATTEMPTS` times.

    Args:
        address: ``local`` starts Ray on this machine; else the address of a cluster, or ``auto``.
        setup: What is the same for all candidates.
        store: Where their weights lie.
        mark: A file of the run directory that tells it from others, ``run.json``.
        cpus: Of a machine, for each candidate.
        gpus: Of the same machine; parts of one are allowed.
        say: Called with lines for a person.

    Raises:
        RunError: Ray is not installed, does not answer, or has not the resources.
    """

    def __init__(
        self,
        address: str,
        setup: Setup,
        store: Store,
        mark: Path,
        cpus: float = 1.0,
        gpus: float = 0.0,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.ray = _imported()
        self.store, self.say = store, say
        self.mark = (str(mark.resolve()), digest(mark))
        self.started = not self.ray.is_initialized()
        if self.started:
            _connect(self.ray, address, cpus)
        try:
            self._check(cpus, gpus)
            # Ray's own pickle takes classes of a script along.
            self.setup = self.ray.put(setup.packed(self.ray.cloudpickle.dumps))
        except BaseException:
            self.close()
            raise
        self.work = self.ray.remote(_work).options(num_cpus=cpus, num_gpus=gpus, max_retries=ATTEMPTS - 1)
        self.parents: dict[int, Any] = {}

    def carry_out(self, tasks: Iterable[Task]) -> Iterator[Evidence]:
        """Yield evidence as it comes."""
        under_way = {self._sent(task): task for task in tasks}
        try:
            while under_way:
                found, _ = self.ray.wait(list(under_way), num_returns=1, timeout=_QUIET)
                if not found:
                    self._say_if_starved(len(under_way))
                for ready in found:
                    yield self._evidence(ready, under_way.pop(ready))
        finally:
            for left in under_way:
                with suppress(Exception):  # what is given up may be gone already
                    self.ray.cancel(left, force=True)

    def close(self) -> None:
        """Let Ray go; end it, if it was started here."""
        if self.started:
            self.ray.shutdown()

    def _sent(self, task: Task) -> Any:
        errand = WorkerTask.of(task, self.store.trial_folder)
        weights = {number: self._weights(number) for number in errand.folders if number != task.number}
        return self.work.remote(self.setup, errand, weights, self.mark)

    def _weights(self, parent: int) -> Any:
        if parent not in self.parents:
            try:
                self.parents[parent] = self.ray.put(self.store.weights(parent).read_bytes())
            except OSError as error:
                file = self.store.weights(parent)
                raise RunError(f"{file}: cannot be read ({error.strerror}); start anew in another folder") from error
        return self.parents[parent]

    def _evidence(self, ready: Any, task: Task) -> Evidence:
        try:
            answer: WorkerResult = self.ray.get(ready)
        except (self.ray.exceptions.WorkerCrashedError, self.ray.exceptions.OutOfMemoryError) as error:
            return lost(task, f"its worker ended ({_line(error)})")
        except self.ray.exceptions.RayError as error:
            raise RunError(
                f"Ray broke down at trial {task.number} ({_line(error)}); what is finished is kept: "
                "continue with --resume"
            ) from error
        for name, content in answer.files.items():
            write(self.store.trial_folder(task.number) / name, partial(Path.write_bytes, data=content))
        return answer.evidence(task)

    def _say_if_starved(self, waiting: int) -> None:
        """Say so where no processor of the cluster is taken: then no candidate has begun."""
        free, owned = (found().get("CPU", 0.0) for found in (self.ray.available_resources, self.ray.cluster_resources))
        if free >= owned:
            self.say(
                f"Ray has begun none of {waiting} candidates in {_QUIET:.0f} s: its workers need processor time to "
                "start, and the machine may have none to spare; waiting"
            )

    def _check(self, cpus: float, gpus: float) -> None:
        """Refuse what no machine has: Ray would wait for it for ever."""
        for name, flag, amount in (("CPU", "--cpus-per-trial", cpus), ("GPU", "--gpus-per-trial", gpus)):
            most = max((node["Resources"].get(name, 0.0) for node in self.ray.nodes() if node["Alive"]), default=0.0)
            if amount > most:
                raise RunError(f"{flag} {amount:g}: no machine of the Ray cluster has more than {most:g} {name}s")


def _line(error: BaseException) -> str:
    return first_line(error).rstrip(". ")


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told what is searched here
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise RunError("--ray: Ray is not installed; pip install 'convwright[ray]'") from error
    return ray


def _connect(ray: Any, address: str, cpus: float) -> None:
    remedy = "start one with `ray start --head`, or give --ray local"
    if address != LOCAL:
        _check_reachable(address, remedy)
    # A local Ray has room for one candidate, however many processors are told to be there.
    room = {"num_cpus": max(os.cpu_count() or 1, round(cpus))} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=None, logging_level="ERROR", **room)
    except Exception as error:  # Ray raises bare exceptions here, too, such as for a node that starts too slowly
        if address == LOCAL:
            raise RunError(f"--ray: Ray could not be started here ({_line(error)}); try --jobs instead") from error
        raise RunError(f"--ray {address}: no Ray cluster answers there ({_line(error)}); {remedy}") from error


def _check_reachable(address: str, remedy: str) -> None:
    """Ask whether anybody listens: Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not colon or not port.isdecimal():
        raise RunError(f"--ray {address}: not an address; write it like 10.0.0.1:6379, ray://10.0.0.1:10001 or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except OSError as error:
        raise RunError(f"--ray {address}: nobody answers there ({error.strerror or error}); {remedy}") from error


def _work(packed: bytes, errand: WorkerTask, weights: Mapping[int, Any], mark: tuple[str, str]) -> WorkerResult:
    """Do an errand in the run directory where it is seen, else in a folder of our own."""
    file, content = mark
    if content and digest(Path(file)) == content:
        return answered(packed, errand)
    with tempfile.TemporaryDirectory(prefix="convwright-") as folder:
        own = replace(errand, folders={n: f"{folder}/{n}" for n in errand.folders})
        for number, content in weights.items():
            own.trial_folder(number).mkdir()
            own.weights(number).write_bytes(_imported().get(content))
        answer = answered(packed, own)
        left = sorted(own.trial_folder(own.number).glob("*"))
        return replace(answer, files={p.name: p.read_bytes() for p in left if p.is_file() and p.name != CHECKPOINT})

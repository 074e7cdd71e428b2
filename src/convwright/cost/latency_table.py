"""Times of operators, kept on disk: what was measured once on a machine is not measured again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter

from convwright.cost.latency import Spread
from convwright.cost.latency_operators import OperatorCall, time_calls

FORMAT = "convwright operator latency"
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_ENTRIES = TypeAdapter(dict[str, tuple[_Seconds, _Seconds, _Seconds, int]])
VERSION = 1
Measure = Callable[[Sequence[OperatorCall]], Mapping[str, Spread | str]]  # by key: a time, or why there is none


class LatencyTable:
    """The time of every operator that was asked for, on one device with one number of threads.

    Args:
        device: where operators run.
        folder: of the cache file; `cache_folder` when not given.
        measure: times operators; injected by tests.
        known: times that precede those of the file, by key: a run that is continued decides as it did.

    Attributes:
        path: the cache file.
        used: the times that were asked for, by key.
        keep: called with ``used`` whenever a new time is saved, before anybody decides on it.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        folder: Path | None = None,
        measure: Measure | None = None,
        known: Mapping[str, Spread] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.machine = fingerprint(self.device)
        digest = hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()[:12]
        self.path = (folder or cache_folder()) / f"latency-{digest}.json"
        self.measure: Measure = measure or (lambda calls: time_calls(calls, self.device))
        self.times = _load(self.path, self.machine) | dict(known or {})
        self.used: dict[str, Spread] = {}
        self.keep: Callable[[Mapping[str, Spread]], object] = lambda used: None
        self._new: dict[str, Spread] = {}
        self._failed: dict[str, str] = {}

    def learn(self, calls: Iterable[OperatorCall]) -> None:
        """Measure, together, those operators that nobody knows yet."""
        unknown = {c.key: c for c in calls if c.key not in self.times and c.key not in self._failed}
        if not unknown:
            return
        found = self.measure(list(unknown.values()))
        self._failed |= {key: reason for key, reason in found.items() if isinstance(reason, str)}
        self._new |= {key: time for key, time in found.items() if isinstance(time, Spread)}
        self.times |= self._new

    def time(self, call: OperatorCall) -> Spread:
        """Return how long an operator takes, measured if nobody knows.

        Raises:
            RuntimeError: if it cannot be run by itself.
        """
        key = call.key
        self.learn([call])
        if key in self._failed:
            raise RuntimeError(self._failed[key])
        self.used[key] = self.times[key]
        return self.times[key]

    def save(self) -> None:
        """Add what is new to the file, with what other processes wrote in the meantime.

        Where it cannot be written, times are measured again next time: that is no error.
        """
        if not self._new:
            return
        self.keep(self.used)
        times = _load(self.path, self.machine) | self._new
        content = {"format": FORMAT, "version": VERSION, "machine": self.machine, "operators": as_entries(times)}
        keep_text(self.path, json.dumps(content, indent=0) + "\n")
        self._new = {}


def keep_text(path: Path, text: str) -> None:
    """Write a file of the cache under a temporary name and rename it; where it cannot be written, there is none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return where measured times lie: ``$CONVWRIGHT_CACHE``, or ``convwright`` in the user's cache folder."""
    own = os.environ.get("CONVWRIGHT_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "convwright"


def fingerprint(device: torch.device) -> dict[str, Any]:
    """Return what times depend on besides the operator: device, version of torch, threads and how they wait."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor()} {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type
    return {
        "device": name,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "waiting": os.environ.get("OMP_WAIT_POLICY", ""),  # threads that sleep take time to wake, in every operator
        "matmul": torch.get_float32_matmul_precision(),
    }


def processor() -> str:
    """Return the processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _load(path: Path, machine: Mapping[str, Any]) -> dict[str, Spread]:
    """Read a cache file; one that is missing, damaged or of another machine holds nothing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["format"], content["version"], content["machine"]) != (FORMAT, VERSION, dict(machine)):
            return {}
        return as_spreads(content["operators"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def as_entries(times: Mapping[str, Spread]) -> dict[str, list[float]]:
    """Return times as JSON values."""
    return {key: [s.median, s.lower, s.upper, s.repeats] for key, s in sorted(times.items())}


def as_spreads(entries: Mapping[str, Any]) -> dict[str, Spread]:
    """Read times from JSON values.

    Raises:
        ValueError: if one is no time.
    """
    return {key: Spread(*values) for key, values in _ENTRIES.validate_python(entries).items()}

"""Processes that end with the one that started them, from their first moment on: long before torch is imported."""

from __future__ import annotations

import os
import pickle
import threading
import time
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

_EVERY = 0.5  # seconds between two looks at who the parent is


class TetheredProcess(SpawnProcess):
    """A spawned process that looks after its parent before it unpacks what it is to do, which imports torch."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how the new process makes this object: `_tied` first."""
        return _tied, (os.getpid(), bytes(ForkingPickler.dumps(self.__dict__)))


def _tied(parent: int, packed: bytes) -> TetheredProcess:
    threading.Thread(target=_end_after, args=(parent,), name="tether", daemon=True).start()
    process = TetheredProcess.__new__(TetheredProcess)
    process.__dict__.update(pickle.loads(packed))
    return process


def _end_after(parent: int) -> None:
    """End this process when it has another parent; where a number never changes (Windows), the pool's lifeline does."""
    while os.getppid() == parent:
        time.sleep(_EVERY)
    os._exit(1)

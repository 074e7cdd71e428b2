"""Processes that end with the one that started them, from their first moment on: long before torch is imported."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

_PR_SET_PDEATHSIG = 1
_EVERY = 0.5  # seconds between two looks at who the parent is


class TetheredProcess(SpawnProcess):
    """A spawned process that looks after its parent before it unpacks what it is to do, which imports torch."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how the new process makes this object: `_tied` first."""
        return _tied, (os.getpid(), bytes(ForkingPickler.dumps(self.__dict__)))


def _tied(parent: int, packed: bytes) -> TetheredProcess:
    if sys.platform == "linux":  # the thread has to wait while a library is loaded, the kernel has not
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_after, args=(parent,), name="tether", daemon=True).start()
    process = TetheredProcess.__new__(TetheredProcess)
    process.__dict__.update(pickle.loads(packed))
    return process


def _end_after(parent: int) -> None:
    """End this process, whatever it does, when the one that started it is gone, by Ctrl-C or by any kill."""
    while os.getppid() == parent:
        known = multiprocessing.parent_process()  # not from the first moment on, and then on every system
        if known is None:
            time.sleep(_EVERY)
        elif wait([known.sentinel], _EVERY):
            break
    os._exit(1)

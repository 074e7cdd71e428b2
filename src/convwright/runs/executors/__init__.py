"""Where candidates are trained: in this process, in worker processes, or on Ray."""

from convwright.runs.executors.executor import Executor, InProcess, Task, lost, threads_of
from convwright.runs.executors.placement import Placement

__all__ = ["Executor", "InProcess", "Placement", "Task", "lost", "threads_of"]

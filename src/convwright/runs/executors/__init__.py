"""Where candidates are worked on: in this process, in processes beside it, or on Ray; one file per kind."""

from convwright.runs.executors.executor import Completed, Executor, Task, lost
from convwright.runs.executors.in_process import InProcess, threads_of
from convwright.runs.executors.placement import Placement

__all__ = ["Completed", "Executor", "InProcess", "Placement", "Task", "lost", "threads_of"]

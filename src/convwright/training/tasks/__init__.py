"""What networks are trained for, beyond classification: tasks that are ready, and the class to derive your own from."""

from convwright.ranking import Metric
from convwright.training.tasks.base import BaseTask, Batch, Metrics, Part, Task

__all__ = ["BaseTask", "Batch", "Metric", "Metrics", "Part", "Task"]

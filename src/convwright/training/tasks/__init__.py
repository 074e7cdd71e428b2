"""What networks are trained for, beyond classification: tasks that are ready, and the class to derive your own from."""

from __future__ import annotations

from typing import Any

from convwright.ranking import Metric
from convwright.training.tasks.base import BaseTask, Batch, Metrics, TaskPart
from convwright.training.tasks.dataset import DatasetTask
from convwright.training.tasks.detection import Detection
from convwright.training.tasks.multilabel import Multilabel
from convwright.training.tasks.regression import Keypoints, Regression
from convwright.training.tasks.restoration import Restoration
from convwright.training.tasks.segmentation import Segmentation
from convwright.training.tasks.self_distillation import SelfDistillation
from convwright.training.tasks.task import Task

TASKS: dict[str, type[DatasetTask]] = {
    each.kind: each
    for each in (Detection, Keypoints, Multilabel, Regression, Restoration, Segmentation, SelfDistillation)
}

__all__ = [
    "TASKS", "BaseTask", "Batch", "DatasetTask", "Detection", "Keypoints", "Metric", "Metrics", "Multilabel",
    "Regression", "Restoration", "Segmentation", "SelfDistillation", "Task", "TaskPart", "task_of",
]  # fmt: skip


def task_of(data: Any, **options: Any) -> Any:
    """Return the ready-made task that data name, as ``segmentation:folder:PATH`` does; any other data as they are."""
    kind, _, source = str(data).partition(":") if isinstance(data, str) else ("", "", "")
    return TASKS[kind](source, **options) if kind in TASKS else data

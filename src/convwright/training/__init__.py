"""Training: the trainer, its data and recipes, evaluation, checkpoints."""

from convwright.training.data.augment import Augment
from convwright.training.data.data import ImageData, check_fits, load_data
from convwright.training.data.images import ArrayImages, StreamImages
from convwright.training.data.loader import Loader
from convwright.training.evaluate import evaluate
from convwright.training.outcome import EpochRecord, TrainResult
from convwright.training.probes.bundles import ConflictProbe, ConflictSettings, conflict_probe
from convwright.training.probes.saliency import BlockLosses, ChannelNorms, SaliencyProbe
from convwright.training.recipe.recipe import Recipe
from convwright.training.settings import Measurement, Settings
from convwright.training.tasks import Metric, Metrics, Task
from convwright.training.trainer import train

__all__ = [
    "ArrayImages", "Augment", "BlockLosses", "ChannelNorms", "ConflictProbe", "ConflictSettings", "EpochRecord",
    "ImageData", "Loader", "Measurement", "Metric", "Metrics", "Recipe", "SaliencyProbe", "Settings", "StreamImages",
    "Task", "TrainResult", "check_fits", "conflict_probe", "evaluate", "load_data", "train",
]  # fmt: skip

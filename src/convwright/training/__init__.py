"""Training: data, recipes, the trainer and its judge."""

from convwright.training.augment import Augment
from convwright.training.conflict_probe import ConflictProbe, ConflictSettings, conflict_probe
from convwright.training.data import ImageData, check_fits, load_data
from convwright.training.evaluate import Metrics, evaluate
from convwright.training.images import ArrayImages, StreamImages
from convwright.training.loader import Loader
from convwright.training.norm_probe import ChannelNorms
from convwright.training.outcome import EpochRecord, TrainResult
from convwright.training.recipe import Recipe
from convwright.training.settings import Measurement, Settings
from convwright.training.trainer import train

__all__ = [
    "ArrayImages",
    "Augment",
    "ChannelNorms",
    "ConflictProbe",
    "ConflictSettings",
    "EpochRecord",
    "ImageData",
    "Loader",
    "Measurement",
    "Metrics",
    "Recipe",
    "Settings",
    "StreamImages",
    "TrainResult",
    "check_fits",
    "conflict_probe",
    "evaluate",
    "load_data",
    "train",
]

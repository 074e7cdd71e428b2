"""The papers' tables as data: what to train, and what the paper reports."""

from convwright.runs.experiments import cifar_small, mnist_phases, mnist_small, technique_tables
from convwright.runs.experiments.experiment import EXPERIMENTS, SIZES, Experiment, Row, Size, experiment_named

__all__ = [
    "EXPERIMENTS",
    "SIZES",
    "Experiment",
    "Row",
    "Size",
    "cifar_small",
    "experiment_named",
    "mnist_phases",
    "mnist_small",
    "technique_tables",
]

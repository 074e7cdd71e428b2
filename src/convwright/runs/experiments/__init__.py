"""The papers' tables as data: what to train, and what the paper reports."""

from convwright.runs.experiments import mnist_small
from convwright.runs.experiments.experiment import EXPERIMENTS, SIZES, Experiment, Row, Size, experiment_named

__all__ = ["EXPERIMENTS", "SIZES", "Experiment", "Row", "Size", "experiment_named", "mnist_small"]

"""The papers' tables as data: what to train, and what the paper reports."""

from convwright.runs.experiments import (
    cifar_small,
    conetv2,
    conetv2_rank,
    conetv2_transfer,
    conflicts_boundary,
    conflicts_lesion,
    conflicts_tune,
    field_rank,
    mnist_phases,
    mnist_small,
    receptive_field,
    technique_tables,
)
from convwright.runs.experiments.experiment import (
    EXPERIMENTS,
    SIZES,
    Conclusion,
    Experiment,
    Row,
    Size,
    experiment_named,
)

__all__ = [
    "EXPERIMENTS",
    "SIZES",
    "Conclusion",
    "Experiment",
    "Row",
    "Size",
    "cifar_small",
    "conetv2",
    "conetv2_rank",
    "conetv2_transfer",
    "conflicts_boundary",
    "conflicts_lesion",
    "conflicts_tune",
    "experiment_named",
    "field_rank",
    "mnist_phases",
    "mnist_small",
    "receptive_field",
    "technique_tables",
]

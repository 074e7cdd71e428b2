"""Probes: what is observed during a training."""

from convwright.training.probes.base import (
    PROBES,
    ChannelQuality,
    Entry,
    Moment,
    Probe,
    Probes,
    PublishedChannelQuality,
    StopRule,
    Watched,
    check_observed,
    probe,
    reached,
)

__all__ = [
    "PROBES",
    "ChannelQuality",
    "Entry",
    "Moment",
    "Probe",
    "Probes",
    "PublishedChannelQuality",
    "StopRule",
    "Watched",
    "check_observed",
    "probe",
    "reached",
]

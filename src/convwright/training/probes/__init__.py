"""Probes: what a method wants measured while a network trains."""

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
    "PROBES", "ChannelQuality", "Entry", "Moment", "Probe", "Probes", "PublishedChannelQuality", "StopRule",
    "Watched", "check_observed", "probe", "reached",
]  # fmt: skip

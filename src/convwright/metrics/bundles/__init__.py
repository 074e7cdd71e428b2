"""Conflicting bundles: counted in activations of a labelled batch."""

from convwright.metrics.bundles.counter import BundleCounter, Bundles, bundles

__all__ = ["BundleCounter", "Bundles", "bundles"]

"""Conflicting bundles: images of different classes that a layer no longer tells apart."""

from convwright.metrics.bundles.counter import BundleCounter, Bundles, bundles

__all__ = ["BundleCounter", "Bundles", "bundles"]

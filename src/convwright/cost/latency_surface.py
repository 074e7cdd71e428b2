"""Latency of layers as a function of their widths, on a runtime with its own kernels: fitted to measured networks.

Kernels have steps: one runs channels in blocks of 8, another takes a slow path where their number is no multiple of 4.
So each layer has two sums of its padded widths, one for widths that are multiples of a *step* and one for others, with
coefficients that are not negative. Step and *block* are those that predict networks best that were left out of the fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

Numbers = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

STEPS, BLOCKS = (1, 4, 8, 16), (1, 8, 16, 32)
_FOLDS = 4
_PRESENT = 4  # weight of the present network, which is measured best, and which all else is held against
_TERMS = 4  # constant, product of widths, output width, input width; once aligned and once not


@dataclass(frozen=True)
class Profiled:
    """One measured network.

    Attributes:
        lengths: of each layer's weight, its first two axes, shape (layers, 2).
        seconds: per layer, and in the end of all else, shape (layers + 1,).
        ratio: the whole network's time over the present one's, measured in turns.
    """

    lengths: Ints
    seconds: Numbers
    ratio: float


@dataclass(frozen=True, eq=False)
class LatencySurface:
    """What was fitted.

    Attributes:
        weights: names of the layers' weights.
        present: lengths of their first two axes in the present network, shape (layers, 2).
        varies: which of these change with the widths, shape (layers, 2).
        step: widths that are multiples of it are fast.
        block: to whose multiples the fast kernels pad.
        layers: coefficients, shape (layers, 8).
        rest: of what no layer owns: constant, all widths, unaligned widths.
        mix: what aligned layers, others, the rest, and a constant are multiplied by.
        error: median error of the ratios that were predicted of networks left out of a fit.
    """

    weights: tuple[str, ...]
    present: Ints = field(repr=False)
    varies: npt.NDArray[np.bool_] = field(repr=False)
    step: int
    block: int
    layers: Numbers = field(repr=False)
    rest: Numbers = field(repr=False)
    mix: Numbers = field(repr=False)
    error: float = 0.0

    def ratio(self, lengths: Ints) -> Numbers:
        """Return the time of networks over the present one's.

        Args:
            lengths: of the weights' first two axes, shape (n, layers, 2).

        Returns:
            Shape (n,).
        """
        return _parts(self, lengths) @ self.mix

    def terms(self, lengths: Ints) -> Numbers:
        """Return what each layer adds to the ratio: a constant, and what goes with its widths.

        Args:
            lengths: of the weights' first two axes, shape (layers, 2).

        Returns:
            Shape (layers, 4): constant, with the product of the widths, with the output's, with the input's.
        """
        terms = _features(self, lengths[None])[0] * self.layers
        both: Numbers = terms[:, :_TERMS] * self.mix[0] + terms[:, _TERMS:] * self.mix[1]
        return both

    def for_weights(self, names: Sequence[str], present: Ints, scale: Numbers) -> LatencySurface:
        """Return the surface of another network that has some of these layers; unknown ones are as the mean layer.

        Args:
            names: of its layers' weights.
            present: lengths of their first two axes, shape (layers, 2).
            scale: what each layer's time is multiplied by, shape (layers,).
        """
        place = {name: i for i, name in enumerate(self.weights)}
        rows = [place.get(name, len(self.weights)) for name in names]
        layers = np.concatenate([self.layers, self.layers.mean(axis=0, keepdims=True)])[rows]
        varies = np.concatenate([self.varies, np.ones((1, 2), dtype=bool)])[rows]
        rest = self.rest * (scale.sum() if len(scale) else 1) / len(self.weights)
        known = replace(self, weights=tuple(names), present=present, varies=varies)
        return replace(known, layers=layers * scale[:, None], rest=rest)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        arrays = {name: getattr(self, name).tolist() for name in ("present", "varies", "layers", "rest", "mix")}
        return {"weights": list(self.weights), "step": self.step, "block": self.block, "error": self.error, **arrays}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatencySurface:
        """Read what `as_dict` returned."""
        layers, rest, mix = (np.array(values[name], dtype=np.float64) for name in ("layers", "rest", "mix"))
        present, varies = np.array(values["present"], dtype=np.int64), np.array(values["varies"], dtype=bool)
        step, block, error = int(values["step"]), int(values["block"]), float(values["error"])
        return cls(tuple(values["weights"]), present, varies, step, block, layers, rest, mix, error)


def fit(weights: Sequence[str], varies: npt.NDArray[np.bool_], found: Sequence[Profiled]) -> LatencySurface:
    """Fit the surface to measured networks, of which the first is the present one."""
    lengths = np.stack([each.lengths for each in found])
    ratios = np.array([each.ratio for each in found])
    # Profilers disturb what they measure: their times only say how the measured ratio divides among the layers.
    shares = np.stack([each.seconds / each.seconds.sum() * each.ratio for each in found])
    blank = LatencySurface(
        tuple(weights), lengths[0], varies, 1, 1, np.zeros((len(weights), 8)), np.zeros(3), np.ones(4)
    )
    folds = [np.arange(len(found)) % _FOLDS == fold for fold in range(_FOLDS)] if len(found) > 2 * _FOLDS else []

    def errors(surface: LatencySurface) -> Numbers:
        off = [
            np.abs(_fitted(surface, lengths[~out], shares[~out], ratios[~out]).ratio(lengths[out]) / ratios[out] - 1)
            for out in folds
        ]
        return np.concatenate(off) if off else np.zeros(1)

    kernels = [replace(blank, step=step, block=block) for step in STEPS for block in BLOCKS]
    best = min(kernels, key=lambda one: float(np.median(off := errors(one)) + np.quantile(off, 0.9) / 4))
    return replace(_fitted(best, lengths, shares, ratios), error=float(np.median(errors(best))))


def _fitted(kernels: LatencySurface, lengths: Ints, shares: Numbers, ratios: Numbers) -> LatencySurface:
    """Return the coefficients for given step and block."""
    features = _features(kernels, lengths)
    layers = np.stack([_positive(features[:, i], shares[:, i]) for i in range(len(kernels.weights))])
    known = replace(kernels, layers=layers)
    known = replace(known, rest=_positive(_rest(known, lengths), shares[:, -1]))
    return replace(known, mix=_positive(_parts(known, lengths), ratios))


def _positive(columns: Numbers, values: Numbers) -> Numbers:
    """Return coefficients, none negative, that make the relative errors small."""
    scale = np.maximum(np.abs(columns).max(axis=0), 1e-30)
    weight = 1 / np.maximum(values, 0.3 * np.median(values) + 1e-30)
    weight[0] *= _PRESENT
    found, _ = nnls(columns / scale * weight[:, None], values * weight)
    return np.asarray(found / scale, dtype=np.float64)


def _aligned(surface: LatencySurface, lengths: Ints) -> npt.NDArray[np.bool_]:
    fast: npt.NDArray[np.bool_] = ((lengths % surface.step == 0) | ~surface.varies).all(axis=2)
    return fast


def _features(surface: LatencySurface, lengths: Ints) -> Numbers:
    """Return the terms of each layer, shape (n, layers, 8)."""
    fast = _aligned(surface, lengths)[..., None].astype(np.float64)
    padded = -(-lengths // surface.block) * surface.block
    both = [_terms(each.astype(np.float64)) for each in (padded, lengths)]
    return np.concatenate([fast * both[0], (1 - fast) * both[1]], axis=2)


def _terms(widths: Numbers) -> Numbers:
    out, into = widths[..., 0], widths[..., 1]
    return np.stack([np.ones_like(out), out * into, out, into], axis=-1)


def _rest(surface: LatencySurface, lengths: Ints) -> Numbers:
    """Return what the time that no layer owns depends on, shape (n, 3): constant, widths, unaligned widths."""
    widths = lengths[..., 0] / np.maximum(surface.present[:, 0], 1)
    slow = (lengths[..., 0] % surface.step > 0) & surface.varies[:, 0]
    return np.stack([np.ones(len(lengths)), widths.sum(axis=1), (widths * slow).sum(axis=1)], axis=1)


def _parts(surface: LatencySurface, lengths: Ints) -> Numbers:
    """Return aligned layers, others, the rest and one, shape (n, 4)."""
    terms = _features(surface, lengths) * surface.layers
    fast, slow = terms[..., :_TERMS].sum(axis=(1, 2)), terms[..., _TERMS:].sum(axis=(1, 2))
    return np.stack([fast, slow, _rest(surface, lengths) @ surface.rest, np.ones(len(lengths))], axis=1)

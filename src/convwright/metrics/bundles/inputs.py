"""Activations and labels as they are taken in: arrays of one row per sample, or a named error."""

from __future__ import annotations

import warnings
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from convwright.errors import DataError

# Tensors, NumPy arrays, and nested lists of numbers.
Numbers: TypeAlias = Any


def as_rows(given: Numbers, what: str) -> Tensor:
    """Return activations as a tensor (N, D) or with more axes, N and D at least 1, where they are.

    Args:
        given: a tensor, an array or nested lists; (N,) is one number per sample.
        what: it is called in messages.

    Raises:
        DataError: it is no array of real numbers with an axis of samples.
    """
    rows = _tensor(given, what, "give one layer's output as a tensor (N, ...), one row per sample")
    if rows.is_complex() or rows.is_quantized or rows.layout != torch.strided or rows.is_meta:
        raise DataError(
            f"{what} are {rows.dtype}, {rows.layout}, on {rows.device}: give a plain tensor of real numbers"
        )
    if not rows.ndim:
        raise DataError(f"{what} are a single number: give a tensor (N, ...), one row per sample")
    if not rows.numel():
        raise DataError(f"{what} have the shape {tuple(rows.shape)}: at least one sample with one number is needed")
    return rows.unsqueeze(1) if rows.ndim == 1 else rows


def as_labels(given: Numbers, samples: int, what: str) -> Tensor:
    """Return labels as a tensor of integers, (N,).

    Args:
        given: a tensor, an array or a list.
        samples: how many there must be.
        what: the activations are called in messages.

    Raises:
        DataError: they are not one class index per sample.
    """
    remedy = "give class indices, integers >= 0, one per sample"
    labels = _tensor(given, "labels", remedy)
    if labels.ndim == 2:
        raise DataError(
            f"labels have the shape {tuple(labels.shape)}: {remedy}; of one-hot or soft labels that is labels.argmax(1)"
        )
    if labels.ndim != 1:
        raise DataError(f"labels have the shape {tuple(labels.shape)}: {remedy}, shape (N,)")
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(
            f"labels are {labels.dtype}: {remedy}; if they are whole numbers that is labels.to(torch.int64)"
        )
    if len(labels) != samples:
        raise DataError(
            f"{what} have {samples} rows, but there are {len(labels)} labels: the first axis must be that of the "
            "samples, with one label each"
        )
    labels = labels.to(torch.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > torch.iinfo(torch.int32).max:
        raise DataError(f"labels reach from {low} to {high}: {remedy}; leave out samples that are to be ignored")
    return labels


def _tensor(given: Numbers, what: str, remedy: str) -> Tensor:
    if isinstance(given, np.ndarray) and any(stride < 0 for stride in given.strides):
        given = np.ascontiguousarray(given)  # torch has no negative strides
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing is written
            return torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{what} are a {type(given).__name__} that is no array of numbers ({error}): {remedy}"
        ) from error

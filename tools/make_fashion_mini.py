"""Build the embedded data set `fashion-mini` from the full Fashion-MNIST.

usage: python tools/make_fashion_mini.py FASHION_MNIST.npz [OUTPUT.npz]

The input holds x_train (60000, 28, 28), y_train, x_test (10000, 28, 28), y_test. The output keeps
the first 1,000 training and the first 200 test images of each of the ten classes, in their original
order. The same input gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

ASSETS = Path(__file__).resolve().parents[1] / "src" / "convwright" / "training" / "assets"
LIMIT = 6_000_000  # bytes; the package stays small enough for every wheel


def first_of_each_class(labels: npt.NDArray[np.integer], count: int) -> npt.NDArray[np.intp]:
    """Return the sorted positions of the first `count` samples of every class."""
    chosen = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def main(source: Path, target: Path) -> None:
    """Read `source`, write `target`, and say how large it became."""
    with np.load(source, allow_pickle=False) as arrays:
        train = first_of_each_class(arrays["y_train"], 1000)
        test = first_of_each_class(arrays["y_test"], 200)
        np.savez_compressed(
            target,
            x_train=arrays["x_train"][train],
            y_train=arrays["y_train"][train].astype(np.uint8),
            x_test=arrays["x_test"][test],
            y_test=arrays["y_test"][test].astype(np.uint8),
        )
    size = target.stat().st_size
    if size > LIMIT:
        sys.exit(f"{target}: {size} bytes, more than {LIMIT}")
    sys.stdout.write(f"{target}: {size} bytes, {len(train)} + {len(test)} images\n")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else ASSETS / "fashion_mini.npz")

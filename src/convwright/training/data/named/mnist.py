"""MNIST."""

from __future__ import annotations

from convwright.training.data.named.local_copy import local_or_downloaded
from convwright.training.data.named.registry import Request, data_set
from convwright.training.data.sources import Parts


@data_set("mnist")
def mnist(request: Request) -> Parts:
    """60,000 training and 10,000 test images of digits, 1x28x28 (LeCun et al. 1998)."""
    return local_or_downloaded("mnist", ("mnist.npz",), "MNIST", tuple("0123456789"), request)

"""Global average pooling and a linear layer in one, for networks that flatten before their head."""

from __future__ import annotations

from torch import Tensor, nn


class PooledLinear(nn.Linear):
    """Mean over the positions of a flattened map, then a linear layer.

    Takes the place of a linear layer behind a flatten, so that the network's own code stays as it is: it gets what
    that layer got, sees the map in it, and works at any resolution.

    Shapes: (N, in_features * positions) -> (N, out_features), where the input is a map (N, in_features, H, W)
    flattened from its second axis on. Attributes and parameters are those of a linear layer from channels.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return scores.

        Raises:
            RuntimeError: The input is no whole number of positions.
        """
        return super().forward(input.reshape(input.shape[0], self.in_features, -1).mean(-1))

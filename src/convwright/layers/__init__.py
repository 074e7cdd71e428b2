"""Layers that edits insert and that no well-kept library has.

>>> from convwright import layers
>>> layers.RollingPointwiseConv2d(8, 8, groups=2).weight.shape
torch.Size([8, 4, 1, 1])
"""

from convwright.layers.ghost import GhostConv2d
from convwright.layers.passing import Chain, Skip, Zero
from convwright.layers.pooled_linear import PooledLinear
from convwright.layers.rolling_pointwise import RollingPointwiseConv2d

__all__ = ["Chain", "GhostConv2d", "PooledLinear", "RollingPointwiseConv2d", "Skip", "Zero"]

"""Read a network: capture its graph, and find layers, channel groups, blocks and stages."""

from convwright.architecture.architecture import Architecture
from convwright.architecture.channels import ChannelGraph, ChannelGroup, Member
from convwright.architecture.flow import Block
from convwright.architecture.layers import Layer
from convwright.architecture.reading import create, parse_inputs, parse_shape, read
from convwright.architecture.stages import Stage

__all__ = [
    "Architecture", "Block", "ChannelGraph", "ChannelGroup", "Layer", "Member", "Stage", "create", "parse_inputs",
    "parse_shape", "read",
]  # fmt: skip

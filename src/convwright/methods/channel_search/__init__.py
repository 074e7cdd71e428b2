"""Method ``channel-search`` (CONetV2): widths follow the rank of trained kernels."""

from convwright.methods.channel_search.search import TINY, ChannelSearch, Metric, Mode, Rule, Transfer, WidthDecision

__all__ = ["TINY", "ChannelSearch", "Metric", "Mode", "Rule", "Transfer", "WidthDecision"]

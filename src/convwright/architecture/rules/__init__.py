"""Rules: how each kind of operator moves and ties channel labels.

There are few. Shape operators are simply *executed* on the labels, so concat, split, shuffle and flatten
need no rule of their own. Elementwise operators are recognised by torch's own ``pointwise`` tag. What remains
are the operators that consume or produce channels (convolution, linear), statistics (norms, reductions) and
spatial operators, which leave channels alone. An operator without a rule freezes what enters it and is named in
the reason; nothing is guessed.

A rule is a function ``(follower, node) -> Value`` registered under bare operator names. Adding one is one
function with ``@rule("name")``.
"""

from __future__ import annotations

import torch
from torch import fx

from convwright.architecture.capture.graph import depends_on_values, operator_name
from convwright.architecture.rules import weighted  # noqa: F401  (it registers its rules)
from convwright.architecture.rules.elementwise import elementwise
from convwright.architecture.rules.products import Share, share_products
from convwright.architecture.rules.registry import RULES, Rule, opaque, rule
from convwright.architecture.rules.shapes import executed, pad

__all__ = ["RULES", "Rule", "Share", "elementwise", "executed", "opaque", "pad", "rule", "rule_for", "share_products"]


def rule_for(node: fx.Node) -> Rule:
    """Return the rule of a node: by name, else by torch's pointwise tag, else the freezing rule."""
    found = RULES.get(operator_name(node))
    if found is not None and not depends_on_values(node):
        return found
    tags = getattr(node.target, "tags", ())
    return elementwise if torch.Tag.pointwise in tags and not depends_on_values(node) else opaque

"""What `doctor` and `plan show` print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from convwright.diagnose.doctor import Diagnosis, Part
from convwright.edits import Plan, Step
from convwright.edits.preview import total
from convwright.edits.summary import shape_words
from convwright.tables import add_row, brief, new_table

_MOST_GROUPS = 40  # free groups from which those that are like their neighbours are not listed one by one


def diagnosed(found: Diagnosis) -> Iterator[Table | Text]:
    """Yield what `doctor` prints, the verdict last."""
    yield _reading(found)
    yield _free(found)
    yield _others(found)
    yield Text(found.verdict, style="bold")
    for line in found.advice:
        yield Text(f"* {line}")


def _reading(found: Diagnosis) -> Table:
    table = new_table(f"{found.model}, input {shape_words(found.input_shape)}", "reading", "")
    costs = f"{found.macs:,} MACs, {found.params:,} parameters"
    add_row(table, "costs per image", costs if found.complete else f"{costs}; not counted: {brief(found.uncounted)}")
    add_row(table, "MACs in convolutions", f"{found.conv_share:.0%}")
    shares = f"{found.macs_share:.0%} of the MACs, {found.params_share:.0%} of the parameters"
    add_row(table, "in layers whose width can change", shares)
    if found.unused:
        add_row(table, "parameters without use", brief(found.unused))
    if found.stored:
        stored = brief([name.removeprefix(".") for name in found.stored])
        add_row(table, "sizes stored on modules", f"{len(found.stored)}, which edits keep in step: {stored}")
    if not found.rehearsed:
        add_row(table, "not tried", "widths and input sizes: the network does not run on fake tensors")
    if found.seconds:
        add_row(table, "seconds", f"{found.seconds:.1f}")
    return table


def _free(found: Diagnosis) -> Table:
    table = new_table(
        f"Widths that can change: {len(found.free)} of {found.groups} groups",
        "group",
        "size",
        "layers along",
        "how",
        numbers=("size", "layers along"),
    )
    for group in found.free[:_MOST_GROUPS]:
        words = [f"in steps of {group.step}"] if group.step > 1 else []
        words += [f"in proportion with {brief(group.tied)}"] if group.tied else []
        words += [f"exact in whole multiples only: {', '.join(group.across)}"] if group.across else []
        add_row(table, group.name, str(group.size), str(group.layers), ", ".join(words) or "freely")
    if len(found.free) > _MOST_GROUPS:
        add_row(table, f"and {len(found.free) - _MOST_GROUPS} more (--json lists all)", "", "", "")
    return table


def _others(found: Diagnosis) -> Table:
    """What can be done besides, and all that cannot be, with the reason and the line."""
    table = new_table("What can be done, and what stands in the way", "change", "possible", "not", "why not")
    for name, possible, obstacles in (
        ("width", f"{len(found.free)} of {found.groups}", found.frozen),
        ("remove blocks", _possible(found.removable), found.removable.obstacles),
        ("repeat blocks", _possible(found.repeatable), found.repeatable.obstacles),
        ("larger kernels", _possible(found.kernels), found.kernels.obstacles),
        ("input sizes", ", ".join(found.resolutions.possible), found.resolutions.obstacles),
    ):
        reasons = [(brief(obstacle.names), obstacle.reason) for obstacle in obstacles] or [("", "")]
        for number, reason in enumerate(reasons):
            add_row(table, *((name, possible) if number == 0 else ("", "")), *reason)
    return table


def _possible(part: Part) -> str:
    return f"{len(part.possible)} of {part.total}"


# ------------------------------------------------------------------ plan show


def planned(plan: Plan, steps: Sequence[Step]) -> Tree:
    """Return a plan as a tree: edits, below each what it changes."""
    count = f"{len(steps)} edit{'' if len(steps) == 1 else 's'}"
    tree = Tree(Text(f"plan for {plan.model}, input {shape_words(plan.input_shape[1:])}, {count}", style="bold"))
    for step in steps:
        branch = tree.add(Text(step.headline))
        inner = branch
        for line in step.lines():
            if line.startswith("  "):
                inner.add(Text(line.strip()))
            else:
                inner = branch.add(Text(line))
    tree.add(Text(total(steps), style="bold"))
    return tree

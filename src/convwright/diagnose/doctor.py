"""``convwright doctor``: what of a network can be changed, what cannot, why, and which line to change."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Table
from rich.text import Text

from convwright.architecture import Architecture, ChannelGroup, Layer
from convwright.cost import profile
from convwright.edits import check_execution
from convwright.edits.depth import why_not_removable, why_not_repeatable
from convwright.edits.fake_run import TrialNetwork
from convwright.edits.kernel import Kernel, kernel_size, why_not_kernel
from convwright.edits.rerun import branch_on_values
from convwright.edits.summary import shape_words
from convwright.runs.load import read_named
from convwright.tables import add_row, brief, new_table

_FACTORS = (0.25, 0.5, 0.75, 1.5, 2.0)  # of the input's size, that are tried
_OWN_DESIGN = "they are the network's "  # input or output: fixed on purpose
_LINE = re.compile(r"[\w.-]+\.py:\d+(?: `[^`]*`)?")
_PLACE = re.compile(r"\b(?:at|for) (?P<operator>\w+) in (?P<module>[\w.]+|the network itself)(?= \(|$)")
_RUNNING = re.compile(r", in (?P<module>[\w.]+|the network)$")


@dataclass(frozen=True)
class Free:
    """A channel group whose size can change.

    Attributes:
        name: the group.
        size: its channels now.
        step: sizes are multiples of this.
        layers: how many layers change along.
        tied: groups that change in proportion.
        across: operators that compute a statistic across its channels: not every size is exact.
    """

    name: str
    size: int
    step: int
    layers: int
    tied: tuple[str, ...]
    across: tuple[str, ...]


@dataclass(frozen=True)
class Obstacle:
    """One reason why something cannot be changed.

    Attributes:
        reason: why, in words.
        names: the groups, blocks, layers or input sizes that it concerns.
        operator: the operator at fault; empty if there is none.
        module: the module that calls it.
        line: the line of code, ``file.py:12 `code```; empty if there is none.
        advice: what to do; empty where nothing is wrong.
    """

    reason: str
    names: tuple[str, ...]
    operator: str = ""
    module: str = ""
    line: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Part:
    """One kind of change: what can have it, what stands in the way of the rest.

    Attributes:
        total: how many there are.
        possible: those that can.
        obstacles: reasons why the others cannot.
    """

    total: int
    possible: tuple[str, ...]
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True)
class Diagnosis:
    """What can be changed in a network, and what cannot.

    Attributes:
        model: its name.
        input_shape: shape of one input.
        complete: whether every operator was counted.
        uncounted: operators that were not.
        unused: parameters that the network does not use; they keep their sizes.
        macs: multiply-accumulates per sample.
        params: parameters.
        rehearsed: whether widths and input sizes were tried; they always are.
        free: channel groups whose size can change.
        groups: how many channel groups there are.
        frozen: why the others cannot change.
        stored: sizes stored on modules that edits keep in step.
        macs_share: share of the MACs in layers that free groups touch.
        params_share: share of the parameters on which free groups lie.
        conv_share: share of the MACs in convolutions.
        removable: depth, downwards.
        repeatable: depth, upwards.
        kernels: convolutions that can have a larger kernel.
        resolutions: input sizes, the present one included.
        verdict: all of it in one sentence.
        advice: which line to change for what is in the way.
        seconds: how long reading and examining took; 0 if nobody looked at a clock.
        branch: the line at which other values, of the input or at random, make the code take other steps; or empty.
    """

    model: str
    input_shape: tuple[int, ...]
    complete: bool
    uncounted: tuple[str, ...]
    unused: tuple[str, ...]
    macs: int
    params: int
    rehearsed: bool
    free: tuple[Free, ...]
    groups: int
    frozen: tuple[Obstacle, ...]
    stored: tuple[str, ...]
    macs_share: float
    params_share: float
    conv_share: float
    removable: Part
    repeatable: Part
    kernels: Part
    resolutions: Part
    verdict: str = ""
    advice: tuple[str, ...] = ()
    seconds: float = 0.0
    branch: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def examine(model: str, input_shape: str | None = None, num_classes: int | None = None) -> Diagnosis:
    """Read a named network and diagnose it.

    Raises:
        ReadError: The network cannot be made or captured.
    """
    begin = time.perf_counter()
    diagnosis = diagnose(read_named(model, input_shape, num_classes))
    return replace(diagnosis, seconds=time.perf_counter() - begin)


def diagnose(arch: Architecture) -> Diagnosis:
    """Say what can be changed in a network and what cannot; nothing is changed or computed."""
    costs = profile(arch)
    checked = check_execution(arch)
    groups = arch.channels.with_frozen(checked.fixed).groups
    free = [group for group in groups if not group.frozen]
    macs_share, params_share = _shares(arch, free)
    convolutions = sum(layer.macs for layer in costs.layers if layer.kind == "conv")
    found = Diagnosis(
        model=arch.source,
        input_shape=tuple(arch.example_input.shape[1:]),
        complete=costs.complete,
        uncounted=tuple(costs.uncounted),
        unused=arch.capture.unused,
        macs=costs.macs,
        params=costs.params,
        rehearsed=True,
        free=tuple(Free(g.name, g.size, g.step, len(g.layers), g.tied, g.across) for g in free),
        groups=len(groups),
        frozen=_gathered(
            [(group.name, group.reason) for group in groups if group.frozen],
            lambda reason: _width_advice(reason, reason in checked.fixed.values()),
        ),
        stored=checked.stored,
        macs_share=macs_share,
        params_share=params_share,
        conv_share=convolutions / max(costs.macs, 1),
        removable=_sorted_out([(b.name, why_not_removable(arch, b)) for b in arch.blocks]),
        repeatable=_sorted_out([(b.name, why_not_repeatable(arch, b)) for b in arch.blocks]),
        kernels=_kernels(arch),
        resolutions=_resolutions(arch),
        branch=branch_on_values(arch),
    )
    return replace(found, verdict=_verdict(found), advice=tuple(_advice(found)))


def _shares(arch: Architecture, free: Sequence[ChannelGroup]) -> tuple[float, float]:
    """Return the shares of MACs and parameters that free groups can move."""
    names = {group.name for group in free}
    tensors = {member.tensor for group in free for member in group.members}
    layers = {layer.name: layer for layer in arch.layers}

    def touched(layer: Layer) -> bool:
        return bool(tensors & set(layer.parameters) or names & set(layer.groups))

    costs = profile(arch)
    macs = sum(cost.macs for cost in costs.layers if touched(layers[cost.name]))
    params = sum(arch.capture.tensor(name).numel() for name in tensors & arch.capture.parameters)
    return macs / max(costs.macs, 1), min(1.0, params / max(costs.params, 1))


_WIDTH_ADVICE = (
    ("they are the network's", ""),
    ("no rule for", "write it with operators that convwright knows, or give it a rule: see CONTRIBUTING"),
    ("batch axis", "keep the batch axis apart from the channels: reshape within one image only"),
    ("channels are padded by a constant", "use a 1x1 convolution on the shortcut instead of padding channels"),
    ("channel is taken|one in . is taken|by their numbers", "take one contiguous part of the channels"),
    ("each channel is a group of its own", "use batch norm, or a group norm with fewer groups than channels"),
    ("spatial axis", "nothing to do: the input's size decides, not the width"),
    ("computed weight hides", "store the weight as a plain parameter, with its output channels on axis 0"),
    ("carries no channels", "let a layer with weights make what enters there"),
    ("no convolution or linear layer", ""),
)


def _width_advice(reason: str, executed: bool) -> str:
    if executed and "keeps its width" not in reason:
        return "take the size from a tensor's shape, such as x.shape[1], or store it as an attribute that the line uses"
    return next((advice for sign, advice in _WIDTH_ADVICE if re.search(sign, reason)), "")


def _sorted_out(reasons: Iterable[tuple[str, str | None]]) -> Part:
    listed = list(reasons)
    possible = tuple(name for name, reason in listed if reason is None)
    refused = [(name, _without_name(name, reason)) for name, reason in listed if reason is not None]
    advice = "put the block into a module of its own"
    return Part(len(listed), possible, _gathered(refused, lambda reason: advice if "does more" in reason else ""))


def _without_name(name: str, reason: str) -> str:
    """Strip what differs from case to case, so that equal reasons are equal."""
    text = re.sub(rf"^(?:the kernel of|block) {re.escape(name)} (?:cannot [^:]*: )?", "", reason)
    text = re.sub(r" from [\dx]+ to [\dx]+", "", text)
    text = re.sub(r" Repeat one behind it: .*$| \([\dx]+ to [\dx]+\)", "", text)
    return re.sub(r"(the module that holds it): .*$", r"\1", text).rstrip(".")


def _kernels(arch: Architecture) -> Part:
    shapes = {layer.name: kernel_size(arch, layer) for layer in arch.layers if layer.kind == "conv"}
    larger = [Kernel(name, [side + 2 for side in shape]) for name, shape in shapes.items()]
    return _sorted_out([(kernel.target, why_not_kernel(arch, kernel)) for kernel in larger])


def _resolutions(arch: Architecture) -> Part:
    """Try input sizes around the present one."""
    like = arch.example_input
    clip = like.ndim > 4 and not any(group.name == "input" for group in arch.groups)  # channels lie further back
    now = tuple(like.shape[-2:] if clip else like.shape[2:])
    if not now or not arch.inputs.one:  # a vector has no other sizes
        return Part(1, (shape_words(now or like.shape[1:]),), ())
    unit = 32 if min(now) >= 128 else 8 if min(now) >= 32 else 4
    scaled = (tuple(max(unit, round(side * factor / unit) * unit) for side in now) for factor in _FACTORS)
    sizes = sorted({*scaled, now})
    works, refused, trial = [], [], TrialNetwork.of(arch)
    for size in sizes:
        failure = trial.failure_at(like.new_zeros(*like.shape[: like.ndim - len(size)], *size)) if size != now else ""
        if not failure:
            works.append(shape_words(size))
        else:
            refused.append((shape_words(size), failure))

    def advice(message: str) -> str:
        return next(advice for sign, advice in _RESOLUTION_ADVICE if re.search(sign, message))

    return Part(len(sizes), tuple(works), _gathered(refused, advice))


_RESOLUTION_ADVICE = (
    ("too small|Kernel size can't be greater", ""),
    ("divisible", "give it inputs whose maps divide evenly there, such as whole multiples of the present size"),
    ("into the batch", "put nn.AdaptiveAvgPool2d before the flatten, and flatten by x.flatten(1)"),
    (r"mat1|shapes? cannot be multiplied|\blinear\b",
     "put nn.AdaptiveAvgPool2d before the flatten, so that the linear layer gets one size"),
    ("doesn't match model|position|size of tensor a",
     "interpolate the table that has the input's size, or create the network with a dynamic input size"),
    ("is invalid for input of size",
     "put nn.AdaptiveAvgPool2d before it, and take the sizes there from a tensor's shape"),
    ("", "take the size from a tensor's shape, such as x.shape[2:]"),
)  # fmt: skip


def _gathered(reasons: Iterable[tuple[str, str]], advice: Callable[[str], str]) -> tuple[Obstacle, ...]:
    """Join equal reasons; reasons that differ by the module only are equal."""
    found: dict[str, Obstacle] = {}
    for name, reason in reasons:
        place, running, line = _PLACE.search(reason), _RUNNING.search(reason), _LINE.search(reason)
        module = place["module"] if place else running["module"] if running else ""
        sizes = re.sub(r"\d+(?=[^`]*$)", "#", reason) if running else reason
        key = (line[0] if line else "") + (_PLACE.sub("", reason) if not running else sizes.partition(":")[0])
        if key in found:
            found[key] = replace(found[key], names=(*found[key].names, name))
        else:
            operator = place["operator"] if place else ""
            found[key] = Obstacle(reason, (name,), operator, module, line[0] if line else "", advice(reason))
    return tuple(found.values())


def _verdict(found: Diagnosis) -> str:
    widths = f"{len(found.free)} of {found.groups} channel groups, {found.macs_share:.0%} of the MACs, can change"
    blocks = f"{len(found.removable.possible)} of {found.removable.total} blocks can be removed"
    return f"{widths}; {blocks if found.removable.total else 'no blocks were found'}; {_sizes_in_words(found)}."


def _sizes_in_words(found: Diagnosis) -> str:
    sizes = found.resolutions.possible
    works = [name.partition("x")[0] if len({*name.split("x")}) == 1 else name for name in sizes]  # 224 for 224x224
    if len(works) == 1:
        return f"only inputs of {works[0]} work"
    ends = [_area(sizes[0]), _area(sizes[-1])]
    failing = [_area(name) for obstacle in found.resolutions.obstacles for name in obstacle.names]
    if not any(ends[0] < size < ends[1] for size in failing):  # also where none fails
        return f"inputs from {works[0]} to {works[-1]} work"
    return f"inputs of {', '.join(works[:-1])} and {works[-1]} work"


def _area(name: str) -> int:
    return math.prod(map(int, name.split("x")))


def _advice(found: Diagnosis) -> Iterable[str]:
    """Yield what to change for what is in the way."""
    for wish, obstacles in (
        ("change the width of", [o for o in found.frozen if not o.reason.startswith(_OWN_DESIGN)]),
        ("remove", found.removable.obstacles),
        ("repeat", found.repeatable.obstacles),
        ("enlarge the kernel of", found.kernels.obstacles),
        ("run on inputs of", found.resolutions.obstacles),
    ):
        for obstacle in obstacles:
            where = f", change this line: {obstacle.line}" if obstacle.line else ""
            if obstacle.advice:
                yield f"to {wish} {brief(obstacle.names)}{where}: {obstacle.advice}"


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
    if found.branch:
        add_row(table, "other steps for other values", f"from {found.branch} on; what is said holds for zeros")
    if found.seconds:
        add_row(table, "seconds", f"{found.seconds:.1f}")
    return table


def _free(found: Diagnosis) -> Table:
    title, numbers = f"Widths that can change: {len(found.free)} of {found.groups} groups", ("size", "layers along")
    table = new_table(title, "group", *numbers, "how", numbers=numbers)
    for group in found.free[:_MOST_GROUPS]:
        words = [f"in steps of {group.step}"] if group.step > 1 else []
        words += [f"in proportion with {brief(group.tied)}"] if group.tied else []
        words += [f"not exact at every size: {', '.join(group.across)}"] if group.across else []
        add_row(table, group.name, str(group.size), str(group.layers), ", ".join(words) or "freely")
    if len(found.free) > _MOST_GROUPS:
        add_row(table, f"and {len(found.free) - _MOST_GROUPS} more (--json lists all)", "", "", "")
    return table


def _others(found: Diagnosis) -> Table:
    """What can be done besides, and all that cannot be, with the reason and the line."""
    table = new_table("What can be done, and what stands in the way", "change", "possible", "not", "why not")
    parts = (("remove blocks", found.removable), ("repeat blocks", found.repeatable), ("larger kernels", found.kernels))
    for name, possible, obstacles in (
        ("width", f"{len(found.free)} of {found.groups}", found.frozen),
        *((name, f"{len(part.possible)} of {part.total}", part.obstacles) for name, part in parts),
        ("input sizes", ", ".join(found.resolutions.possible), found.resolutions.obstacles),
    ):
        reasons = [(brief(obstacle.names), obstacle.reason) for obstacle in obstacles] or [("", "")]
        for number, reason in enumerate(reasons):
            add_row(table, *((name, possible) if number == 0 else ("", "")), *reason)
    return table

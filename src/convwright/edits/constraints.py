"""What the user wants left as it is, and which widths suit kernels: every edit, and so every method, obeys it.

Constraints are bound to an `Architecture`: its groups then know their least and greatest widths, those left alone are
frozen, and an edit that breaks a constraint is refused. What comes of the architecture by edits stays bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from convwright.architecture.channels import ChannelGraph, ChannelGroup, WidthBounds
from convwright.edits.surgery import MOST_CHANNELS
from convwright.errors import ConvwrightError, EditError, brief, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from convwright.architecture import Architecture, Block

ENOUGH = 0.97  # share of a budget that the multiples of ``auto`` must be able to use; else finer ones are taken
_ALONE = "left alone by the user's constraints"

# ------------------------------------------------------------------ multiples that kernels like


@dataclass(frozen=True)
class Divisor:
    """Which numbers new widths are multiples of.

    Attributes:
        stated: One number for all groups; None (``auto``): 16 for groups of 64 channels or more, 8 for smaller ones, 1
            for those below 16.
        part: What the numbers of ``auto`` are divided by, where a budget could not be used with them.
        most: What they are at most, such as the step of a runtime's kernels.
    """

    stated: int | None = None
    part: int = 1
    most: int = 16

    @classmethod
    def of(cls, given: DivisorLike) -> Divisor:
        """Return what a person gave, ``"auto"`` or a whole number, as a divisor.

        Raises:
            EditError: It is neither.
        """
        if isinstance(given, Divisor):
            return given
        if given != "auto" and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
            raise EditError(f"the divisor must be auto or a whole number from 1 on, not {given!r}.")
        return cls(None if given == "auto" else given)

    def wanted(self, group: ChannelGroup) -> int:
        """Return what a group's widths are to be multiples of, whatever its step is."""
        stated = group.bounds.divisor if group.bounds is not None else 0
        return stated or self.of_width(group.size)

    @property
    def finer(self) -> Divisor | None:
        """Half of what ``auto`` stands for; None where that is 1 for all, or a number was stated."""
        return None if self.stated or self.part >= 16 else replace(self, part=2 * self.part)

    def of_width(self, width: int) -> int:
        """Return what widths are to be multiples of that are so many channels now."""
        usual = 16 if width >= 64 else 8 if width >= 16 else 1
        return self.stated or max(1, min(usual, self.most) // self.part)


DivisorLike = int | Literal["auto"] | Divisor


def levels_of(divisor: DivisorLike) -> tuple[Divisor, ...]:
    """Return the divisors to try, from coarse to fine: those that ``auto`` stands for, or a stated one alone."""
    first = Divisor.of(divisor)
    return (first, *(levels_of(first.finer) if first.finer is not None else ()))


def multiple_of(group: ChannelGroup, divisor: DivisorLike) -> int:
    """Return what a group's widths are multiples of: of its step, and of the divisor where the group is that large."""
    given = Divisor.of(divisor)
    wanted = given.wanted(group)
    if group.bounds is not None and group.bounds.divisor:
        return math.lcm(group.step, wanted)
    while given.stated is None and wanted > 1 and math.lcm(group.step, wanted) > group.size:
        wanted //= 2
    return math.lcm(group.step, wanted) if group.size >= wanted else group.step


@dataclass(frozen=True)
class WidthRange:
    """Widths that a group may have, in channels: multiples of a number within bounds, beside its present one.

    Attributes:
        least: The smallest.
        most: The largest.
        multiple: What all are multiples of.
    """

    least: int
    most: int
    multiple: int

    def nearest(self, width: float) -> int:
        """Return the nearest width of the range."""
        rounded = int(width / self.multiple + 0.5) * self.multiple
        return min(max(rounded, self.least), self.most)


def width_range(graph: ChannelGraph, group: ChannelGroup, divisor: DivisorLike = 1) -> WidthRange:
    """Return the widths that a group may have; of groups tied in size, so that all keep within their bounds.

    Of a group that cannot change, has no such width, or is smaller than the divisor that constraints give for it, least
    and most are its present width. Where no multiple of ``auto`` is within the bounds, finer ones are taken.
    """
    family = [group, *(graph.group(name) for name in group.tied)]
    steps = [each.step for each in family if each.size == group.size]
    multiples = [math.lcm(multiple_of(group, level), *steps) for level in levels_of(divisor)]
    fixed = WidthRange(group.size, group.size, multiples[0])
    if any(each.frozen for each in family) or multiples[-1] > group.size:
        return fixed
    bounds = [(each.bounds, group.size / each.size) for each in family if each.bounds is not None]
    low = max((math.ceil(b.least * share - 1e-9) for b, share in bounds), default=1)
    high = min((math.floor(b.most * share + 1e-9) for b, share in bounds), default=MOST_CHANNELS)
    ranges = [WidthRange(max(1, math.ceil(low / m)) * m, high // m * m, m) for m in multiples]
    return next((each for each in ranges if each.least <= each.most), fixed)


# ------------------------------------------------------------------ constraints as data


class Ratio(BaseModel):
    """Least and greatest width of a group, as shares of its width in the network as it was read.

    Attributes:
        least: The smallest share; None: no bound.
        most: The largest share; None: no bound.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    least: float | None = Field(None, ge=0, allow_inf_nan=False)
    most: float | None = Field(None, gt=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, given: Any) -> Any:
        pair = isinstance(given, list | tuple) and len(given) == 2
        return {"least": given[0], "most": given[1]} if pair else given

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"the least ratio {self.least:g} is above the greatest {self.most:g}")
        return self


class Constraints(BaseModel):
    """What a search must leave as it is.

    Names are those of channel groups, layers and modules; ``*`` stands for anything, and a module's name for all that
    is in it. Of several patterns that match, all hold.

    Attributes:
        keep: Layers and groups left alone: the channels that they make and those that they take stay as they are, their
            kernels and operators too, and the blocks that they are in.
        ratio: Least and greatest ratio of a group's width to the present one, by pattern: ``(0.5, 1)``, where None is
            no bound, or ``{"least": 0.5}``. Holds for groups whose width changes.
        divisor: What widths are multiples of, by pattern or kind (``conv``, ``depthwise``, ``linear``); instead of the
            divisor of the whole run.
        blocks: Blocks that stay.
        resolution: ``fixed`` if the network's input keeps its size.

    Raises:
        ConvwrightError: A field is unknown or wrong; one line.

    Examples:
        >>> import convwright as cw
        >>> arch = cw.Constraints(keep="layer3.*", ratio={"layer1.*": (0.5, 1)}).bound(cw.read("zoo:resnet20"))
        >>> [edit.target for edit in cw.scale_widths(arch, 0.5)][:3]
        ['conv1', 'layer1.0.conv1', 'layer1.1.conv1']
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: tuple[str, ...] = ()
    ratio: dict[str, Ratio] = Field(default_factory=dict)
    divisor: dict[str, int] = Field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    resolution: Literal["free", "fixed"] = "free"

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise ConvwrightError(f"the constraints are wrong: {_said(error, type(self))}") from error

    @field_validator("keep", "blocks", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @field_validator("divisor")
    @classmethod
    def _whole(cls, given: dict[str, int]) -> dict[str, int]:
        for name, number in given.items():
            if not 1 <= number <= MOST_CHANNELS:
                raise ValueError(f"{name}: {number} is no whole number from 1 to {MOST_CHANNELS}")
        return given

    @classmethod
    def of(cls, given: ConstraintsLike) -> Constraints:
        """Return constraints from what a person gave: constraints, their fields, a YAML file, or None.

        Raises:
            ConvwrightError: It is none of these, or wrong; names the file.
        """
        if given is None or isinstance(given, Constraints):
            return given or cls()
        if isinstance(given, str | Path):
            try:
                return cls.of(yaml.safe_load(Path(given).read_text(encoding="utf-8")))
            except ConvwrightError as error:
                raise ConvwrightError(f"{given}: {error}") from error
            except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
                raise ConvwrightError(f"{given}: cannot be read as YAML ({' '.join(str(error).split())})") from error
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise ConvwrightError(f"constraints are fields such as keep: [layer1.*], not {brief(given)}")
        return cls(**given)

    def also(self, keep: Iterable[str] = ()) -> Constraints:
        """Return the constraints with more layers and groups left alone."""
        return self.model_copy(update={"keep": tuple(dict.fromkeys((*self.keep, *keep)))})

    def __bool__(self) -> bool:
        """Whether anything is constrained."""
        return self != Constraints()

    def settings(self) -> dict[str, Any]:
        """Return what is given, as plain JSON values."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def keeps_block(self, name: str) -> bool:
        """Return whether a block of this name is to stay, by its name alone."""
        return any(_matches(pattern, [name]) for pattern in self.blocks)

    def bound(self, arch: Architecture) -> Architecture:
        """Return an architecture that obeys the constraints, as does all that edits make of it.

        Raises:
            EditError: A constraint matches nothing in the network; the message has the nearest names.
        """
        if not self:
            return arch.evolved(constraints=None) if arch.constraints is not None else arch
        self._check(arch)
        sizes = {key: group.size for group in arch.groups for key in (_key(group), group.name)}
        bound = arch.evolved(constraints=BoundConstraints(self, sizes))
        for group in bound.free_groups:
            assert group.bounds is not None
            if group.bounds.least > group.bounds.most:
                raise EditError(f"no width of {group.name} is within all ratios that the constraints give for it.")
        return bound

    def _check(self, arch: Architecture) -> None:
        layers, blocks = [layer.name for layer in arch.layers], [block.name for block in arch.blocks]
        modules = [name for name, _ in arch.model.named_modules() if name]
        named = list(dict.fromkeys(name for group in arch.groups for name in _makers(group)))
        kinds = sorted({kind for group in arch.groups for kind in _kinds(group, arch.model)})
        maker = "channel group or layer that makes one"
        for what, patterns, kind, known in (
            ("keep", self.keep, "layer or group", [*named, *layers, *modules]),
            ("blocks", self.blocks, "block", blocks),
            ("ratio", self.ratio, maker, named),
            ("divisor", self.divisor, maker, [*named, *kinds]),
        ):
            for pattern in patterns:
                if not _matches(pattern, known):
                    hint = did_you_mean(pattern, known) or f" It has {', '.join(known[:6]) or 'none'}."
                    raise EditError(f"constraint {what}: {arch.source} has no {kind} that matches {pattern!r}.{hint}")


ConstraintsLike = Constraints | Mapping[str, Any] | str | Path | None


def _said(error: ValidationError, kind: type[BaseModel]) -> str:
    first = error.errors()[0]
    place, reason = [str(each) for each in first["loc"]], first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden" and len(place) == 1:
        fields = kind.model_fields
        return f"there is no {place[0]!r}.{did_you_mean(place[0], fields)} Give {', '.join(fields)}"
    return f"{' '.join(place)}: {reason}"


# ------------------------------------------------------------------ bound to a network


@dataclass(frozen=True)
class BoundConstraints:
    """Constraints, and the widths that their ratios refer to.

    Attributes:
        asked: The constraints.
        sizes: Width of each group in the network as it was read, by name and by the axes that its channels lie on.
    """

    asked: Constraints
    sizes: Mapping[object, int] = field(repr=False)

    def marked(self, graph: ChannelGraph, model: nn.Module) -> ChannelGraph:
        """Return a channel analysis whose groups are frozen or know their bounds."""
        groups = tuple(group if group.frozen else self._marked(group, model) for group in graph.groups)
        return replace(graph, groups=groups)

    def _marked(self, group: ChannelGroup, model: nn.Module) -> ChannelGroup:
        makers = _makers(group)
        alone = next((p for p in self.asked.keep if _matches(p, [*makers, *group.layers])), None)
        if alone is not None:
            return replace(group, frozen=True, reason=f"{_ALONE} (keep {alone})")
        size = self.sizes.get(_key(group)) or self.sizes.get(group.name) or group.size
        ratios = [(pattern, ratio) for pattern, ratio in self.asked.ratio.items() if _matches(pattern, makers)]
        least = max((math.ceil(r.least * size - 1e-9) for _, r in ratios if r.least is not None), default=1)
        most = min((math.floor(r.most * size + 1e-9) for _, r in ratios if r.most is not None), default=MOST_CHANNELS)
        names = [*makers, *_kinds(group, model)]
        divisors = [number for pattern, number in self.asked.divisor.items() if _matches(pattern, names)]
        why = ", ".join(f"ratio of {pattern}" for pattern, _ in ratios)
        return replace(group, bounds=WidthBounds(max(1, least), max(1, most), math.lcm(*divisors or [0]), why))

    def why_block_stays(self, arch: Architecture, block: Block) -> str | None:
        """Return why a block may not be removed; None if nothing says so."""
        overlapping = (b.name for b in arch.blocks if {*block.layers} & {*b.layers})
        if any(map(self.asked.keeps_block, (block.name, *overlapping))):
            return f"block {block.name} cannot be removed: the user's constraints keep it (blocks)."
        for layer in block.layers:
            if (pattern := self.alone(layer)) is not None:
                return f"block {block.name} cannot be removed: {layer} in it is {_ALONE} (keep {pattern})."
        return None

    def alone(self, layer: str) -> str | None:
        """Return the pattern by which a layer is left alone, if one does."""
        return next((pattern for pattern in self.asked.keep if _matches(pattern, [layer])), None)


def check_alone(arch: Architecture, layer: str) -> None:
    """Refuse another kernel or operator for a layer that is left alone.

    Raises:
        EditError: Names the layer and the constraint.
    """
    pattern = arch.constraints.alone(layer) if arch.constraints is not None else None
    if pattern is not None:
        raise EditError(f"{layer} cannot change: it is {_ALONE} (keep {pattern}).")


def why_resolution_stays(arch: Architecture) -> str:
    """Return the constraint by which the input keeps its size; empty if there is none."""
    fixed = arch.constraints is not None and arch.constraints.asked.resolution == "fixed"
    return "the user's constraints fix it (resolution: fixed)" if fixed else ""


def odd_widths(before: Architecture, after: Architecture) -> dict[str, int]:
    """Return the layers that a change gave widths that are no multiples of 8: kernels of many runtimes are slow there.

    Layers of less than 16 channels before are left out.
    """
    was, now = (
        {n.name: n.output_shape[1 if n.kind == "conv" else -1] for n in arch.layers if n.kind in ("conv", "linear")}
        for arch in (before, after)
    )
    return {n: width for n, width in now.items() if width % 8 and was.get(n, 16) >= 16 and was.get(n) != width}


def check_widths(groups: Sequence[ChannelGroup], sizes: Sequence[int]) -> None:
    """Refuse new widths that break bounds.

    Raises:
        EditError: Names the group and the constraint.
    """
    for group, size in zip(groups, sizes, strict=True):
        bounds = group.bounds
        if bounds is None or size == group.size:
            continue
        if not bounds.least <= size <= bounds.most:
            raise EditError(
                f"{group.name} cannot have {size} channels: the user's constraints allow {bounds.least} to "
                f"{bounds.most} ({bounds.why})."
            )
        if bounds.divisor and size % bounds.divisor and not group.tied:
            raise EditError(
                f"{group.name} cannot have {size} channels: the user's constraints allow multiples of {bounds.divisor}."
            )


# ------------------------------------------------------------------ names


def _matches(pattern: str, names: Iterable[str]) -> bool:
    """Return whether a pattern matches one of some names, or a module that it lies in."""
    for name in names:
        parts = name.partition("#")[0].split(".")  # "#2" is the second call of a layer
        paths = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        if pattern in (name, *paths) or any(fnmatchcase(path, pattern) for path in paths):
            return True
    return False


def _makers(group: ChannelGroup) -> tuple[str, ...]:
    """Return a group's name, and the modules that make its channels or act on each."""
    owners = (member.tensor.rpartition(".")[0] for member in group.members if member.role != "in")
    return tuple(dict.fromkeys((group.name, group.name.partition("[")[0], *owners)))


def _kinds(group: ChannelGroup, model: nn.Module) -> tuple[str, ...]:
    """Return which kinds of layers make a group's channels or act on each: conv, depthwise, linear."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    found = [(m.role, tensors[m.tensor].ndim) for m in group.members if m.tensor in tensors]
    kinds = {("out", True): "conv", ("out", False): "linear", ("along", True): "depthwise"}  # role, whether of a kernel
    return tuple(dict.fromkeys(kinds[r, n > 2] for r, n in found if n > 1 and (r, n > 2) in kinds))


def _key(group: ChannelGroup) -> object:
    """Return the axes that a group's channels lie on: they tell groups apart whatever their widths are."""
    return frozenset((member.tensor, member.axis, member.role) for member in group.members)

"""Designs for one network and budget: a structure, and the widths that use the budget up with it.

Pure functions of the network's structure, the budget and what the first training showed; nothing here trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from convwright.architecture import Architecture
from convwright.cost.budget import Limits, Widths
from convwright.edits import Edit, Resolution, Width
from convwright.edits.constraints import DivisorLike
from convwright.errors import BudgetError, ConvwrightError, EditError, ReadError
from convwright.methods.phased.moves import Scene
from convwright.methods.shared.uniform_widths import uniform_widths
from convwright.methods.shared.width_surface import Place, Surface

Shape = Callable[[Surface], Mapping[str, float]]  # wanted proportions of the families' widths


@dataclass(frozen=True)
class ProposedDesign:
    """A network within the budget.

    Attributes:
        words: What it is, for a person.
        structure: Edits of depth, operators and resolution, as words say.
        edits: All edits, widths last.
        use: Share of the tightest limit that it uses.
        ratio: Its widths over those of the network with this structure, as a geometric mean.
        factor: What it changes against uniform widths: ``depth``, ``maps``, ``resolution``; several as ``depth+maps``.
        shape: The proportions of its widths; None: those of the structure.
    """

    words: str
    structure: tuple[Edit, ...]
    edits: tuple[Edit, ...]
    use: float
    ratio: float = 1.0
    factor: str = ""
    shape: Shape | None = field(default=None, compare=False, repr=False)


@dataclass(eq=False)
class DesignBuilder:
    """Makes designs from one network, with exact costs.

    Args:
        arch: The network that edits are for.
        limits: The budget in numbers.
        divisor: Widths are rounded to multiples of this.
        top: What makes designs from the same network at a higher cost: structures are built once, there.

    Attributes:
        dropped: What could not be made -> why.
    """

    arch: Architecture
    limits: Limits
    divisor: DivisorLike = 1
    top: DesignBuilder | None = None
    dropped: dict[str, str] = field(default_factory=dict)
    _scenes: dict[tuple[Edit, ...], Scene | str] = field(default_factory=dict, repr=False)
    _designs: dict[tuple[str, tuple[Edit, ...]], ProposedDesign | None] = field(default_factory=dict, repr=False)
    _built_widths: dict[tuple[tuple[Edit, ...], tuple[Width, ...]], Architecture] = field(
        default_factory=dict, repr=False
    )

    @property
    def widths_only(self) -> bool:
        """Whether a limit is on what is measured, such as latency, and only estimated for the present layers."""
        return self.limits.measures and self.limits.fitting is None

    def scene(self, structure: Sequence[Edit]) -> Scene:
        """Return the network after edits of structure, found once.

        Raises:
            EditError: One is refused, or a limit is on what is estimated for the present layers only.
        """
        key = tuple(structure)
        if self.top is not None and not any(isinstance(edit, Width) for edit in key):
            found = self.top.scene(key)
            return replace(found, limits=self.limits, known=found.counted)
        if key not in self._scenes:
            try:
                self._scenes[key] = self._built(key)
            except (EditError, ReadError) as error:
                self._scenes[key] = str(error)
        if isinstance(known := self._scenes[key], str):
            raise EditError(known)
        return known

    def _built(self, structure: tuple[Edit, ...]) -> Scene:
        if not structure:
            return Scene(self.arch, self.limits)
        if self.widths_only and any(not isinstance(edit, Width) for edit in structure):
            raise EditError("latency is estimated for the present layers and inputs only.")
        if isinstance(structure[0], Resolution) and structure[1:]:  # the network is read anew once per resolution
            return self.scene(structure[:1]).after(structure[1:])
        return self.scene(()).after(structure)

    def design(
        self, words: str, structure: Sequence[Edit] = (), shape: Shape | None = None, factor: str = ""
    ) -> ProposedDesign | None:
        """Make a design: the structure, with widths in the given proportions that use the budget up.

        Args:
            words: What it is; of one name and structure there is one design.
            structure: Edits of depth, operators and resolution.
            shape: Proportions of the widths; None: those that the structure has.
            factor: See `ProposedDesign`.

        Returns:
            None where it cannot be made; then `dropped` says why.
        """
        key = words, tuple(structure)
        if key not in self._designs:
            # The design of a structure in its own proportions is the same, whatever it was called.
            same = (design for (_, known), design in self._designs.items() if known == key[1])
            equal = next((d for d in same if d is not None and d.shape is None), None) if shape is None else None
            try:
                design = replace(equal, words=words) if equal is not None else self._made(*key, shape)
            except ConvwrightError as error:
                self.dropped[words], design = str(error).rstrip("."), None
            self._designs[key] = replace(design, factor=factor, shape=shape) if design is not None else None
        return self._designs[key]

    def uniform(self, words: str) -> ProposedDesign | None:
        """Return what method `uniform` proposes, to the channel, so that nothing is lost to a rounding."""
        key = f"{words}, as method uniform", ()
        if key not in self._designs:
            design = self.design(words)
            if design is not None and not self.limits.measures:
                try:
                    design = replace(design, edits=uniform_widths(self.arch, self.limits, self.divisor))
                except (BudgetError, EditError) as error:
                    self.dropped[key[0]] = str(error).rstrip(".")
            self._designs[key] = design
        return self._designs[key]

    def _made(self, words: str, structure: tuple[Edit, ...], shape: Shape | None) -> ProposedDesign:
        scene = self.scene(structure)

        def chosen(within: Limits) -> tuple[Architecture, Widths]:
            """Return the network with the widths that limits choose, which is built once, and these widths."""
            surface, place = self._place(scene, shape, within)
            edits = surface.edits(place.widths)
            if (structure, edits) not in self._built_widths:
                self._built_widths[structure, edits] = scene.narrowed(edits).arch
            return self._built_widths[structure, edits], surface.sizes(place.widths)

        if not scene.arch.free_groups:
            if not self.meets(scene):
                raise BudgetError(f"no width can change, and it does not meet {self.limits.describe()} as it is")
            return ProposedDesign(words, structure, structure, scene.use)
        limits = self.limits
        if not self.widths_only:  # else its one estimate is for this network
            limits = limits.fitted(scene.arch, chosen)
        surface, place = self._place(scene, shape, limits)
        logs = [math.log(place.widths[family.name] / family.size) for family in surface.families]
        ratio = math.exp(math.fsum(logs) / len(logs))
        return ProposedDesign(words, structure, (*structure, *surface.edits(place.widths)), place.use, ratio)

    def _place(self, scene: Scene, shape: Shape | None, limits: Limits) -> tuple[Surface, Place]:
        """Return the widths in given proportions that use limits up."""
        surface = Surface(scene.arch, limits, divisor=self.divisor)
        present = {f.name: float(f.size) for f in surface.families}
        place = surface.project(present if shape is None else shape(surface))
        if place.use > 1:
            raise BudgetError(f"no widths of it meet {self.limits.describe()}")
        return surface, place

    def meets(self, scene: Scene) -> bool:
        """Return whether a network keeps the budget as it is: counted, and measured where a limit is on that."""
        if not self.limits.measures:
            return self.limits.met(scene.costs)
        try:
            self.limits.fitted(scene.arch, lambda within: (scene.arch, {}))
        except BudgetError:
            return False
        return self.limits.counted.met(scene.costs)


# ------------------------------------------------------------------ proportions of widths


def tapered(power: float) -> Shape:
    """Return proportions that give layers on smaller maps more (power above 0) or less (below 0).

    A width is multiplied by (side of the input / side of the layer's map) ** power.
    """

    def shape(surface: Surface) -> dict[str, float]:
        maps = {f.name: surface.arch.layer(f.name.partition("[")[0]).output_shape[2:] for f in surface.families}
        sides = {name: float(max(1, math.prod(size))) ** 0.5 if size else 1.0 for name, size in maps.items()}
        top = max(sides.values())
        return {f.name: f.size * (top / sides[f.name]) ** power for f in surface.families}

    return shape


def inner(factor: float) -> Shape:
    """Return proportions that multiply the widths inside blocks, and leave those that pass between blocks."""
    return lambda surface: weighed(dict.fromkeys(inner_groups(surface.arch), factor))(surface)


def ranked(norms: Mapping[str, Sequence[float]]) -> Shape:
    """Return the widths that are left where all channels of the network are ranked together, and the least ones go.

    The rule of a pruner: one bar for all channels, as low as the budget allows.

    Args:
        norms: Group -> norm of each of its channels over their mean; groups that are not named stay as they are.
    """

    def shape(surface: Surface) -> dict[str, float]:
        bars = sorted({0.0, *(value for f in surface.families for value in norms.get(f.name, ()))})
        low, high = 0, len(bars) - 1  # bars[high] leaves the fewest channels
        while low < high:
            middle = (low + high) // 2
            left = {f.name: f.rounded(_left(f.size, norms.get(f.name, ()), bars[middle])) for f in surface.families}
            low, high = (low, middle) if surface.use(left) <= 1 else (middle + 1, high)
        return {f.name: max(1.0, _left(f.size, norms.get(f.name, ()), bars[low])) for f in surface.families}

    return shape


def _left(size: int, norms: Sequence[float], bar: float) -> float:
    """Return how many channels of a group are above a bar; a norm may stand for several channels."""
    return size * sum(norm > bar for norm in norms) / len(norms) if norms else float(size)


def together(shapes: Sequence[Shape]) -> Shape:
    """Return the proportions that several ask for at once: a family's factors are multiplied."""

    def shape(surface: Surface) -> dict[str, float]:
        asked = [each(surface) for each in shapes]
        return {f.name: f.size * math.prod(values[f.name] / f.size for values in asked) for f in surface.families}

    return shape


def weighed(values: Mapping[str, float]) -> Shape:
    """Return proportions that multiply widths by given values; those without one stay."""
    return lambda surface: {f.name: f.size * values.get(f.name, 1.0) for f in surface.families}


def inner_groups(arch: Architecture) -> frozenset[str]:
    """Return the free groups that no block hands on: their members lie in one block."""
    homes = {layer: block.name for block in arch.blocks for layer in block.layers}
    places = {group.name: {homes.get(layer, "") for layer in group.layers} for group in arch.free_groups}
    return frozenset(name for name, found in places.items() if len(found) == 1 and "" not in found)

"""Stages: runs of layers at one spatial size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from convwright.architecture.blocks import BlockDraft, drafts_of
from convwright.architecture.capture.graph import operator_name, shape_of
from convwright.architecture.flow import Flow, Shape
from convwright.architecture.layers import kind_of

_REDUCTIONS = frozenset({"mean", "sum", "amax", "max", "var", "std", "logsumexp"}) | {
    f"adaptive_{what}_pool{n}d" for what in ("avg", "max") for n in (1, 2, 3)
}
_REARRANGING = frozenset({"view", "reshape", "_unsafe_view", "permute", "transpose", "flatten",
                          "unflatten", "unsqueeze", "squeeze", "movedim"})  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A run of layers at one spatial size.

    Attributes:
        name: ``stage1``, ``stage2``, ... from input to output.
        size: spatial size of its layers' outputs, e.g. (56, 56).
        layers: names of its layers, in execution order.
        blocks: names of the blocks whose output lies in it.
    """

    name: str
    size: tuple[int, ...]
    layers: tuple[str, ...]
    blocks: tuple[str, ...]


def find_stages(flow: Flow, split_by_width: bool = False) -> tuple[Stage, ...]:
    """Group the layers into runs at one spatial size, from input to output.

    The size of a layer is the spatial size of its output. A layer belongs to the stage of what it reads if the
    sizes agree and to the next stage otherwise, so the execution order of parallel branches does not matter.

    * Side branches stay with the map they act on: inside a block every layer counts with the size of the
      block's input or output; values pooled to one position, flattened or split into heads that later return to
      a map (squeeze-and-excitation, attention) count with the size of what they read.
    * The head, i.e. what follows the last global pooling or flattening, has no size and belongs to **no**
      stage.

    Args:
        flow: of the network.
        split_by_width: also split where the width of the main path, the channels that leave the blocks,
            changes (GhostNet's six groups). Layers between blocks stay with the block before them.

    Returns:
        The stages.
    """
    drafts = drafts_of(flow)
    stage_of, sizes = _Sizes(flow, drafts).stages()
    parts = _width_parts(flow, drafts, stage_of) if split_by_width else [0] * len(stage_of)
    members: dict[tuple[int, int], set[int]] = {}
    for n, (stage, part) in enumerate(zip(stage_of, parts, strict=True)):
        if stage >= 0:
            members.setdefault((stage, part), set()).add(n)
    found: list[Stage] = []
    for key in sorted(members):
        layers = flow.layer_names(members[key])
        blocks = tuple(draft.name for draft in drafts if draft.exit in members[key])
        if layers:
            found.append(Stage(f"stage{len(found) + 1}", sizes[key[0]], layers, blocks))
    return tuple(found)


def _width_parts(flow: Flow, drafts: Sequence[BlockDraft], stage_of: Sequence[int]) -> list[int]:
    """Number, within each stage, the runs of blocks of one width, and place every node in one."""
    outer = [d for d in drafts if not any(d.nodes < other.nodes for other in drafts)]
    begins = {min(draft.nodes): draft for draft in outer}
    current: dict[int, tuple[int, int]] = {}  # stage -> (part, width)
    parts = []
    for n, stage in enumerate(stage_of):
        if n in begins:
            home = stage_of[begins[n].exit]
            width = flow.width(begins[n].exit)
            part, before = current.get(home, (0, width))
            current[home] = (part + (width != before), width)
        parts.append(current.get(stage, (0, 0))[0])
    return parts


class _Sizes:
    """Spatial sizes of all values, and the stages they make."""

    def __init__(self, flow: Flow, drafts: Sequence[BlockDraft]) -> None:
        self.flow = flow
        self.rank = next((len(shape_of(n)) for n in flow.nodes if n.op == "placeholder"), 4)
        self.drafts = drafts
        self.block: dict[int, BlockDraft] = {}
        for draft in sorted(drafts, key=lambda d: -len(d.nodes)):  # inner blocks overwrite
            self.block.update(dict.fromkeys(draft.nodes, draft))

    def stages(self) -> tuple[list[int], list[Shape]]:
        """Return the stage of each node (-1: the head) and the size of each stage."""
        own = self._own_sizes()
        returns = self._returning(own)
        stage_of: list[int] = []
        sizes: list[Shape] = []
        for n, sources in enumerate(self.flow.feeds):
            before = max((stage_of[s] for s in sources), default=-1)
            size = own[n]
            if size is None:
                stage_of.append(before if returns[n] else -1)
            elif before >= 0 and sizes[before] == size:
                stage_of.append(before)
            else:
                if size not in sizes[before + 1 :]:
                    sizes.append(size)
                stage_of.append(sizes.index(size, before + 1))  # the first behind `before` that has this size
        return stage_of, sizes

    def _own_sizes(self) -> list[Shape | None]:
        """Return the size of each value; ``None`` for side branches and the head."""
        own: list[Shape | None] = []
        for n, sources in enumerate(self.flow.feeds):
            known = not sources or any(own[s] is not None for s in sources)
            own.append(self._own_size(n, known))
        for draft in self.drafts:
            self._drop_returning(draft, own)
        return own

    def _own_size(self, n: int, known: bool) -> Shape | None:
        """Return the size of one value.

        If nothing that it reads has a known one, only an operator that makes maps gives it a size again: four axes
        alone may be heads and tokens.
        """
        size = self._allowed(n)
        point = size is not None and all(s == 1 for s in size)
        if point and (not known or self._pools(n)):
            return None
        return size if known or _makes_map(self.flow.nodes[n]) else None

    def _allowed(self, n: int) -> Shape | None:
        """Return the size of a value if it is a map, of a size that its block has at its ends."""
        if operator_name(self.flow.nodes[n]) in _REARRANGING:
            return None
        size = self.flow.size(n, self.rank)
        draft = self.block.get(n)
        if draft is None or n == draft.exit:
            return size
        ends = self._ends(draft)
        return size if None in ends or size in ends else None

    def _ends(self, draft: BlockDraft) -> tuple[Shape | None, Shape | None]:
        return self.flow.size(draft.entry, self.rank), self.flow.size(draft.exit, self.rank)

    def _drop_returning(self, draft: BlockDraft, own: list[Shape | None]) -> None:
        """Inside a block that changes the size, a detour to the new size and back is a side branch."""
        before, after = self._ends(draft)
        if before == after:
            return
        back: set[int] = set()
        for n in sorted(draft.nodes, reverse=True):
            if any(u in back or (u in draft.nodes and own[u] == before) for u in self.flow.users[n]):
                back.add(n)
                own[n] = None if own[n] == after else own[n]

    def _pools(self, n: int) -> bool:
        """Whether a node reduces a whole map to one position."""
        node = self.flow.nodes[n]
        name = operator_name(node)
        if name in _REDUCTIONS:
            return True
        before = self.flow.size(self.flow.feeds[n][0], self.rank) if self.flow.feeds[n] else None
        return name.startswith("avg_pool") and before is not None and max(before) > 1

    def _returning(self, own: Sequence[Shape | None]) -> list[bool]:
        """Return which values reach a map again."""
        returns = [False] * len(own)
        for n in reversed(range(len(own))):
            returns[n] = any(own[u] is not None or returns[u] for u in self.flow.users[n])
        return returns


def _makes_map(node: fx.Node) -> bool:
    name = operator_name(node)
    spatial = name.startswith(("upsample", "_upsample", "pixel_", "grid_sampler", "avg_pool"))
    return kind_of(node) == "conv" or spatial or name.startswith(("max_pool", "adaptive_"))

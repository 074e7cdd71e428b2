"""Two networks side by side: which layer became which, what was removed or is new, and what changed together."""

from __future__ import annotations

import difflib
import string
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from convwright.errors import RunError
from convwright.report.content import BlockChange, Coupling, LayerChange, LayerFacts, Networks, StageChange
from convwright.tables import Json


def compared_networks(content: Json, origin: Path) -> Networks:
    """Return the networks of a ``networks.json``; without a second one, the first stands for both.

    Args:
        content: Of the file.
        origin: The file, for errors.

    Raises:
        RunError: It is damaged.
    """
    try:
        before, after = content["before"], content["after"] or content["before"]
        pairs = _paired(*([_facts(layer) for layer in side["layers"]] for side in (before, after)))
        couplings = _couplings(before, after, pairs)
        letters = {c.group: c.letter for c in couplings}
        changes = [_change(one, two, letters) for one, two in pairs]
        stages = tuple(_stages(before, after, changes))
        return Networks(tuple(before["input"]), tuple(after["input"]), stages, couplings)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise RunError(f"{origin}: damaged ({type(error).__name__}: {error}); remove it, or start anew") from error


def _facts(layer: Json) -> LayerFacts:
    output, groups = layer["output"], layer["groups"]
    return LayerFacts(
        name=layer["name"],
        kind=layer["kind"],
        channels=int(output[0]) if output else 1,
        size=tuple(output[1:]),
        kernel=tuple(layer["kernel"]),
        stage=layer["stage"],
        block=layer["block"],
        macs=int(layer["macs"]),
        params=int(layer["params"]),
        group=groups[0] if len(groups) == 1 else "",
        field=tuple(layer["field"]),
        nothing_new=bool(layer["nothing_new"]),
        seconds=layer.get("seconds"),
    )


Pair = tuple[LayerFacts | None, LayerFacts | None]


def _paired(before: Sequence[LayerFacts], after: Sequence[LayerFacts]) -> list[Pair]:
    """Pair layers by name, in an order in which both networks run; what has no partner stands where it was."""
    matcher = difflib.SequenceMatcher(None, [x.name for x in before], [x.name for x in after], autojunk=False)
    pairs: list[Pair] = []
    for _, low, high, start, stop in matcher.get_opcodes():
        ours, theirs = list(before[low:high]), list(after[start:stop])
        if [x.name for x in ours] == [x.name for x in theirs]:
            pairs += zip(ours, theirs, strict=True)
        else:
            pairs += [(x, None) for x in ours]
            pairs += [(None, x) for x in theirs]
    return pairs


def _change(before: LayerFacts | None, after: LayerFacts | None, letters: Mapping[str, str]) -> LayerChange:
    if before is None or after is None:
        one = before or after
        assert one is not None
        return LayerChange(one.name, "removed" if after is None else "new", before, after)
    own = (before.channels, before.kernel, before.params) != (after.channels, after.kernel, after.params)
    coupled = letters.get(before.group, "") if before.channels != after.channels else ""
    return LayerChange(before.name, "changed" if own else "same", before, after, coupled)


def _couplings(before: Json, after: Json, pairs: Sequence[Pair]) -> tuple[Coupling, ...]:
    """Return the groups whose size changed, with the layers that give their channels, in order."""
    members: dict[str, list[tuple[LayerFacts, LayerFacts]]] = {}
    for one, two in pairs:
        if one is not None and two is not None and one.group and one.channels != two.channels:
            members.setdefault(one.group, []).append((one, two))
    sizes = {group["name"]: int(group["size"]) for group in before["groups"]}
    later = {group["name"]: int(group["size"]) for group in after["groups"]}
    found = []
    for number, (group, layers) in enumerate(members.items()):
        one, two = layers[0]
        old, new = sizes.get(group, one.channels), later.get(group, two.channels)
        found.append(Coupling(letter_of(number), group, old, new, tuple(one.name for one, _ in layers)))
    return tuple(found)


def letter_of(number: int) -> str:
    """Return A, B, ..., Z, AA, AB, ..."""
    before, place = divmod(number, 26)
    return (letter_of(before - 1) if before else "") + string.ascii_uppercase[place]


def _stages(before: Json, after: Json, changes: Sequence[LayerChange]) -> Iterator[StageChange]:
    """Yield the stages of the first network; a layer that is new stands with its neighbours."""
    old = {stage["name"]: stage["size"] for stage in before["stages"]}
    new = {stage["name"]: stage["size"] for stage in after["stages"]}
    named: list[tuple[str, LayerChange]] = []
    last = next((c.before.stage for c in changes if c.before is not None), "")
    for change in changes:
        last = change.before.stage if change.before is not None else last
        named.append((last, change))
    for stage, inside in groupby(named, key=lambda pair: pair[0]):
        layers = [change for _, change in inside]
        kept = [c.after.size for c in layers if c.after is not None and len(c.after.size) == 2]
        size, later = (old.get(stage), kept[-1] if kept else new.get(stage)) if stage else (None, None)
        yield StageChange(stage or "head", _size(size), _size(later), tuple(_blocks(layers)))


def _size(size: Sequence[int] | None) -> str:
    return "x".join(map(str, size or ()))


def _blocks(layers: Sequence[LayerChange]) -> Iterator[BlockChange]:
    for name, inside in groupby(layers, key=lambda c: (c.before or c.after).block):  # type: ignore[union-attr]  # one is
        members = tuple(inside)
        alike = len({change.state for change in members}) == 1
        yield BlockChange(name, members[0].state if alike else "changed", members)

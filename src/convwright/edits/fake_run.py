"""Rehearse an edited network in an empty copy, and repair the sizes that its modules store.

Channel labels cannot see a size that the user wrote down: an integer stored on a module (``self.out_chs``), a list
of split sizes, a shape. Running the edited copy, module by module beside the sizes that the labels predict, shows
where such a number is in the way. Integers and tuples of the module at fault that equal an old size get the new one,
and the copy is rehearsed again.
"""

from __future__ import annotations

import inspect
import re
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from torch import Tensor, fx, nn

from convwright.architecture import Architecture
from convwright.architecture.capture.graph import (
    argument,
    depends_on_values,
    first_line,
    in_mode,
    module_path,
    module_paths,
    operator_name,
    shape_of,
    source_of,
    user_frame,
)
from convwright.architecture.capture.pytrees import Inputs
from convwright.architecture.capture.recorded import record
from convwright.architecture.channels import Ints
from convwright.architecture.labels import Value
from convwright.edits.remap import ChannelRemap
from convwright.edits.surgery import operate, tensors_in
from convwright.errors import EditError

Stored = int | list[int]
Repairs = dict[str, Stored]  # "module.attribute" -> its new value
Shape = tuple[int, ...]

_MOST_RUNS = 48  # rehearsals of one edit: stored sizes are repaired class by class, so few are needed


@dataclass(frozen=True)
class Failure:
    """Where a rehearsal stopped.

    Attributes:
        modules: paths of the modules whose code may hold the number, the innermost first.
        message: what happened, with the source line where it is known.
        progress: how many modules had given the expected shape before, and the line where it stopped.
    """

    modules: tuple[str, ...]
    message: str
    progress: tuple[int, int]


class _DeviationError(Exception):
    """A module gave another shape than the labels predict."""

    def __init__(self, module: str, shape: Shape, expected: Shape) -> None:
        super().__init__(f"{module or 'the network'} gives the shape {_x(shape)} instead of {_x(expected)}")
        self.module = module


@dataclass(eq=False)
class TrialNetwork:
    """One network on which any number of edits can be rehearsed, in copies whose new tensors are empty.

    Attributes:
        model: the network.
        inputs: what it is run on.
        outputs: module path -> the graph node that makes its output, for modules called once.
        counted: modules whose output has as many rows as the values of the data say, such as boxes that are kept.
        one_row_each: the network gives one row per image.
        hopeless: modules that no stored size helped, with the groups that changed there.
        known: new group sizes -> the stored sizes that follow them, as found before.
    """

    model: nn.Module
    inputs: Inputs
    outputs: dict[str, fx.Node]
    counted: frozenset[str] = frozenset()
    one_row_each: bool = True
    known: dict[bytes, Repairs] = field(default_factory=dict)
    hopeless: set[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=set)

    @classmethod
    def of(cls, architecture: Architecture) -> TrialNetwork:
        """Return the network of an architecture, run once to see what its modules give."""
        if architecture not in _STAGES:
            nodes = [node for node in architecture.capture.graph.nodes if node.op == "call_function"]
            last = {path: node for node in nodes for path in module_paths(node)}
            shapes: dict[str, list[Shape]] = {}

            def note(name: str, result: object) -> None:
                shapes.setdefault(name, []).append(tuple(result.shape) if isinstance(result, Tensor) else ())

            _run_noting(architecture.model, architecture.inputs, note)
            once = {name: found[0] for name, found in shapes.items() if len(found) == 1}
            outputs = {n: last[n] for n, shape in once.items() if shape and n in last and shape_of(last[n]) == shape}
            rows = once.get("", ())[:1] == tuple(architecture.example_input.shape[:1])
            by_values: set[fx.Node] = set()
            for node in nodes:
                if depends_on_values(node) or not by_values.isdisjoint(node.all_input_nodes):
                    by_values.add(node)
            counted = frozenset(name for name, node in outputs.items() if node in by_values)
            _STAGES[architecture] = cls(architecture.model, architecture.inputs, outputs, counted, rows)
        return _STAGES[architecture]

    def rehearse(self, plan: ChannelRemap, repairs: Mapping[str, Stored]) -> Failure | None:
        """Run the network as the recipe changes it; ``None`` if it runs with the predicted shapes."""
        try:
            changed, _ = operate(self.model, plan, hollow=True)
        except EditError:
            raise
        except Exception as error:  # a weight that is computed from others runs the user's own code
            return Failure((), _describe(error), (0, 0))
        store(changed, repairs)
        values, passed = plan.after.follower.values, list[str]()

        def compare(name: str, result: object) -> None:
            value = values.get(self.outputs[name].name) if name in self.outputs else None
            rows = int(name in self.counted)
            if isinstance(result, Tensor) and isinstance(value, Value) and result.shape[rows:] != value.shape[rows:]:
                raise _DeviationError(name, tuple(result.shape), tuple(value.shape))
            passed.append(name)

        try:
            _run_noting(changed, self.inputs, compare)
        except Exception as error:  # the user's own forward may raise anything: what it says is handed on
            names = {module: name for name, module in changed.named_modules()}
            line = where.line if (where := user_frame(error)) else 0
            return Failure(_suspects(error, names), _describe(error), (len(passed), line))
        return None

    def failure_at(self, example_input: Tensor) -> str:
        """Return why the unchanged network does not run on an input of another shape; "" if it does."""
        running, rows = list[str](), [len(example_input)]

        def note(name: str, result: object) -> None:
            if not name:
                rows[:] = [len(tensor) for tensor in tensors_in(result) if tensor.ndim] or rows

        try:
            _run_noting(self.model, Inputs.of(example_input), note, running.append)
        except Exception as error:  # the user's own forward may raise anything
            return f"{_describe(error)}, in {running[-1] or 'the network'}"
        if self.one_row_each and rows[0] != len(example_input):
            return f"a view moves positions into the batch: {len(example_input)} in, {rows[0]} out"
        return ""


def _run_noting(
    model: nn.Module,
    inputs: Inputs,
    left: Callable[[str, object], None],
    entered: Callable[[str], object] = lambda name: None,
) -> None:
    """Run a network as it is read, and tell which module is entered and what each gives."""
    with in_mode(model, training=False), ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(lambda *call, name=name: entered(name)))
            hooks.enter_context(module.register_forward_hook(lambda *call, name=name: left(name, call[-1])))
        record(model, inputs)


_STAGES: weakref.WeakKeyDictionary[Architecture, TrialNetwork] = weakref.WeakKeyDictionary()


def _suspects(error: Exception, names: Mapping[nn.Module, str]) -> tuple[str, ...]:
    """Return the modules whose own code was running, the innermost first; torch's layers hold no such numbers."""
    found: dict[str, None] = {}
    if isinstance(error, _DeviationError):
        found[error.module] = None
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        owner = frame.f_locals.get(next(iter(frame.f_code.co_varnames), ""))  # "self", whatever it is called
        if isinstance(owner, nn.Module) and owner in names:
            found[names[owner]] = None
    return tuple(found)


def _describe(error: Exception) -> str:
    if isinstance(error, _DeviationError):
        return str(error)
    where = user_frame(error)
    return first_line(error).rstrip(".") + (f", at {where}" if where else "")


def _x(shape: Shape) -> str:
    return "x".join(map(str, shape))


def store(model: nn.Module, repairs: Mapping[str, Stored]) -> None:
    """Give module attributes their new values."""
    for name, value in repairs.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        before = getattr(module, attribute)
        after = value if isinstance(value, int) else type(before)(value)
        object.__setattr__(module, attribute, after)


class UnrepairableError(Exception):
    """An edited network does not run, and no stored size explains it."""

    def __init__(self, failure: Failure, groups: tuple[str, ...], held: str, near: tuple[str, ...]) -> None:
        super().__init__(failure.message + held)
        self.failure = failure
        self.groups = groups  # those that change at the place of failure
        self.held = held  # what keeps its width on the failing line, and why
        self.near = near  # all groups at the place of failure


def repaired(
    stage: TrialNetwork, units: Ints, plan: Callable[[], ChannelRemap], given: Mapping[str, Stored] | None = None
) -> Repairs:
    """Rehearse an edit until it runs, and return the stored sizes that had to change.

    Args:
        stage: the network; it remembers what was found.
        units: the new number of channels of each group: what decides.
        plan: makes the width edit's recipe.
        given: repairs known from an earlier time.

    Raises:
        UnrepairableError: if it does not run.
    """
    key = units.tobytes()
    if key not in stage.known:
        stage.known[key] = _repaired(stage, plan(), given)
    return stage.known[key]


def _repaired(stage: TrialNetwork, plan: ChannelRemap, given: Mapping[str, Stored] | None) -> Repairs:
    repairs: Repairs = dict(given or {})
    failure = stage.rehearse(plan, repairs)
    clues = _Clues(stage, plan)
    runs = 1
    while failure is not None:
        groups = clues.groups(failure.modules)
        place = (failure.modules[:1], groups)
        for proposal in clues.proposals(failure.modules) if place not in stage.hopeless else ():
            fresh = {k: v for k, v in proposal.items() if k not in repairs}
            if not fresh or runs >= _MOST_RUNS:
                continue
            runs += 1
            after = stage.rehearse(plan, repairs | fresh)
            if after is None or after.progress > failure.progress:
                repairs, failure = repairs | fresh, after
                break
        else:
            if not given:  # else what was given may be what is wrong
                stage.hopeless.add(place)
            near = tuple(dict.fromkeys(name for module in failure.modules for name in clues.near(module)))
            raise UnrepairableError(failure, groups, clues.held(failure), near)
    return repairs


@dataclass(frozen=True)
class _Clue:
    """A number in a module's code that has to change: what it was, what it becomes, and where it stands."""

    place: tuple[object, ...]
    old: Stored
    new: Stored
    line: str


class _Clues:
    """What the graph says about the numbers in each module's code."""

    def __init__(self, stage: TrialNetwork, plan: ChannelRemap) -> None:
        self.stage, self.plan = stage, plan
        self.own: dict[str, list[fx.Node]] = {}
        for node in plan.before.follower.capture.graph.nodes:
            if node.op == "call_function":
                self.own.setdefault(module_path(node), []).append(node)
        self.modules = dict(stage.model.named_modules())
        assert plan.after.follower.guide is not None
        self.guide = plan.after.follower.guide
        self.found: dict[str, list[_Clue]] = {}

    def proposals(self, suspects: Iterable[str]) -> Iterator[Repairs]:
        """Yield sets of repairs to try, the most plausible first; modules of one class are repaired alike."""
        tried: set[str] = set()
        for suspect in suspects:
            matches = self._matches(suspect)
            together: dict[object, Repairs] = {}  # numbers of one operator may have to change together
            for attribute, clue in matches:
                repairs = together.setdefault(clue.place[0], {})
                repairs.update(self._alike(suspect, attribute, clue, repairs))
            singly = (self._alike(suspect, attribute, clue) for attribute, clue in matches)
            for proposal in (*together.values(), *singly):
                if proposal and repr(proposal) not in tried:
                    tried.add(repr(proposal))
                    yield proposal

    def groups(self, suspects: Iterable[str]) -> tuple[str, ...]:
        """Return the changing groups on the values that the first suspect handles itself."""
        found: dict[str, None] = {}
        for suspect in suspects:
            found.update(dict.fromkeys(self.near(suspect)))
            changing = tuple(name for name in found if name in self.plan.chosen)
            if changing:
                return changing
        return ()

    def near(self, module: str) -> tuple[str, ...]:
        """Return the groups on the values that a module handles itself."""
        return self._groups_on(n for node in self.own.get(module, ()) for n in [*node.all_input_nodes, node])

    def _groups_on(self, nodes: Iterable[fx.Node]) -> tuple[str, ...]:
        before = self.plan.before
        values = (value for node in nodes for value in _values(before.follower.values.get(node.name)))
        names = (name for value in values for plane in value.planes for name in before.groups_on(plane.labels))
        return tuple(dict.fromkeys(names))

    def held(self, failure: Failure) -> str:
        """Say which frozen channels arrive on the line that failed, and why they are frozen; empty if none do."""
        own = (n for path in failure.modules[:1] for n in self.own.get(path, ()))
        on_line = (node for node in own if (source := source_of(node)) and str(source) in failure.message)
        arriving = (n for node in on_line for n in node.all_input_nodes if n.op != "placeholder")  # weights lie there
        groups = map(self.plan.before.group, self._groups_on(arriving))
        frozen = next((group for group in groups if group.frozen and group.name != "input"), None)
        return f"; {frozen.name} keeps its width: {frozen.reason}" if frozen is not None else ""

    def _alike(self, path: str, attribute: str, clue: _Clue, known: Repairs | None = None) -> Repairs:
        """Return the repair of one module's number, and of the same number in other modules of its class."""
        kind = type(self.modules[path])
        found: Repairs = {}
        for other, module in self.modules.items():
            name = f"{other}.{attribute}" if other or "." not in attribute else attribute
            if type(module) is kind and name not in (known or {}):
                same = [c for a, c in self._matches(other) if a == attribute]
                chosen = next((c for c in same if c.place == clue.place), same[0] if same else None)
                if chosen is not None:
                    found[name] = chosen.new
        return found

    def _matches(self, path: str) -> list[tuple[str, _Clue]]:
        """Return (attribute, clue) for stored numbers that equal an old size, likely ones first."""
        module = self.modules[path]
        source = _source_of_class(type(module))  # type: ignore[arg-type]  # mypy: a type is no Hashable
        found = []
        for attribute, stored in _stored(module, source):
            mention = re.compile(rf"\.{re.escape(attribute)}\b")  # of self, whatever it is called
            if source and not mention.search(source):
                continue
            for clue in self._clues(path):
                new = _matched(stored, clue)
                if new is not None and new != stored:
                    score = (not mention.search(clue.line), isinstance(stored, int))
                    found.append((score, attribute, _Clue(clue.place, stored, new, clue.line)))
        found.sort(key=lambda item: item[0])
        return [(attribute, clue) for _, attribute, clue in found]

    def _clues(self, path: str) -> list[_Clue]:
        """Return the sizes that change at the operators which a module calls itself."""
        if path not in self.found:
            self.found[path] = [
                _Clue((index, *place), old, new, source.code if (source := source_of(node)) else "")
                for index, node in enumerate(self.own.get(path, ()))
                for place, old, new in self._changes(node)
            ]
        return self.found[path]

    def _changes(self, node: fx.Node) -> Iterator[tuple[tuple[object, ...], Stored, Stored]]:
        before, after = self.plan.before.follower.values, self.plan.after.follower.values
        yield from self._part_changes(node)
        for which, operand in enumerate([*node.all_input_nodes, node]):
            pairs = zip(_values(before.get(operand.name)), _values(after.get(operand.name)), strict=False)
            for part, (old, new) in enumerate(pairs):
                if old.shape == new.shape:
                    continue
                yield ("shape", which, part), list(old.shape), list(new.shape)
                yield ("tail", which, part), list(old.shape[1:]), list(new.shape[1:])
                for axis, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)):
                    if a != b:
                        yield ("axis", which, part, axis), a, b

    def _part_changes(self, node: fx.Node) -> Iterator[tuple[tuple[object, ...], Stored, Stored]]:
        """Sizes of parts, and the places where an axis is cut."""
        name = operator_name(node)
        before, after = self.plan.before.follower.values, self.plan.after.follower.values
        if name in ("split", "split_with_sizes", "chunk"):
            old, new = _values(before.get(node.name)), _values(after.get(node.name))
            axis = int(argument(node, "dim", 0))
            sizes = [v.shape[axis] for v in old], [v.shape[axis] for v in new]
            if sizes[0] != sizes[1]:
                yield ("parts",), *sizes
        if name in ("slice", "narrow"):
            source = before.get(node.all_input_nodes[0].name)
            if isinstance(source, Value):
                yield from self._cuts(node, source)

    def _cuts(self, node: fx.Node, source: Value) -> Iterator[tuple[tuple[object, ...], Stored, Stored]]:
        axis = int(argument(node, "dim", 0)) % max(source.ndim, 1)
        plane = source.plane_at(axis)
        if plane is None or plane.axes != (axis,):
            return
        for end in ("start", "end", "length"):
            at = argument(node, end)
            if isinstance(at, int) and 0 < at <= source.shape[axis]:
                yield (end,), at, self.guide.new_length(plane.line()[:at])


def _values(value: Any) -> list[Value]:
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, Value)]


def _stored(module: nn.Module, source: str) -> Iterator[tuple[str, Stored]]:
    """Yield the sizes that a module stores, and those of its children that its own code reads (``self.gru.c``)."""
    for path, child in module.named_modules():
        if not path or f".{path}." in source:
            for attribute, value in vars(child).items():
                stored = _as_stored(value)
                if stored is not None and not attribute.startswith("_"):
                    yield f"{path}.{attribute}" if path else attribute, stored


def _as_stored(value: object) -> Stored | None:
    """Return an integer, or a row of integers, that a module stores; ``None`` for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, tuple | list) and value and all(isinstance(v, int) for v in value):
        return list(value)
    return None


def _matched(stored: Stored, clue: _Clue) -> Stored | None:
    """Return what a stored number becomes under a clue; ``None`` if the clue is about another number."""
    if stored == clue.old:
        return clue.new
    if isinstance(stored, list) and isinstance(clue.old, int) and isinstance(clue.new, int) and clue.old in stored:
        return [clue.new if v == clue.old else v for v in stored]
    return None


@lru_cache(maxsize=512)
def _source_of_class(kind: type[nn.Module]) -> str:
    """Return the code in which a class may use what it stores, its bases included; empty if unknown."""
    texts = []
    for base in kind.__mro__:
        if base is nn.Module:
            break
        try:
            texts.append(inspect.getsource(base))
        except (OSError, TypeError):
            return ""
    return "\n".join(texts)

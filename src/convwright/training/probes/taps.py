"""Values inside a running network, by their node in its captured graph: to be looked at, or to be replaced.

The network itself runs, so what is seen is exactly what it computes. Where the value leaves a module that is called
once, a hook on that module sees it (torchvision's and timm's residual branches end in a norm, their blocks are
modules). Where it does not, as in ``x + self.gamma * branch`` written in a ``forward``, the call that gives or takes it
is intercepted by torch's own protocol: the k-th call of that operator in the code of that module, as in the captured
graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from convwright.architecture import Architecture
from convwright.architecture.capture.graph import module_path, operator_name
from convwright.errors import ReadError

_RESULT = -1
_REFLECTED = {"iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul"}
See = Callable[[int, Tensor], Tensor | None]


@dataclass(frozen=True)
class Tap:
    """Where a value of the captured graph appears while the network runs.

    Attributes:
        node: the graph node.
        module: what the module is called, '' for the network.
        operator: empty if the value is what the module returns; else an operator called in the module's own code.
        call: which of these calls, from 0.
        operand: of the call's operands, the one that is the value; -1 if it is the result.
    """

    node: str
    module: str
    operator: str = ""
    call: int = 0
    operand: int = _RESULT


def find_tap(arch: Architecture, node: fx.Node, taker: fx.Node | None = None) -> Tap | None:
    """Return where a value appears; None if it cannot be reached.

    Args:
        arch: the network.
        node: whose value.
        taker: an operator that takes the value; looked at where no module returns it.
    """
    flow = arch.flow
    path = flow.paths[flow.place[node.name]]
    stacks = (node.meta.get("nn_module_stack") or {} for node in flow.nodes)
    calls = (str(entry[0]).rpartition("@") for stack in stacks for entry in stack.values())
    again = {name for name, _, number in calls if name and number.isdigit()}  # modules that run more than once
    for length in range(len(path), 0, -1):
        name = ".".join(path[:length])
        if name in flow.called and name not in again and _leaving(arch, path[:length]) == {node.name}:
            return Tap(node.name, name)
    if taker is not None:
        place = next((i for i, operand in enumerate(taker.args) if operand is node), None)
        return None if place is None else _call(arch, taker, node.name, place)
    return _call(arch, node, node.name, _RESULT)


def _leaving(arch: Architecture, path: tuple[str, ...]) -> set[str]:
    flow = arch.flow
    region = flow.region(path)
    return {
        flow.nodes[n].name
        for n in region
        if flow.nodes[n].name in flow.returned or any(user not in region for user in flow.users[n])
    }


def _call(arch: Architecture, node: fx.Node, value: str, operand: int) -> Tap:
    path, name = module_path(node), _plain(operator_name(node))
    calls = [
        other
        for other in arch.capture.graph.nodes
        if other.op == "call_function" and module_path(other) == path and _plain(operator_name(other)) == name
    ]
    return Tap(value, path, name, calls.index(node), operand)


def _plain(name: str) -> str:
    """Return an operator's name without the marks of in-place and reflected forms."""
    name = name.strip("_")
    return _REFLECTED.get(name, name)


class Tapped(ExitStack):
    """A network that shows, or lets replace, some of its values in each forward pass; a context.

    Args:
        model: the network; hooks are on it within the context, nothing else changes.
        taps: the values.
        see: called with a tap's number and its value, in the order of execution; what it returns, if not None, takes
            the value's place. The value may be overwritten afterwards by operators in place: do not keep it.
    """

    def __init__(self, model: nn.Module, taps: Sequence[Tap], see: See) -> None:
        super().__init__()
        self.model, self.taps, self.see = model, tuple(taps), see
        self._seen: Counter[int] = Counter()
        self._calls = _Calls(self)

    def __enter__(self) -> Tapped:
        for number, tap in enumerate(self.taps):
            if not tap.operator:
                module = self.model.get_submodule(tap.module)
                self.enter_context(module.register_forward_hook(lambda *call, n=number: self.show(n, call[-1])))
        if self._calls.wanted:
            for path, module in self.model.named_modules():
                self.enter_context(module.register_forward_pre_hook(self._calls.entering(path)))
                self.enter_context(module.register_forward_hook(self._calls.left))
        return self

    def __call__(self, images: Tensor) -> Any:
        """Run the network.

        Raises:
            ReadError: a value did not appear exactly once: the network computes otherwise than when it was read.
        """
        self._seen.clear()
        with self._calls.begun() if self._calls.wanted else nullcontext():
            output = self.model(images)
        for number, tap in enumerate(self.taps):
            if self._seen[number] != 1:
                raise ReadError(
                    f"the value {tap.node!r} in {tap.module or 'the network'} appeared {self._seen[number]} times in "
                    "one forward pass, but once when the network was read: its code depends on more than the images. "
                    "Name layers that are modules called once"
                )
        return output

    def show(self, number: int, value: object) -> Tensor | None:
        """Pass a value on."""
        self._seen[number] += 1
        return self.see(number, value) if isinstance(value, Tensor) else None


class _Calls(TorchFunctionMode):
    """Sees the calls of operators, each with the module whose code it stands in."""

    def __init__(self, tapped: Tapped) -> None:
        super().__init__()
        self.tapped = tapped
        self.wanted: dict[tuple[str, str], dict[int, list[int]]] = {}
        for number, tap in enumerate(tapped.taps):
            if tap.operator:
                self.wanted.setdefault((tap.module, tap.operator), {}).setdefault(tap.call, []).append(number)
        self.running: list[str] = []
        self.counted: Counter[tuple[str, str]] = Counter()

    def begun(self) -> AbstractContextManager[object]:
        self.running.clear()
        self.counted.clear()
        return self

    def entering(self, path: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: self.running.append(path)

    def left(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        key = (self.running[-1] if self.running else "", _plain(getattr(func, "__name__", "")))
        if key not in self.wanted:
            return func(*args, **(kwargs or {}))
        numbers = self.wanted[key].get(self.counted[key], [])
        self.counted[key] += 1
        given = list(args)
        for number in numbers:
            place = self.tapped.taps[number].operand
            if place != _RESULT:
                place = 1 - place if "radd" in str(getattr(func, "__name__", "")) else place
                new = self.tapped.show(number, given[place])
                given[place] = given[place] if new is None else new
        result = func(*given, **(kwargs or {}))
        for number in numbers:
            if self.tapped.taps[number].operand == _RESULT:
                new = self.tapped.show(number, result)
                result = result if new is None else new
        return result

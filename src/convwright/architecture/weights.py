"""Weights that a user brings: found in a checkpoint as it is in the wild, and taken as far as they fit."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from convwright.errors import RunError, brief

State = dict[str, Tensor]
# Under what training programs keep weights: the average of an EMA first, as in timm, since it is what they report.
_KEPT_UNDER = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "state_dict", "model_state_dict",
    "model_state", "model", "network", "net", "module", "params_ema", "params", "weights",
)  # fmt: skip
COUNTER = "num_batches_tracked"  # of batch norms: nothing is computed from it, and old checkpoints lack it
_NAMED = 3  # tensors in a message
# What training programs keep beside weights: numbers of numpy, and their command line. None of it runs code.
_NUMPY = {"scalar": np.float64(1).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
_HARMLESS: list[Any] = [
    argparse.Namespace, np.dtype, np.ndarray, *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"),
    *((found, f"numpy.{core}.multiarray.{name}") for name, found in _NUMPY.items() for core in ("core", "_core")),
]  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and what else a file holds.

    Attributes:
        source: The file, or whose weights they are.
        state: The tensors.
        ignored: Names of further entries, such as ``optimizer``.
        ordered: Whether the tensors are in the order in which their network registered them.
    """

    source: str
    state: State
    ignored: tuple[str, ...] = ()
    ordered: bool = True


@dataclass(frozen=True)
class TakenWeights:
    """What a network took of a checkpoint, and what not.

    Attributes:
        source: The file, or whose weights they are.
        taken: Names of the network's tensors that have values of the checkpoint now.
        fresh: Names of those that it has no values for: they stay as they were drawn.
        classes: Outputs of the checkpoint's network and of this one, where they differ.
        ignored: What of the checkpoint was not taken.
        by_order: Whether no names agree, and tensors were matched by order, kind and shape.
    """

    source: str
    taken: tuple[str, ...]
    fresh: tuple[str, ...] = ()
    classes: tuple[int, int] | None = None
    ignored: tuple[str, ...] = ()
    by_order: bool = False

    def __str__(self) -> str:
        how = " by their order, since their names are others" if self.by_order else ""
        parts = [f"{self.source}: took {len(self.taken)} of {len(self.taken) + len(self.fresh)} tensors{how}"]
        if self.fresh:
            classes = f" ({self.classes[0]} -> {self.classes[1]} classes)" if self.classes else ""
            parts.append(f"drawn anew: {_few(self.fresh)}{classes}")
        if self.ignored:
            parts.append(f"ignored: {_few(self.ignored)}")
        return "; ".join(parts)


@contextmanager
def openable(file: Path) -> Iterator[None]:
    """Say in one line why a file of weights cannot be read.

    Raises:
        RunError: It is missing, not readable, or a damaged .safetensors file.
    """
    try:
        with file.open("rb"):  # what cannot be read says why, as itself
            pass
        yield
    except FileNotFoundError as error:
        raise RunError(f"{file}: no such file; check the path of the weights") from error
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror or error}); give a file of weights") from error
    except SafetensorError as error:
        raise RunError(f"{file}: damaged ({error}); write it again") from error


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights of a .safetensors file, or of what torch saved: a state dict, or one within a checkpoint.

    No code in the file can run.

    Raises:
        RunError: The file is missing or damaged, or holds objects or no weights; one line that says what to do.
    """
    file = Path(path)
    try:
        with openable(file):
            if file.suffix == ".safetensors":
                return Checkpoint(str(file), load_file(file), ordered=False)  # such files are sorted by name
            with torch.serialization.safe_globals(_HARMLESS):
                content = torch.load(file, map_location="cpu", weights_only=True)
    except RunError:
        raise
    except Exception as error:  # a damaged pickle fails in any way
        kind = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it holds an object of the class {kind[1]}" if kind else "it is damaged, or no file of weights"
        raise RunError(
            f"{file}: cannot be read without running code in it ({what}); in the program that wrote it, save plain "
            "weights: torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    state, ignored, under = _state_in(content)
    if not state:
        held = f" ({_few(ignored)})" if ignored else ""
        raise RunError(
            f"{file}: holds a {type(content).__name__}{held} and no tensors by name; save model.state_dict()"
        )
    return Checkpoint(f"{file} [{under}]" if under else str(file), state, tuple(ignored))


def _state_in(content: Any) -> tuple[State, list[str], str]:
    """Return the tensors by name in a checkpoint, the names of what is beside them, and what they are kept under."""
    if not isinstance(content, Mapping):
        return {}, [], ""
    for name in _KEPT_UNDER:
        state, ignored, under = _state_in(content.get(name))
        if state:
            return state, [*ignored, *(str(other) for other in content if other != name)], under or name
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return state, [brief(name) if not isinstance(name, str) else name for name in content if name not in state], ""


def take(model: nn.Module, checkpoint: Checkpoint, outputs: int | None = None) -> TakenWeights:
    """Copy into a network what fits of a checkpoint; its values are converted to the network's types.

    Prefixes such as ``module.`` or ``model.`` may come before the names of either. Where the checkpoint's network has
    another number of outputs, the layers that give the outputs stay as they were drawn.

    Args:
        model: Takes the weights; what it holds after an error is of no use.
        checkpoint: What to take from.
        outputs: Outputs of the network, which tell its head; None: every tensor must be there, in its shape.

    Raises:
        RunError: A shape differs elsewhere, or less than half of the parameters are there; names the first ones.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    head = head_tensors(model, outputs) & own.keys()
    state, by_order = _renamed(checkpoint.state, own), False
    if 2 * len(state.keys() & own.keys()) < len(own) and checkpoint.ordered:
        ordered = _by_order(checkpoint.state, own, head)
        state, by_order = ordered or state, bool(ordered)
    unlike = [name for name in own if name in state and state[name].shape != own[name].shape]
    wrong = [name for name in unlike if name not in head or state[name].shape[1:] != own[name].shape[1:]]
    if wrong:
        sizes = [f"{name} is {_shape(state[name])} there and {_shape(own[name])} here" for name in wrong]
        raise RunError(f"{checkpoint.source}: these weights do not fit the network: {_few(sizes)}")
    try:
        found = model.load_state_dict({name: state[name] for name in state if name not in unlike}, strict=False)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise RunError(f"{checkpoint.source}: these weights do not fit the network ({reason})") from error
    missing = {name for name in found.missing_keys if not name.endswith(COUNTER)}
    shared = {tensor.data_ptr() for name, tensor in own.items() if name not in missing}  # it has another name, too
    fresh = [name for name, tensor in own.items() if name in missing and tensor.data_ptr() not in shared]
    taken = [name for name in own if name not in fresh and not name.endswith(COUNTER)]
    body = {name: p.numel() for name, p in model.named_parameters() if name not in head}
    known = sum(count for name, count in body.items() if name not in fresh)
    if not taken or 2 * known < sum(body.values()) or (outputs is None and fresh):
        there = ", not ".join([_few(fresh), _few(found.unexpected_keys)]) if found.unexpected_keys else _few(fresh)
        share = f"{known:,} of {sum(body.values()):,} parameters are there"
        raise RunError(f"{checkpoint.source}: these weights do not fit the network: {share}; it has {there}")
    classes = (state[unlike[0]].shape[0], own[unlike[0]].shape[0]) if unlike else None
    ignored = tuple(name for name in (*found.unexpected_keys, *checkpoint.ignored) if not name.endswith(COUNTER))
    return TakenWeights(checkpoint.source, tuple(taken), tuple(fresh), classes, ignored, by_order)


def head_tensors(model: nn.Module, outputs: int | None) -> set[str]:
    """Return weights and biases of the layers with as many outputs as the network: auxiliary heads, too."""
    kinds = nn.Linear, nn.modules.conv._ConvNd
    layers = [name for name, m in model.named_modules() if isinstance(m, kinds) and m.weight.shape[0] == outputs]
    return {f"{name}.{tensor}".lstrip(".") for name in layers for tensor in ("weight", "bias")}


def _renamed(state: State, own: Iterable[str]) -> State:
    """Return tensors under a network's own names: a prefix goes, or comes, where more of them are known then."""
    own, plain = set(own), {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    less = Counter(begin for name in plain for begin, rest in _splits(name) if rest in own)
    more = Counter(begin for name in own for begin, rest in _splits(name) if rest in plain)
    same = len(own & plain.keys())
    (cut, cuts), (added, adds) = (next(iter(found.most_common(1)), ("", 0)) for found in (less, more))
    if max(cuts, adds) <= same:
        return plain
    if adds > cuts:
        return {added + name: tensor for name, tensor in plain.items()}
    kept = {name: tensor for name, tensor in plain.items() if not name.startswith(cut)}
    return kept | {name.removeprefix(cut): tensor for name, tensor in plain.items() if name.startswith(cut)}


def _splits(name: str) -> Iterable[tuple[str, str]]:
    return ((name[: at + 1], name[at + 1 :]) for at, letter in enumerate(name) if letter == ".")


def _by_order(state: State, own: State, head: set[str]) -> State | None:
    """Return tensors under a network's names by their order, as timm's `remap_state_dict` does; None if one is unlike.

    Ports of a network keep its layers in order and call them as they like; kind (weight, bias, ...) and shape of every
    single tensor must agree.
    """
    theirs, ours = ([n for n in names if not n.endswith(COUNTER)] for names in (state, own))
    if len(theirs) != len(ours):
        return None
    for name, mine in zip(theirs, ours, strict=True):
        given, wanted = state[name].shape, own[mine].shape
        alike = given == wanted or (mine in head and given[1:] == wanted[1:])
        if not alike or name.rpartition(".")[2] != mine.rpartition(".")[2]:
            return None
    return {mine: state[name] for name, mine in zip(theirs, ours, strict=True)}


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")

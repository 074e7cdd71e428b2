"""Files of a run directory: one process at a time, and no file is ever half there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from convwright.architecture.weights import openable
from convwright.errors import RunError, first_line
from convwright.strict_json import check_version, parse

LOCK = ".lock"
# What the names at the top of our JSON files, and in the settings of a run, hold: as types and in words.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    name: (kinds, words)
    for names, kinds, words in (
        ("model data method architecture command time", (str,), "a text"),
        ("budget objective courses trials decisions log front history", (list,), "a list"),
        ("options limits recipe method_options settings settled storage versions machine budget_met trained_with "
         "baseline_trained_with baseline result constraints odd_widths", (dict,), "an object"),
        ("epochs tune_epochs seed judgement macs params", (int,), "a whole number"),
        ("divisor", (int, str), "a whole number or a text"),
        ("before after test validation", (dict, type(None)), "an object or null"),
        ("weights", (str, type(None)), "a text or null"),
        ("seconds", (dict, int, float), "an object or a whole number or a number"),
        ("input_shape", (list, type(None)), "a list or null"),
    )
    for name in names.split()
}  # fmt: skip
_FORMATS = tuple(f"convwright {name}" for name in ("run", "result", "training", "networks", "decisions"))
_NEEDED = {  # names without which a file of a format says nothing
    "convwright run": ("settings", "settled"),
    "convwright result": ("baseline", "result", "budget_met", "limits"),
}
NOTE = "convwright"  # key in the metadata of a safetensors file


def refuse_file(folder: Path) -> None:
    """Refuse a file where a folder is meant.

    Raises:
        RunError: It is one.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; give a folder with --out")


@contextmanager
def understood(folder: Path) -> Iterator[None]:
    """Turn what happens where a record holds something else than a run writes into one line.

    Raises:
        RunError: Names the folder.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise RunError(
            f"{folder}: damaged, its record cannot be understood ({type(error).__name__}: {error}); "
            "start anew in another folder"
        ) from error


@contextmanager
def owned(folder: Path, wait: float = 0) -> Iterator[None]:
    """Make a folder if it is not there, and keep every other process out of it.

    Args:
        folder: The folder.
        wait: Seconds to wait for a process that is in it.

    Raises:
        RunError: It is a file, cannot be made or written, or another process is in it.
    """
    refuse_file(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made ({error.strerror}); choose another folder with --out") from error
    with ExitStack() as stack:
        try:
            stack.enter_context(filelock.FileLock(folder / LOCK, timeout=wait))
        except filelock.Timeout as error:
            raise RunError(
                f"{folder}: another process is working in this run directory; wait for it, "
                "or choose another folder with --out"
            ) from error
        except OSError as error:
            raise RunError(
                f"{folder}: cannot be written ({error.strerror}); choose another folder with --out"
            ) from error
        yield


def write(path: Path, writer: Callable[[Path], object]) -> None:
    """Have `writer` write a temporary file, then give it its name: the file is whole or not there.

    Raises:
        RunError: The disk is full or the folder cannot be written; a file of that name stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # by the umask; safetensors would make it readable by its owner alone
        mode = temporary.stat().st_mode
        writer(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = first_line(error)
        raise RunError(f"{path}: cannot be written ({reason}); free space or choose another folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON; NaN is refused, because other readers refuse it."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8."""
    write(path, lambda to: to.write_text(text, encoding="utf-8"))


def there(path: Path) -> bool:
    """Return whether a name is taken: by a file, a folder or a link, whether or not it can be read."""
    return os.path.lexists(path)


def read_json(path: Path, what: str, remedy: str = "start anew in another folder") -> dict[str, Any]:
    """Read a JSON object that was written here.

    Args:
        path: The file.
        what: What it should be: its ``format``.
        remedy: What to do where it is not.

    Raises:
        RunError: It is missing or damaged; names the file, what is wrong with it and the remedy.
    """
    try:
        content = parse(path.read_text(encoding="utf-8"))
        _check(content, what)
    except OSError as error:
        raise RunError(f"{path}: damaged, {what} cannot be read from it ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise RunError(f"{path}: damaged, it does not hold {what} ({error}); {remedy}") from error
    return dict(content)


def _check(content: Any, what: str) -> None:
    if not isinstance(content, dict) or content.get("format") != what:
        raise ValueError("its format is another one")
    check_version(content, 1)
    if lacking := [name for name in _NEEDED.get(what, ()) if name not in content]:
        raise ValueError(f"it has no {lacking[0]}")
    if what in _FORMATS:
        _check_kinds(content)
        _check_kinds(content.get("settings", {}))


def _check_kinds(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        kinds, words = _KINDS.get(name, ((), ""))
        if kinds and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise ValueError(f"its {name!r} must be {words}")


def digest(file: Path) -> str:
    """Return a digest of a file's content; "" if it cannot be read, which is reported when it is used."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def save_weights(model: nn.Module, path: Path, note: Mapping[str, Any] | None = None) -> None:
    """Write the state dict of `model` as safetensors, shared tensors once; `note` is JSON that goes with it."""
    metadata = {NOTE: json.dumps(note)} if note else None
    write(path, lambda to: save_model(model, str(to), metadata))


def weights_note(path: str | Path) -> dict[str, Any]:
    """Return what `save_weights` wrote beside the weights; {} for other files.

    Raises:
        RunError: It is damaged.
    """
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            note = json.loads((file.metadata() or {}).get(NOTE, "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{path}: damaged ({error}); write it again") from error
    if not isinstance(note, dict):
        raise RunError(f"{path}: its note {NOTE!r} is damaged; write it again")
    return note


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy weights that `save_weights` wrote into `model`; every tensor must be there, and no other.

    What a user brings is read by `convwright.architecture.weights` instead.

    Raises:
        RunError: The file is missing or damaged, or its tensors do not fit; names the first one.
    """
    file = Path(path)
    try:
        with openable(file):
            load_model(model, str(file))
    except (RuntimeError, ValueError, KeyError) as error:
        raise RunError(f"{file}: these weights do not fit the network ({_reason(error)})") from error


_NAMED = 3  # keys


def _reason(error: Exception) -> str:
    """Return what torch lists first, with the first of the keys."""
    lines = [line.strip().rstrip(". ") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    rows = [line.split('", "') for line in lines[1:3] or lines]  # of all keys, where the file is of another network
    more = [f'" and {len(names) - _NAMED} more' if len(names) > _NAMED else "" for names in rows]
    first, *others = ['", "'.join(names[:_NAMED]) + rest for names, rest in zip(rows, more, strict=True)]
    return "; ".join([first, *(line for line in others if line.startswith("Unexpected"))])

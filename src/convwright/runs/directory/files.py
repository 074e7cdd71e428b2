"""Files of a run directory: one process at a time, and no file is ever half there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn

from convwright.errors import RunError, brief, is_there

LOCK = ".lock"


def refuse_file(folder: Path) -> None:
    """Refuse a file where a folder is meant.

    Raises:
        RunError: It is one.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; give a folder with --out")


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Make a folder if it is not there, and keep every other process out of it.

    Raises:
        RunError: It is a file, cannot be made or written, or another process is in it.
    """
    refuse_file(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made ({error.strerror}); choose another folder with --out") from error
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise RunError(
            f"{folder}: another process is working in this run directory; wait for it, "
            "or choose another folder with --out"
        ) from error
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror}); choose another folder with --out") from error
    try:
        yield
    finally:
        lock.release()


def write(path: Path, writer: Callable[[Path], object]) -> None:
    """Have `writer` write a temporary file, then give it its name: the file is whole or not there.

    Raises:
        RunError: The disk is full or the folder cannot be written; a file of that name stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
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


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: It is missing or damaged; names the file and `what` it should be.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: damaged, it does not hold {what}; start anew in another folder") from error
    if not isinstance(content, dict) or content.get("format") != what:
        raise RunError(f"{path}: damaged, it does not hold {what}; start anew in another folder")
    return content


def digest(file: Path) -> str:
    """Return a digest of a file's content; "" if it cannot be read, which is reported when it is used."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict of `model` as safetensors; shared tensors once."""
    write(path, lambda to: save_model(model, str(to)))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy weights from a file into `model`; no code in the file can run.

    Args:
        model: Takes the weights.
        path: A .safetensors file, or a state dict saved by torch.

    Raises:
        RunError: The file is missing or damaged, or its tensors do not fit; names the first one.
    """
    file = Path(path)
    if not is_there(file):
        raise RunError(f"{file}: no such file; check the path of the weights")
    try:
        if file.suffix == ".safetensors":
            load_model(model, str(file))
        else:
            model.load_state_dict(_torch_state(file))
    except SafetensorError as error:
        raise RunError(f"{file}: damaged ({error}); write it again") from error
    except RuntimeError as error:
        raise RunError(f"{file}: these weights do not fit the network ({_reason(error)})") from error


def load_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name."""
    return load_file(path)


def _torch_state(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way
        raise RunError(f"{file}: cannot be read as a state dict without running code in it") from error
    if not isinstance(state, dict):
        raise RunError(f"{file}: holds a {type(state).__name__}, not a state dict; save model.state_dict()")
    odd = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd:
        raise RunError(f"{file}: its entry {brief(odd[0])} is no tensor with a name; save model.state_dict()")
    return state


def _reason(error: RuntimeError) -> str:
    """Return the first difference that torch lists, or its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 else lines[0]).rstrip(". ")

"""One checkpoint file per training: tensors, numbers and text only, replaced as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convwright.errors import RecipeError, RunError, first_line

FILE = "checkpoint.pt"
FORMAT = 1
_KINDS = {
    **dict.fromkeys(("recipe", "data", "settings"), str),
    **dict.fromkeys(("model", "optimizer", "effects", "random", "loader"), dict),
    **{"step": int, "history": list, "val": list},
}


def write_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write `content` under a temporary name and rename it: a reader sees the old or the new file.

    Raises:
        RunError: The folder cannot be written, or the disk is full; the old checkpoint stays.
    """
    target = folder / FILE
    temporary = folder / f".{FILE}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as the latter
        raise RunError(
            f"{target}: cannot be written ({first_line(error)}); free space or choose another folder, "
            "the previous checkpoint is unchanged"
        ) from error
    finally:
        with suppress(OSError):  # where the folder itself could not be made
            temporary.unlink(missing_ok=True)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the checkpoint in `folder`, or None if there is none. No code in it can run.

    Raises:
        RunError: The file is damaged, or of another version.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way: IndexError, KeyError, ...
        raise RunError(f"{path}: damaged; remove it to train from the beginning") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f"{path}: not a checkpoint of this version; remove it or train elsewhere")
    wrong = next((name for name, kind in _KINDS.items() if not isinstance(content.get(name), kind)), None)
    if wrong is not None:
        raise _damaged(path, wrong)
    return content


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in one line that a checkpoint is damaged, whatever its values make of the code that takes them.

    Raises:
        RunError: Names the file.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise _damaged(path, type(error).__name__) from error


def check_alike(found: Any, own: Any, path: Path, name: str) -> None:
    """Refuse a value of a checkpoint that is of another kind or shape than what is in its place here.

    Raises:
        RunError: Names the file and the value.
    """
    alike = type(found) is type(own) or {type(found), type(own)} == {int, float}
    if isinstance(own, Tensor) and alike:
        alike = found.shape == own.shape and found.dtype == own.dtype
    if isinstance(own, list | tuple) and alike:
        alike = len(found) == len(own)
    if not alike or (isinstance(own, dict) and not own.keys() <= found.keys()):
        raise _damaged(path, name)
    for key in own if isinstance(own, dict) else range(len(own)) if isinstance(own, list | tuple) else ():
        check_alike(found[key], own[key], path, f"{name}.{key}")


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"{path}: damaged ({what}); remove it to train from the beginning")


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name, also the buffers that state_dict leaves out."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def load_model_state(model: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Copy `state` into `model` in place.

    Raises:
        RecipeError: Another network: names the first tensor that differs. Nothing is changed then.
    """
    own = model_state(model)  # the same memory
    for name in [*own, *state]:
        here, there = own.get(name), state.get(name)
        if here is None or there is None or here.shape != there.shape or here.dtype != there.dtype:
            raise RecipeError(
                f"{source}: the checkpoint is of another network ({name}: {_brief(there)} there, "
                f"{_brief(here)} here); give the same network, or train without resume"
            )
    for name, tensor in own.items():
        tensor.copy_(state[name])


def _brief(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the CPU's generator and of the device's."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Put the generators into the states that `random_state` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type in states and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type])

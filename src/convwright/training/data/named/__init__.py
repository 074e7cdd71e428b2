"""Data sets by name: one file each, found by itself.

A new one is a file here with a function under ``@data_set("name")`` that returns its parts.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convwright.errors import DataError, did_you_mean, is_there
from convwright.training.data.sources import Parts, Shape


@dataclass(frozen=True)
class Request:
    """What is asked of a data set.

    Attributes:
        data_dir: Where the user keeps files; None: not said.
        shape: (c, h, w) to convert images to; None: as they are.
        limit: Bytes of decoded images up to which a part is held in memory.
    """

    data_dir: Path | None
    shape: Shape | None
    limit: int


Reader = Callable[[Request], Parts]


@dataclass(frozen=True)
class DataSet:
    """One data set in the registry.

    Attributes:
        name: As for `load_data` and on the command line.
        about: One line.
        read: Reads its parts.
    """

    name: str
    about: str
    read: Reader


DATA_SETS: dict[str, DataSet] = {}


def data_set(name: str) -> Callable[[Reader], Reader]:
    """Return a decorator that files a function as a data set; its docstring's first line says what it is."""

    def file(read: Reader) -> Reader:
        DATA_SETS[name] = DataSet(name, (read.__doc__ or "").strip().partition("\n")[0], read)
        return read

    return file


def data_set_named(name: str) -> DataSet:
    """Return a data set.

    Raises:
        DataError: There is none of that name; the nearest ones are listed.
    """
    if name not in DATA_SETS:
        hint = did_you_mean(name, DATA_SETS)
        if not hint and (Path(name).suffix == ".npz" or is_there(name, Path.is_dir)):
            hint = f" Did you mean {'npz' if Path(name).suffix == '.npz' else 'folder'}:{name}?"
        raise DataError(
            f"unknown data {name!r}.{hint} Give one of {', '.join(sorted(DATA_SETS))}, npz:PATH or folder:PATH"
        )
    return DATA_SETS[name]


# Importing a file registers its data sets: a new one is one new file and nothing here changes.
for _module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
    importlib.import_module(f"{__name__}.{_module.name}")

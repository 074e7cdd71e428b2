"""The list of named networks: register one, look one up, build one.

A family file decorates its builders with :func:`register`; the package imports every family file,
so a new network is one new file plus one decorator and nothing here changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from convwright.errors import ReadError, did_you_mean

_Builder = TypeVar("_Builder", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class ZooEntry:
    """One named network.

    Attributes:
        name: the name given to :func:`create`.
        build: the function that builds it; takes at least ``num_classes`` and ``in_channels``.
        input_shape: (channels, height, width) of one image the network was designed for.
        num_classes: outputs when ``build`` is called without arguments.
        source: where the network was published or worked out.
    """

    name: str
    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]
    num_classes: int
    source: str


_ENTRIES: dict[str, ZooEntry] = {}


def register(
    name: str, *, input_shape: tuple[int, int, int], num_classes: int, source: str
) -> Callable[[_Builder], _Builder]:
    """Return a decorator that files a builder under ``name`` and leaves the builder as it is."""

    def file(build: _Builder) -> _Builder:
        key = _key(name)
        if key in _ENTRIES:
            raise ValueError(f"zoo name {name!r} is taken by {_ENTRIES[key].build.__qualname__}")
        _ENTRIES[key] = ZooEntry(name, build, input_shape, num_classes, source)
        return build

    return file


def names() -> tuple[str, ...]:
    """Return all registered names, sorted."""
    return tuple(sorted(entry.name for entry in _ENTRIES.values()))


def entry(name: str) -> ZooEntry:
    """Return what is known about one network; ``-`` and ``_`` in names are the same.

    Raises:
        ReadError: no network has that name.
    """
    try:
        return _ENTRIES[_key(name)]
    except KeyError:
        raise ReadError(
            f"No zoo network is named {name!r}.{did_you_mean(name, names())} Known networks: {', '.join(names())}."
        ) from None


def create(name: str, **kwargs: Any) -> nn.Module:
    """Build a network by name with fresh weights.

    Args:
        name: one of :func:`names`.
        **kwargs: options of the network's builder; all know ``num_classes`` and ``in_channels``.

    Raises:
        ReadError: unknown name, or an option that this network does not have.
    """
    build = entry(name).build
    options = inspect.signature(build).parameters
    for option in kwargs:
        if option not in options:
            raise ReadError(
                f"Zoo network {name!r} has no option {option!r}.{did_you_mean(option, options)}"
                f" Its options: {', '.join(options)}."
            )
    return build(**kwargs)


def _key(name: str) -> str:
    return name.lower().replace("_", "-")

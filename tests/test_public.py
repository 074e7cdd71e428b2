"""The public names exist, lazily, and are all documented."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import convwright
from convwright.renamed import MODULES


@pytest.mark.parametrize("name", convwright.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(convwright, name)
    assert name == "__version__" or value.__doc__


def test_unknown_names_are_refused_as_usual() -> None:
    with pytest.raises(AttributeError, match="no attribute 'raed'"):
        convwright.raed  # noqa: B018


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, convwright.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("old", MODULES)
def test_modules_are_found_by_their_old_names(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    new = importlib.import_module(MODULES[old])
    with pytest.warns(DeprecationWarning, match=f"{old} is {MODULES[old]} now"):
        found = importlib.import_module(old)
    public = {name: value for name, value in vars(new).items() if not name.startswith("_")}
    assert public
    assert {name: getattr(found, name) for name in public} == public


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("convwright.training.techniques", "Setting", "TechniqueContext"),
        ("convwright.report.content", "Report", "Content"),
        ("convwright.methods.enlarging", "Member", "FamilyNetwork"),
    ],
)
def test_classes_are_found_by_their_old_names(module: str, old: str, new: str) -> None:
    home = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=f"{new} now"):
        assert getattr(home, old) is getattr(home, new)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        getattr(home, "Nothing")  # noqa: B009 - the name is wrong on purpose

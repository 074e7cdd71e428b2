"""The public names exist, lazily, and are all documented."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import convwright


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


def test_names_that_were_documented_before_are_still_there() -> None:
    from convwright.diagnose.doctor import diagnose
    from convwright.training import techniques

    assert importlib.import_module("convwright.runs.doctor").diagnose is diagnose
    assert techniques.Setting is techniques.TechniqueContext

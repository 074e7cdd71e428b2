"""Wrong texts and files of every kind: a few of those that `tools/fuzz_inputs.py` makes."""

import pytest
from fuzz_inputs import KINDS, fuzz, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_world(folder)
    return folder


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.breadth if k in ("run", "model") else ()) for k in KINDS]
)
def test_whatever_comes_in_an_error_is_one_line(world, kind, monkeypatch):
    monkeypatch.chdir(world)
    assert fuzz(10**9, 1, [kind], most=8) == []

"""A sample of the support matrix: what ``docs/support.json`` promises still holds, on smaller inputs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import support  # noqa: E402
import support_edits  # noqa: E402
import support_networks  # noqa: E402

SIDE = 64
SAMPLE = {  # every kind of edit; small networks of families that are built in different ways
    "timm:lcnet_035": ("grow", "kernel_down", "resolution"),
    "timm:resnet10t": ("shrink", "remove_block", "add_block", "kernel_up", "composed"),
    "timm:tinynet_e": ("shrink", "replace"),
}
MORE = {  # with the slow ones: the same edits on further families
    "timm:convnext_atto": ("shrink", "add_block"),
    "timm:cs3darknet_focus_s": ("grow", "kernel_up"),
    "timm:dla46_c": ("shrink", "kernel_down"),
    "timm:ese_vovnet19b_slim_dw": ("grow", "replace"),
    "timm:ghostnet_050": ("shrink", "remove_block"),
    "timm:mobilenetv4_conv_small_035": ("shrink", "add_block"),
    "timm:poolformer_s12": ("grow", "remove_block"),
    "timm:repghostnet_050": ("shrink", "kernel_up"),
    "timm:resnetv2_18": ("shrink", "add_block"),
    "timm:starnet_s050": ("grow", "kernel_down"),
    "torchvision:mnasnet0_5": ("grow", "resolution"),
    "torchvision:mobilenet_v2": ("shrink", "replace"),
    "torchvision:mobilenet_v3_small": ("shrink", "grow"),
    "torchvision:regnet_y_400mf": ("shrink", "kernel_down"),
    "torchvision:resnet18": ("remove_block", "add_block", "composed"),
    "torchvision:shufflenet_v2_x0_5": ("shrink", "kernel_up"),
    "torchvision:squeezenet1_1": ("grow", "remove_block"),
}


def committed() -> dict[str, support.Row]:
    rows = support.load(support.MATRIX)
    if not rows:
        pytest.skip("the matrix is not measured in this checkout")
    return rows


BEYOND = {  # what is no classifier: one of each way in which these are built
    "segmentation:unet": ("shrink", "grow", "loss", "outputs"),
    "smp:Linknet/resnet18": ("shrink", "loss", "outputs"),
    "timm-features:mobilenetv3_small_100+free": ("shrink", "outputs"),
    "ultralytics:yolov8n": ("shrink", "grow", "loss", "outputs"),
}
PACKAGES = {"smp": "segmentation_models_pytorch", "ultralytics": "ultralytics"}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_nothing_gets_worse(name: str) -> None:
    check(name, (SAMPLE | MORE)[name])


@pytest.mark.breadth
@pytest.mark.parametrize("name", BEYOND)
def test_nothing_gets_worse_beyond_classifiers(name: str) -> None:
    family = support_networks.family_of(name)
    pytest.importorskip(PACKAGES.get(family, "torch"))
    check(name, BEYOND[name])


def check(name: str, kinds: tuple[str, ...]) -> None:
    rows = committed()
    if name not in rows:
        pytest.skip("the matrix has no row for it yet")
    before = rows[name]["edits"]
    subject, facts = support_edits.read(name, SIDE)
    assert facts["free"] > 0
    for kind, cell in support_edits.measure(subject, kinds):
        assert support.RANKS[cell["status"]] >= support.RANKS[before[kind]["status"]], (kind, cell)


def test_every_row_has_every_edit_and_every_reason() -> None:
    rows = committed()
    assert not rows.keys() - set(support_networks.networks())
    for name, row in rows.items():
        needed = support.KINDS if not support_networks.family_of(name) else ("shrink", "grow", *support.BEYOND)
        assert tuple(kind for kind in support.kinds_of(name) if kind in row["edits"]) == tuple(row["edits"]), name
        assert not set(needed) - row["edits"].keys(), name
        for kind, cell in row["edits"].items():
            assert cell["status"] in ("exact", "done") or cell["reason"], (name, kind)


def test_the_matrix_names_no_folder_of_a_machine() -> None:
    text = json.dumps(committed())
    assert "site-packages" not in text
    assert not re.search(r"/[a-z]+/", text), "a path with folders; sources are named by file and line alone"


def test_worse_cells_are_not_written() -> None:
    good = {"status": "exact", "max_difference": 0.0}
    bad = {"status": "fail", "reason": "a reason"}
    old = {"network": "timm:one", "edits": {"shrink": good, "grow": bad}}
    new = {"network": "timm:one", "edits": {"shrink": bad, "grow": good}}
    row, worse = support.merged(old, new, old, accept=False)
    assert row["edits"] == {"shrink": good, "grow": good}
    assert len(worse) == 1
    assert "shrink" in worse[0]
    assert support.merged(old, new, old, accept=True) == ({**new}, [])


def test_kinds_are_those_of_the_tool() -> None:
    assert tuple(support_edits.KINDS) == support.KINDS + support.BEYOND


def test_an_unpredicted_difference_is_a_failure() -> None:
    class Change:
        exact, max_difference, notes = False, 1e-3, ()
        edit = type("Edit", (), {"kind": "kernel"})

    class Changed:
        changes = (Change,)

    cell = support_edits.verdict(None, Changed)  # type: ignore[arg-type]
    assert cell["status"] == "fail"
    Change.notes = ("its weight is computed",)
    assert support_edits.verdict(None, Changed)["status"] == "inexact"  # type: ignore[arg-type]

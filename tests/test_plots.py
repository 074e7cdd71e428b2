"""Pictures: what is drawn is what was given, to scale, and can be read from the file again."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convwright.plots import Point, Series, boundary, heat, lines, plotted, scatter

SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def group(text: str, name: str) -> ElementTree.Element:
    """Return the part of a picture that has a name."""
    (found,) = (part for part in ElementTree.fromstring(text).iter(f"{SVG}g") if part.get("id") == name)
    return found


def marks(text: str, name: str) -> list[tuple[float, float]]:
    """Return where the points of a part are, from the left and from above."""
    return [(float(use.attrib["x"]), float(use.attrib["y"])) for use in group(text, name).iter(f"{SVG}use")]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(-30, 30), st.floats(0, 5)), min_size=1, max_size=13))
def test_points_are_true_to_scale(values: list[tuple[float, float, float]]) -> None:
    points = [Point(f"<{i}&$", *each) for i, each in enumerate(values)]
    text = scatter(points, 'a "title" & more', "x", "y")
    root = ElementTree.fromstring(text)
    dots = marks(text, "points")
    assert len(dots) == len(points)
    width, height = (float(root.attrib[side].removesuffix("pt")) for side in ("width", "height"))
    assert all(0 <= x <= width and 0 <= y <= height for x, y in dots)
    for (x1, y1), p in zip(dots, points, strict=True):
        for (x2, y2), q in zip(dots, points, strict=True):
            assert (x1 - x2) * (p.x - q.x) >= -0.2 * abs(p.x - q.x)
            assert (y1 - y2) * (p.y - q.y) <= 0.2 * abs(p.y - q.y)
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert all(any(f"<{i}&$: " in text for text in texts) for i in range(len(points)))


def test_lines_have_all_their_points() -> None:
    text = lines([Series("a<b", ((1, 2.0), (2, 5.0))), Series("c", ((1, 3.0),), joined=False)], "t & u", "x", "y")
    assert ElementTree.fromstring(text).findtext(f"{SVG}title") == "t & u"
    assert [len(marks(text, name)) for name in ("series0", "series1")] == [2, 1]
    assert [len(group(text, name).findall(f"{SVG}path")) for name in ("series0", "series1")] == [1, 0]
    assert "a&lt;b" in text


def test_shades_are_darkest_at_the_highest_and_missing_where_there_is_no_value() -> None:
    text = heat([("one", [0.0, 2.0, None]), ("two", [1.0, None, None])], "t", "x")
    assert len(marks(text, "missing")) == 3
    image = next(ElementTree.fromstring(text).iter(f"{SVG}image")).attrib
    content = io.BytesIO(base64.b64decode(image[LINK].partition(",")[2]))
    pixels = np.asarray(Image.open(content).convert("RGBA"), dtype=int)
    if "scale(1 -1)" in image["transform"]:  # it lies upside down in the file
        pixels = pixels[::-1]
    down, right = pixels.shape[0] // 4, pixels.shape[1] // 6
    cells = pixels[down :: 2 * down, right :: 2 * right][:2, :3]
    assert (cells[..., 3] > 0).tolist() == [[True, True, False], [True, False, False]]
    light = cells[..., :3].sum(axis=-1)
    assert light[0, 1] < light[1, 0] < light[0, 0]
    assert heat([("none", [None, 0.0])], "t", "x")


@pytest.mark.parametrize(("cells", "edges"), [({(0, 0)}, 4), ({(0, 0), (0, 1)}, 6), ({(0, 0), (1, 1)}, 8), (set(), 0)])
def test_lines_run_between_a_group_and_the_rest(cells: set[tuple[int, int]], edges: int) -> None:
    text = boundary((1, 2), (3, 4), {(0, 0): 1.0, (1, 0): 0.0}, [("some", cells)], "t & u")
    assert ElementTree.fromstring(text).findtext(f"{SVG}title") == "t & u"
    assert (len(list(group(text, "around some").iter(f"{SVG}path"))) if edges else 0) == edges


def test_what_is_plotted_can_be_read_again_and_drawing_again_gives_the_same_file() -> None:
    series = [Series("a <&> $b$", ((1, 0.1234567891), (2, 1e9)))]
    text = lines(series, 'a "t" & u', "x", "y")
    assert plotted(text) == {
        "title": 'a "t" & u',
        "words": ["x", "y"],
        "series": [{"name": "a <&> $b$", "points": [[1, 0.123457], [2, 1e9]], "joined": True}],
    }
    assert lines(series, 'a "t" & u', "x", "y") == text
    assert text.startswith("<svg")
    assert "<dc:date>" not in text


def test_drawing_keeps_to_itself() -> None:
    code = """
import json, sys
from convwright.plots import Point, scatter
early = sorted({name.partition(".")[0] for name in sys.modules} & {"matplotlib", "torch", "plotly"})
import matplotlib
matplotlib.rcParams["font.size"] = 31
scatter([Point("a", 1, 2, 3)], "t", "x", "y")
print(json.dumps([early, matplotlib.rcParams["font.size"], "matplotlib.pyplot" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], 31, False]

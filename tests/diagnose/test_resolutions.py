"""The same network at other resolutions, and how a range of them is written."""

import pytest
from torch import nn

import convwright as cw
from convwright.diagnose.analyze import parse_sides, sweep
from convwright.errors import ReadError


def net():
    layers = [nn.Conv2d(3, 5, 7, padding=3), nn.MaxPool2d(4), nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 7, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("32:224:64", (32, 96, 160, 224)),
        ("32:223:64", (32, 96, 160)),
        ("64,32, 128,32", (32, 64, 128)),
        ("17", (17,)),
        ("5:5:3", (5,)),
        (None, ()),
    ],
)
def test_what_is_written_is_read(text, sides):
    assert parse_sides(text) == sides


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("32:224", "three parts"),
        ("32:224:32:1", "three parts"),
        ("32:64:8,128", "three parts"),
        ("224:32:32", "behind its stop"),
        ("32:224:0", "'0' is no whole number"),
        ("-32,64", "'-32' is no whole number"),
        ("32,,64", "'' is no whole number"),
        ("32.5", "'32.5' is no whole number"),
        ("", "'' is no whole number"),
        ("3x32x32", "'3x32x32' is no whole number"),
        ("20000", "from 1 to 16384"),
        ("32:1024:1", "at most 64"),
    ],
)
def test_bad_ranges_name_the_flag_and_give_an_example(text, said):
    with pytest.raises(ReadError) as caught:
        parse_sides(text)
    assert str(caught.value).startswith(f"--input-range {text!r}: ")
    assert said in str(caught.value)
    assert "32:224:32" in str(caught.value)


def test_a_sweep_agrees_with_reading_at_each_resolution():
    """The last kernel reads 10 positions (7 of the stem, 3 more by the pool): new from 11 on."""
    arch = cw.read(net(), (3, 13, 13))
    for at in sweep(arch, (8, 10, 11, 13)):
        there = cw.read(net(), (3, at.side, at.side))
        assert at.macs == there.profile().macs
        assert at.wasted == cw.receptive_field(there).wasted
        assert [each.name for each in at.wasted if each.kind == "conv"] == (["2"] if at.side <= 10 else [])
        assert at.wasted_share == sum(each.macs for each in at.wasted) / at.macs
    assert cw.receptive_field(arch).layer("2").useful_from == (11, 11)


def test_a_resolution_that_is_too_small_is_said():
    small, fits = sweep(cw.read(net(), (3, 13, 13)), (3, 13))
    assert small.field is None
    assert (small.macs, small.wasted, small.wasted_share) == (0, (), 0.0)
    assert "too small" in small.refused
    assert "--input" not in small.refused
    assert fits.refused == ""

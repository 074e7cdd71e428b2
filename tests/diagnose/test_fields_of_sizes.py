"""From which resolution on a kernel sees something new."""

import pytest
from torch import nn

import convwright as cw


@pytest.mark.parametrize(("side", "wasted"), [(8, ["2"]), (10, ["2"]), (11, []), (13, [])])
def test_useful_from_is_where_reading_says_so(side, wasted):
    """The last kernel reads 10 positions (7 of the stem, 3 more by the pool): new from 11 on."""
    layers = [nn.Conv2d(3, 5, 7, padding=3), nn.MaxPool2d(4), nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 7, 1)]
    field = cw.receptive_field(cw.read(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, side, side)))
    assert [each.name for each in field.wasted if each.kind == "conv"] == wasted
    assert field.layer("2").useful_from == (11, 11)

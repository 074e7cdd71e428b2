"""A network and its data are opened so that they fit."""

import pytest
from PIL import Image
from torch import nn

from convwright.errors import DataError
from convwright.runs.load import load_model_and_data


def photographs(root, sizes):
    for kind in ("cat", "dog"):
        (root / kind).mkdir(parents=True)
        for i, size in enumerate(sizes):
            Image.new("RGB", size, (9 * i, 0, 0)).save(root / kind / f"{i}.png")
    return f"folder:{root}"


def test_photographs_of_several_sizes_are_given_the_networks_usual_one(tmp_path):
    data = photographs(tmp_path / "photos", [(640, 480), (48, 64)])
    for model, shape in (("zoo:resnet20", "3x32x32"), ("timm:resnet18", "3x224x224")):
        with pytest.raises(DataError, match=rf"1\.png: 48x64 .* the network's usual one is --input {shape}$"):
            load_model_and_data(model, data)
    with pytest.raises(DataError, match=r"one size for all, for example --input 3x224x224$"):
        load_model_and_data(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), data)


def test_colour_is_not_made_grey_for_a_grey_network(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    data = photographs(tmp_path / "photos", [(8, 8)] * 4)
    with pytest.raises(
        DataError, match=r"have 3 channels and .* takes 1; only grey .* \(of a folder with --input 1xHxW"
    ):
        load_model_and_data(model, data)
    assert load_model_and_data(model, data, input_shape="1x8x8").data.shape == (1, 8, 8)

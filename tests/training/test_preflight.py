"""What cannot be trained is told by its reason, before anything is written."""

import threading

import pytest
import torch
from torch import nn

from convwright.edits.surgery import check_copies
from convwright.errors import DataError, EditError, ReadError
from convwright.runs.load import load_model_and_data
from convwright.training import train


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type_are_the_reason(kind, small_data, small_recipe, make_network):
    said = rf"weights are {str(kind)[6:]}, and images come as float32: give model.float\(\)"
    with pytest.raises(DataError, match=said):
        train(make_network().to(kind), small_data, small_recipe, progress=False)
    with pytest.raises(DataError, match=said):
        load_model_and_data(make_network().to(kind), small_data)


def test_a_network_that_takes_the_images_is_fine_whatever_its_type(small_data, make_network):
    class Double(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make_network().double()

        def forward(self, x):
            return self.inner(x.double()).float()

    load_model_and_data(Double(), small_data)


def test_weights_without_values_are_refused(small_data, small_recipe, make_network):
    for call in (lambda m: train(m, small_data, small_recipe), lambda m: load_model_and_data(m, small_data)):
        with pytest.raises(DataError, match="is on the meta device and has no values"):
            call(make_network().to("meta"))


def test_modules_too_deep_to_follow_are_refused(small_data):
    deep = nn.Flatten()
    for _ in range(1200):
        deep = nn.Sequential(deep)
    with pytest.raises(ReadError, match="nests modules more than 100 deep"):
        load_model_and_data(deep, small_data)


def test_what_cannot_be_copied_is_named(make_network):
    model = make_network()
    check_copies(model)
    model[0].lock = threading.Lock()
    with pytest.raises(EditError, match=r"0.lock of \w+ cannot be copied: .*lock.* Make it in forward instead"):
        check_copies(model)


def test_sparse_weights_are_refused(small_data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    model.mask = nn.Parameter(torch.eye(2).to_sparse())
    with pytest.raises(DataError, match=r"mask of Sequential is a sparse tensor.*to_dense"):
        load_model_and_data(model, small_data)

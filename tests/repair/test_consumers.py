"""What enters a layer, times its weight, is what it answers; and which layers count."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import convwright as cw
from convwright.repair.consumers import consumers, watched

LAYERS = {
    "plain": (nn.Conv2d(4, 6, 3), (7, 8)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), (7, 8)),
    "dilated": (nn.Conv2d(4, 6, 3, padding="same", dilation=2, bias=False), (7, 8)),
    "even": (nn.Conv2d(4, 6, 4, padding="same"), (7, 8)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (7, 8)),
    "wrapped": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (7, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, stride=2), (7, 8)),
    "lines": (nn.Conv1d(4, 6, 3, padding=2), (9,)),
    "volumes": (nn.Conv3d(4, 6, 2, stride=2), (4, 5, 6)),
}


def answer(layer, call, at):
    groups = call.groups
    x = call.entering(at).flatten(2)
    weight = layer.weight.detach().flatten(1).unflatten(0, (groups, -1))
    found = torch.einsum("rgu,gou->rgo", x, weight).flatten(1)
    return found if layer.bias is None else found + layer.bias.detach()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
def test_what_enters_times_the_weight_is_the_response(name):
    layer, size = LAYERS[name]
    with torch.no_grad():
        (call,) = watched(layer, {"weight": 1}, torch.randn(3, 4, *size), None)["weight"]
    for count in (2, 10**6):
        at = call.drawn(count, 5)
        assert all(len(set(row)) == len(row) for row in at.tolist())
        torch.testing.assert_close(answer(layer, call, at), call.responses(at))


@pytest.mark.parametrize("shape", [(3, 4), (3, 5, 4), (3, 2, 5, 4)])
def test_linear_layers_on_any_number_of_axes(shape):
    layer = nn.Linear(4, 6)
    with torch.no_grad():
        (call,) = watched(layer, {"weight": 1}, torch.randn(shape), lambda model, x: (model(x), 1 / 0))["weight"]
    at = call.drawn(10**6, 0)
    assert at.shape == (3, torch.Size(shape[1:-1]).numel())
    torch.testing.assert_close(answer(layer, call, at), call.responses(at))


class Kinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.depth = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6)
        self.up, self.tied = nn.ConvTranspose2d(6, 6, 2), nn.Conv2d(6, 6, 1)
        self.code, self.fc = nn.Parameter(torch.randn(5, 6, 1, 1)), nn.Linear(5, 2)

    def forward(self, x):
        x = self.tied(self.up(self.depth(self.a(x)))) * self.tied.weight.mean()
        w = self.code - self.code.mean((1, 2, 3), keepdim=True)  # standardised
        return self.fc(F.conv2d(x, w).mean((2, 3)))


def test_depthwise_transposed_computed_and_tied_weights_do_not_count():
    arch = cw.read(Kinds(), (3, 6, 6))
    assert [site.layer for site in consumers(arch, arch)] == ["a", "fc"]

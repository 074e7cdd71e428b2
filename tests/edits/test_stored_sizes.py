"""Sizes that torch's own recurrent and attention layers store follow a width: the model runs, saves and trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from edit_checks import check_flags, check_reading, check_training
from torch import Tensor, nn

from convwright.architecture import Architecture, read
from convwright.edits import Width, scale_widths


class Sequence(nn.Module):
    """Columns of a map are steps."""

    def __init__(self, kind: Any, out: int, **options: Any) -> None:
        super().__init__()
        self.stem, self.steps = nn.Conv2d(3, 10, 3, 2, 1), kind(10, 6, **options)
        self.fc = nn.Linear(out, 5)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.stem(x).mean(2).permute(2, 0, 1)
        if isinstance(self.steps, nn.RNNBase):
            return self.fc(self.steps(steps)[0][-1])
        state = None
        for step in steps:
            state = self.steps(step, state)
        return self.fc(state[0] if isinstance(state, tuple) else state)


class Attending(nn.Module):
    """Positions look at each other, or at those of another map."""

    def __init__(self, need_weights: bool = False, **sizes: int) -> None:
        super().__init__()
        self.need_weights, self.crossed = need_weights, bool(sizes)
        self.stem, self.k, self.v = nn.Conv2d(3, 14, 2, 2), nn.Conv2d(3, 6, 2, 2), nn.Conv2d(3, 10, 2, 2)
        self.attention = nn.MultiheadAttention(14, 2, batch_first=True, **sizes)
        self.fc = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens, k, v = (layer(x).flatten(2).mT for layer in (self.stem, self.k, self.v))
        k, v = (k, v) if self.crossed else (tokens, tokens)
        return self.fc((tokens + self.attention(tokens, k, v, need_weights=self.need_weights)[0]).mean(1))


def lives(arch: Architecture, new: Architecture) -> nn.Module:
    """Copy, save and load a changed network, and take a training step."""
    again = read(new.model, new.example_input)  # of fused operators torch itself counts nothing
    check_reading(new, again)
    assert (new.changes[-1].macs[1], new.changes[-1].params[1]) == (again.profile().macs, again.profile().params)
    check_flags(arch.model, new.model)
    check_training(new)
    model, x = copy.deepcopy(new.model), new.example_input
    model.load_state_dict(new.model.state_dict())
    assert torch.equal(model.eval()(x), new.model.eval()(x))
    optimizer = torch.optim.SGD(model.train().parameters(), 0.1)
    model(x).sum().backward()
    optimizer.step()
    return model


@pytest.mark.parametrize(
    ("kind", "options", "shown"),
    [
        (nn.LSTM, {}, "LSTM(5, 3)"),
        (nn.LSTM, {"num_layers": 2, "bidirectional": True}, "LSTM(5, 3, num_layers=2, bidirectional=True)"),
        (nn.GRU, {"bias": False}, "GRU(5, 3, bias=False)"),
        (nn.RNN, {"nonlinearity": "relu"}, "RNN(5, 3)"),
        (nn.LSTMCell, {}, "LSTMCell(5, 3)"),
        (nn.GRUCell, {"bias": False}, "GRUCell(5, 3, bias=False)"),
        (nn.RNNCell, {}, "RNNCell(5, 3)"),
    ],
)
def test_sizes_of_recurrent_layers_follow(kind: Any, options: dict[str, Any], shown: str) -> None:
    arch = read(Sequence(kind, 12 if "bidirectional" in options else 6, **options), torch.randn(2, 3, 8, 8))
    new = arch.apply(*scale_widths(arch, 0.5))
    assert all(change.exact for change in new.changes)
    model: Any = lives(arch, new)
    assert repr(model.steps) == shown
    assert (model.steps.input_size, model.steps.hidden_size) == (5, 3)
    assert all(change.exact for change in arch.apply(*scale_widths(arch, 1.5)).changes)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 10}])
def test_sizes_of_attention_follow(need_weights: bool, sizes: dict[str, int]) -> None:
    arch = read(Attending(need_weights, **sizes), torch.randn(2, 3, 8, 8))
    assert arch.group("stem").step == 2
    assert len(arch.group("stem").tied) == 2  # queries with keys, and values
    new = arch.apply(*scale_widths(arch, 4 / 7))
    assert all(change.exact for change in new.changes)
    found: Any = lives(arch, new)
    layer = found.attention
    assert (layer.embed_dim, layer.head_dim, layer.num_heads) == (8, 4, 2)
    assert (layer.kdim, layer.vdim) == ((3, 6) if sizes else (8, 8))
    assert repr(layer.out_proj) == "NonDynamicallyQuantizableLinear(in_features=8, out_features=8, bias=True)"
    for width in (6, 18, 28):
        (change,) = arch.apply(Width("stem", width)).changes
        assert change.exact

"""A name that a network gives to a module, a parameter or a class is never more than a name in the program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convwright.errors import ConvwrightError
from convwright.export import python_source
from convwright.export.source.text import is_free, is_index, is_name, literal, said

IMAGES = torch.zeros(1, 3, 8, 8)
CALL = "open('pwned', 'w')"
ATTACKS = (
    'x"]); {call}; (["',
    'x") or {call} or ("',
    'x"""\n{call}\n"""',
    '`"""+str({call})+"""',
    "x')\n{call}#",
    'x\\"); {call} #',
    "x\r\n{call}\r",
)
NAMES = ("\\", '"', "'", '"""', "a\nb", "\u2028", "\u202e", "\U0001d431", "²", "٣", "007", "1000000000", "1", "class",
         "__x", "a b", "{x}", "%s", "x@1", "torch", "nn", "F", "int", "self", "append", "weights",
         "values")  # fmt: skip


class Dict(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Conv2d(3, 4, 1), "other": nn.Conv2d(4, 4, 1)})
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.layers["other"](self.layers[self.name](x))


class Scaled(nn.Module):
    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.rand(width, 1, 1)))
        self.register_buffer(f"{name}_", torch.rand(width, 1, 1))
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return x * getattr(self, self.name) + getattr(self, f"{self.name}_")


class Tensors(nn.Module):
    """Parameters and buffers, whose names become arguments of a shared class."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.a, self.b = Scaled(name, 1), Scaled(name, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Tied(nn.Module):
    """A module, a holder that is never called, and a parameter that is another's."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.holder = nn.Module()
        self.holder.add_module(name, nn.Conv2d(3, 3, 1))
        self.add_module(name, nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
        self.scale = Scaled(name, 3)
        self.scale._parameters[name] = self.holder._modules[name].bias
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, self.name)(getattr(self.holder, self.name)(x))
        return x * getattr(self.scale, self.name)[:, None, None]


def named_class(name: str) -> nn.Module:
    return type(name, (Dict,), {})("plain")


@pytest.mark.parametrize("name", [*(attack.replace("{call}", CALL) for attack in ATTACKS), *NAMES])
def test_names_stay_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models = [named_class(name)]
    for kind in (Dict, Tensors, Tied):
        try:
            models.append(kind(name))
        except KeyError:  # torch itself refuses such a name there
            continue
    for model in models:
        made = python_source(model.eval(), IMAGES, title=name, notes=[name])
        assert made.difference <= 1e-6
        assert set(made.state) <= set(model.state_dict())
        made.source.text.encode()
        assert not list(tmp_path.iterdir())


def test_what_is_no_constant_is_refused() -> None:
    class Evil(float):
        def __repr__(self) -> str:
            return CALL

    assert literal(Evil(0.5)) == "0.5"
    assert literal(float("inf")) == 'float("inf")'
    with pytest.raises(ConvwrightError, match="object cannot be written as Python"):
        literal(object())


def test_literals_and_docstrings_mean_what_they_say() -> None:
    for text in [*ATTACKS, *NAMES, "\0", "\ud800"]:
        assert eval(literal(text)) == text
        assert eval(f'"""{said(text)}"""') == text


def test_which_names_may_stand_alone() -> None:
    assert [is_name(n) for n in ("conv", "_x", "__x__", "__x", "ﬁ", "class", "1")] == [True] * 3 + [False] * 4
    assert [is_free(n) for n in ("width", "torch", "int", "half", "self")] == [True] + [False] * 4
    assert [is_index(n) for n in ("0", "12", "012", "²", "٣", "1000000000", "")] == [True] * 2 + [False] * 5

"""The written program computes what the network computes, with the original's state dict, in training, too."""

from __future__ import annotations

import re
import shutil
import subprocess

import networks as coupled
import pytest
import random_networks as drawn
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.nn import functional as F

from convwright import zoo
from convwright.export import Program, python_source
from convwright.export.source.classes import Argument, Class
from convwright.export.source.drafts import ClassDraft
from convwright.export.source.text import WIDTH, flat

SHAPE = (3, 17, 13)


def program(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> Program:
    return python_source(model, torch.zeros(1, *shape))


class Unit(nn.Module):
    """A residual block with a second convolution that may be grouped or dilated."""

    def __init__(self, width: int, inner: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, stride, dilation, dilation, groups)
        self.bn2 = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        if stride > 1:
            self.short = nn.Sequential(nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        y += self.short(x) if hasattr(self, "short") else x
        return self.act(y)


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1)
        self.a = nn.Sequential(Unit(7, 11), Unit(7, 11), Unit(7, 11), Unit(7, 14, 2, 7))
        self.b = nn.Sequential(Unit(7, 13, dilation=2), Unit(7, 13, dilation=2))
        self.drop, self.fc = nn.Dropout(0.0), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(self.stem(x)))
        return self.fc(self.drop(x.mean((2, 3))))


class NormAct(nn.BatchNorm2d):
    """A norm that carries its activation."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Odd(nn.Module):
    """What networks do that is hard to write: constants, buffers, sizes of the batch, values changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = NormAct(5)
        self.register_buffer("shift", torch.tensor([0.5]), persistent=False)
        self.scale = nn.Parameter(torch.rand(5, 1, 1))
        self.loop = nn.ModuleList(nn.Conv2d(5, 5, 1) for _ in range(3))
        self.tied = nn.Linear(5, 5)
        self.again = nn.Linear(5, 5)
        self.again.weight = self.tied.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)) * self.scale + self.shift
        for layer in self.loop:
            x = layer(x)
        x = x.clone()
        x[:, :2] += torch.tensor([[[2.0]], [[3.0]]])
        a, b = x.chunk(2, 1)
        n, c, h, w = a.shape
        a = a.reshape(n * c, 1, h, w).amax((2, 3)).view(n, c)
        token = torch.zeros(1, 2).expand(n, -1)
        x = torch.cat([a, b.mean((2, 3)) + token], 1)
        return self.again(self.tied(x)) + torch.ones(n, 5)


@pytest.mark.parametrize("kind", [*coupled.EXACT, *coupled.STATISTIC], ids=lambda kind: kind.__name__)
def test_every_way_of_coupling(kind: type[nn.Module]) -> None:
    torch.manual_seed(3)
    model = kind().eval()
    shape = (3, 11, 11) if kind in (coupled.Flattened,) else (3, 16, 16)
    made = program(model, shape)
    assert made.difference <= 1e-6
    assert set(made.state) <= set(model.state_dict())


@pytest.mark.parametrize("model", [Stacked, Odd])
def test_hard_ones(model: type[nn.Module]) -> None:
    torch.manual_seed(5)
    made = program(model().eval())
    assert made.difference <= 1e-6
    assert "torch.ops" not in made.source.text


@given(net=drawn.networks(most=3))
@settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_drawn_networks(net: drawn.Net) -> None:
    made = python_source(net.randomised(), net.input(1))
    assert made.difference <= 1e-12


@pytest.mark.parametrize("name", ["resnet20", "mnist-b", "cifar-dw"])
def test_the_zoo_has_the_original_state_dict(name: str) -> None:
    model = zoo.create(name).eval()
    made = program(model, zoo.entry(name).input_shape)
    assert made.difference <= 1e-6
    unsaved = {name for name, _ in model.named_buffers()} - model.state_dict().keys()
    assert model.state_dict().keys() <= made.state.keys() <= model.state_dict().keys() | unsaved
    made.model.load_state_dict({**made.state, **model.state_dict()})


def test_a_training_step_is_the_same() -> None:
    torch.manual_seed(7)
    model = Stacked()
    model.eval()
    made = program(model).model
    images, labels = torch.randn(6, *SHAPE), torch.arange(6) % 5
    for network in (model, made):
        network.train()
        F.cross_entropy(network(images), labels).backward()
    ours, theirs = dict(made.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert parameter.grad is not None
        torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-5, atol=1e-7)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(dict(made.named_buffers())[name], buffer)


def test_a_norm_with_an_activation_learns_its_statistics() -> None:
    torch.manual_seed(11)
    model = Odd().eval()
    made = program(model).model
    images = torch.randn(4, *SHAPE)
    for network in (model, made):
        network.train()
        network(images)
    torch.testing.assert_close(made.norm.running_mean, model.norm.running_mean)
    assert int(made.norm.num_batches_tracked) == int(model.norm.num_batches_tracked) == 1


def test_tied_weights_stay_tied() -> None:
    model = Odd().eval()
    made = program(model).model
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in model.parameters())
    assert len({"tied.weight", "again.weight"} & {name for name, _ in made.named_parameters()}) == 1


def test_equal_blocks_share_a_class_and_consecutive_ones_a_line() -> None:
    text = program(Stacked().eval()).source.text
    assert len(re.findall(r"^class Unit", text, re.M)) == 2  # with a shortcut, and without
    assert re.search(r"\*\[Unit\(.*\) for _ in range\(3\)\]", text)
    assert "class UnitWithShort(nn.Module)" in text


def test_a_list_that_is_gone_through_is_a_loop() -> None:
    text = program(Odd().eval()).source.text
    assert "for layer in self.loop:\n            x = layer(x)" in text


def test_no_argument_of_a_class_stands_by_place_after_one_by_name() -> None:
    drafts = tuple(ClassDraft(path, "Unit", "nn.Module", (), (), (), ()) for path in ("a", "b"))
    arguments = (Argument("size", (7, 5), "option"), Argument("channels", (3, 4), "channels"))
    assert flat(Class("Unit", drafts, arguments).instance(1)) == "Unit(size=5, channels=4)"


def test_it_needs_torch_alone() -> None:
    text = program(Stacked().eval()).source.text
    imports = re.findall(r"^(?:from|import) (\w+)", text, re.M)
    assert set(imports) <= {"__future__", "pathlib", "torch", "collections"}


@pytest.mark.skipif(shutil.which("ruff") is None, reason="ruff is not installed")
@pytest.mark.parametrize("model", [Stacked, Odd])
def test_ruff_leaves_it_alone(model: type[nn.Module], tmp_path: object) -> None:
    text = program(model().eval()).source.text
    command = ["ruff", "format", "--isolated", "--diff", "--line-length", str(WIDTH), "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


def test_the_model_is_left_as_it_was() -> None:
    model = Stacked()
    model.train()
    model.a[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    program(model)
    assert model.training
    assert not model.a[1].training
    assert model.a[0].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

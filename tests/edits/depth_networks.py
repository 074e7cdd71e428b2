"""Networks with blocks as people write them; each says itself what it computes without one of them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Network(nn.Module):
    """A network that can leave one block out: the oracle of its removal."""

    left_out = ""

    def without(self, block: str) -> Network:
        copied = copy.deepcopy(self)
        copied.left_out = block
        if isinstance(copied, FunctionalTail):
            copied.get_submodule(block).left_out = True
        return copied


class TimmBlock(nn.Module):
    """A basic block in timm's style: in-place addition, activation behind it."""

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.drop_block, self.act1, self.aa = nn.Identity(), nn.ReLU(inplace=True), nn.Identity()
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.se, self.drop_path, self.act2 = None, None, nn.ReLU(inplace=True)
        self.downsample = nn.Conv2d(width, out, 1, stride) if (width, stride) != (out, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.act1(self.drop_block(self.bn1(self.conv1(x))))
        x = self.bn2(self.conv2(self.aa(x)))
        if self.se is not None:
            x = self.se(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        return self.act2(x)


class Timm(Network):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act = nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()
        self.layer1 = nn.Sequential(TimmBlock(5, 5), TimmBlock(5, 5))
        self.layer2 = nn.Sequential(TimmBlock(5, 7, 2), TimmBlock(7, 7))
        self.fc = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv1(x))
        for name, stage in (("layer1", self.layer1), ("layer2", self.layer2)):
            for i, block in enumerate(stage):
                x = x if f"{name}.{i}" == self.left_out else block(x)
        return self.fc(x.mean((2, 3)))


class FunctionalTail(Network):
    """The activation behind the addition is a function, and so is the pooling behind the stem."""

    class Block(nn.Module):
        def __init__(self, width: int, slope: float) -> None:
            super().__init__()
            self.a, self.b, self.slope = nn.Conv2d(width, 7, 3, padding=1), nn.Conv2d(7, width, 1), slope
            self.left_out = False

        def forward(self, x: Tensor) -> Tensor:
            y = x if self.left_out else self.b(F.relu(self.a(x))) + x
            return F.silu(y) if self.slope else F.relu(y)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5, 3)
        self.blocks = nn.ModuleList([self.Block(5, 0), self.Block(5, 0), self.Block(5, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


class OuterAddition(Network):
    """The additions stand in the network's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(5, 5, 1), nn.Hardswish(), nn.Conv2d(5, 5, 3, padding=1))
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x if self.left_out == "first" else x + self.first(x)
        x = F.relu(x)
        x = x if self.left_out == "second" else x + self.second(x)
        return self.fc(F.relu(x).mean((2, 3)))


class Unit(nn.Module):
    """conv, norm, activation."""

    def __init__(self, width: int, out: int, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Listed(Network):
    """A loop over a ``ModuleList`` of plain units."""

    act: type[nn.Module] = nn.ReLU

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.ModuleList([Unit(3, 5, self.act), Unit(5, 5, self.act), Unit(5, 5, self.act)])
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        for i, unit in enumerate(self.units):
            x = x if f"units.{i}" == self.left_out else unit(x)
        return self.fc(x.amax((2, 3)))


class ListedSilu(Listed):
    act = nn.SiLU


class Vgg(Network):
    """Flat runs of conv, norm, activation in one ``Sequential``, in another ``Sequential``."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(),
            nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(5, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU(),
            nn.Conv2d(7, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))

    def forward(self, x: Tensor) -> Tensor:
        first = int(self.left_out.rpartition(".")[2]) if self.left_out else -9
        for i, layer in enumerate(self.features):
            x = x if first <= i < first + 3 else layer(x)
        return self.classifier(x)


class Lines(Network):
    """One-dimensional: residual units with norms and a plain one."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn, self.b = nn.Conv1d(5, 7, 3, padding=1), nn.BatchNorm1d(7), nn.Conv1d(7, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(F.gelu(self.bn(self.a(x))))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv1d(3, 5, 3), nn.Sequential(self.Block(), self.Block())
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = x if f"blocks.{i}" == self.left_out else block(x)
        return self.fc(x.mean(2))


class Volumes(Network):
    """Three-dimensional, nested ``Sequential``."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv3d(3, 5, 3, padding=1), nn.BatchNorm3d(5), nn.ReLU(), nn.Conv3d(5, 3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).add_(x)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 3, 3, padding=1)
        self.body = nn.Sequential(nn.Sequential(self.Block()), nn.Sequential(self.Block(), nn.ReLU()))
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, stage in enumerate(self.body):
            for j, layer in enumerate(stage):
                x = x if f"body.{i}.{j}" == self.left_out else layer(x)
        return self.fc(x.mean((2, 3, 4)))


class Parametrised(Network):
    """Residual branches that end in weights computed from others."""

    class Block(nn.Module):
        def __init__(self, normed: bool) -> None:
            super().__init__()
            self.a = parametrizations.spectral_norm(nn.Conv2d(5, 7, 3, padding=1))
            last = nn.Conv2d(7, 5, 1)
            self.b = parametrizations.weight_norm(last) if normed else last

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(F.relu(self.a(x)))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 5, 1), nn.Sequential(self.Block(False), self.Block(True))
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = x if f"blocks.{i}" == self.left_out else block(x)
        return self.fc(x.mean((2, 3)))


class Generator(Network):
    """Transposed convolutions in residual and plain units."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.ConvTranspose2d(5, 7, 3, 1, 1), nn.ConvTranspose2d(7, 5, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.b(F.relu(self.a(x))))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 5, 1), nn.ConvTranspose2d(5, 5, 2, 2)
        self.blocks = nn.Sequential(self.Block(), self.Block())
        self.out = nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(self.stem(x)))
        for i, block in enumerate(self.blocks):
            x = x if f"blocks.{i}" == self.left_out else block(x)
        return self.out(x)


SHAPES = {Lines: (3, 17), Volumes: (3, 4, 5, 6)}
REMOVABLE = {  # blocks that can go, and whether a copy can be added with the function kept
    Timm: {"layer1.0": True, "layer1.1": True, "layer2.1": True},
    FunctionalTail: {"blocks.0": True, "blocks.1": True, "blocks.2": False},
    OuterAddition: {"first": None, "second": None},
    Listed: {"units.1": True, "units.2": True},
    ListedSilu: {"units.1": False, "units.2": False},
    Vgg: {"features.3": True, "features.10": True},
    Lines: {"blocks.0": True, "blocks.1": True},
    Volumes: {"body.0.0": True, "body.1.0": True},
    Parametrised: {"blocks.0": True, "blocks.1": True},
    Generator: {"blocks.0": True, "blocks.1": True},
}


def shape_for(kind: type[nn.Module]) -> tuple[int, ...]:
    return SHAPES.get(kind, (3, 8, 9))


def built(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """Return a network initialised from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind()
        if any(isinstance(m, nn.LazyLinear) for m in model.modules()):
            model(torch.zeros(1, *shape_for(kind)))
    return model

"""Small networks, one per way in which channels can be coupled; widths are primes, so that axes cannot be mixed up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Plain(nn.Module):
    """conv - norm - activation twice, pooled, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 7, 3, bias=False), nn.BatchNorm2d(7)
        self.conv2, self.act = nn.Conv2d(7, 11, 3), nn.PReLU(11)
        self.fc = nn.Linear(11, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    """A residual stream that two branches add to, and a strided shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1)
        self.a, self.b = nn.Conv2d(7, 11, 3, padding=1), nn.Conv2d(11, 7, 3, padding=1)
        self.c, self.short = nn.Conv2d(7, 13, 3, 2, 1), nn.Conv2d(7, 13, 1, 2)
        self.fc = nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.b(F.relu(self.a(x))))
        x = F.relu(self.c(x) + self.short(x))
        return self.fc(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenation, with a norm over the whole of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 3, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.c = nn.Conv2d(12, 11, 1)
        self.fc = nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        x = torch.cat([a, self.b(F.relu(a))], 1)
        return self.fc(F.relu(self.c(self.bn(x))).amax((2, 3)))


class Flattened(nn.Module):
    """A flatten into a linear layer: each channel arrives as a block of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 7, 3), nn.Linear(7 * 25, 13), nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.conv(x).relu(), 5)
        return self.fc2(self.fc1(torch.flatten(x, 1)).relu())


class Mobile(nn.Module):
    """Inverted residual with squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.expand, self.depth = nn.Conv2d(5, 17, 1), nn.Conv2d(17, 17, 3, padding=1, groups=17)
        self.down, self.up = nn.Conv2d(17, 5, 1), nn.Conv2d(5, 17, 1)
        self.project, self.fc = nn.Conv2d(17, 5, 1), nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.hardswish(self.depth(self.expand(x)))
        y = y * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(y)
        return self.fc(x.mean((2, 3)))


class Grouped(nn.Module):
    """Grouped convolution between dense ones: groups stay equal."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.b = nn.Conv2d(3, 15, 1), nn.Conv2d(15, 21, 3, groups=3), nn.Conv2d(21, 5, 1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.g(F.relu(self.a(x)))))).mean((2, 3)))


class Multiplied(nn.Module):
    """Depthwise convolution with three filters per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 15, 3, groups=5), nn.Conv2d(15, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.d(self.a(x)))).mean((2, 3))


class Split(nn.Module):
    """Halves of one convolution go separate ways and meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 14, 1), nn.Conv2d(7, 5, 3, padding=1), nn.Conv2d(12, 11, 1)
        self.fc = nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        return self.fc(F.relu(self.c(torch.cat([left, self.b(F.relu(right))], 1))).mean((2, 3)))


class Shuffled(nn.Module):
    """Channel shuffle between a concatenation and a split, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 10, 1), nn.Conv2d(3, 10, 1)
        self.c, self.d, self.e = nn.Conv2d(10, 10, 1), nn.Conv2d(10, 10, 1), nn.Conv2d(20, 7, 1)

    @staticmethod
    def shuffle(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffle(torch.cat([self.a(x), self.b(x)], 1))
        for layer in (self.c, self.d):
            keep, change = x.chunk(2, 1)
            x = self.shuffle(torch.cat([keep, F.relu(layer(change))], 1))
        return self.e(x).mean((2, 3))


class Scaled(nn.Module):
    """Parameters used as tensors: a layer scale, and a 1-d scale that forward views."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 7, 1), nn.Conv2d(7, 7, 1), nn.Conv2d(7, 5, 1)
        self.gamma, self.beta = nn.Parameter(torch.ones(7, 1, 1)), nn.Parameter(torch.ones(7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.gamma * self.b(F.gelu(x))
        return self.c(x * self.beta.view(1, -1, 1, 1)).mean((2, 3))


class Upsampled(nn.Module):
    """Transposed convolution, pixel shuffle, one-dimensional and shared convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.t = nn.Conv2d(3, 7, 3, padding=1), nn.ConvTranspose2d(7, 5, 2, 2)
        self.s, self.c = nn.Conv2d(5, 20, 1), nn.Conv2d(5, 11, 1)
        self.shared = nn.Conv2d(11, 11, 3, padding=1)
        self.line, self.out = nn.Conv1d(11, 13, 3), nn.Linear(13, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.s(F.relu(self.t(self.a(x)))), 2)
        x = self.shared(F.relu(self.shared(F.relu(self.c(x)))))
        return self.out(F.relu(self.line(x.mean(3))).mean(2))


class LastNorm(nn.Module):
    """LayerNorm over channels: a statistic runs across what changes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.fc = nn.Conv2d(3, 7, 3), nn.LayerNorm(7), nn.Linear(7, 11)
        self.out = nn.Linear(11, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x).permute(0, 2, 3, 1))
        return self.out(F.gelu(self.fc(x)).mean((1, 2)))


class GroupNormed(nn.Module):
    """GroupNorm with three groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 15, 3), nn.GroupNorm(3, 15), nn.Conv2d(15, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.norm(self.a(x)))).mean((2, 3))


class Auxiliary(nn.Module):
    """A second head that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 11, 3)
        self.aux, self.fc = nn.Conv2d(7, 5, 1), nn.Linear(11, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.a(x))
        out = self.fc(F.relu(self.b(x)).mean((2, 3)))
        return (out, self.aux(x).mean((2, 3))) if self.training else out


class Dictionary(nn.Module):
    """Returns a dict with one tensor inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 7, 3), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.fc(F.relu(self.a(x)).mean((2, 3)))}


EXACT = [
    Plain, Residual, Dense, Flattened, Mobile, Grouped, Multiplied, Split, Shuffled, Scaled, Upsampled, Auxiliary,
    Dictionary,
]  # fmt: skip
STATISTIC = [LastNorm, GroupNormed]

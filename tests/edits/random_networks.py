"""Random convolutional networks as data: a ``Net`` prints as the call that builds it again, and shrinks step by step.

Widths are primes and sides may be odd, so that mixed-up axes cannot cancel. Every step is a frozen dataclass that
builds a module for any width that enters, so steps can be dropped and exchanged freely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

WIDEST = 60  # beyond, a narrowing convolution is put in, so that networks stay small

ACTIVATIONS = {
    "relu": nn.ReLU, "none": nn.Identity, "hardswish": nn.Hardswish, "gelu": nn.GELU, "leaky": nn.LeakyReLU,
}  # fmt: skip


def activation(kind: str, width: int) -> nn.Module:
    return nn.PReLU(width) if kind == "prelu" else ACTIVATIONS[kind]()


def normalisation(kind: str, width: int) -> nn.Module:
    made = {
        "none": nn.Identity,
        "batch": lambda: nn.BatchNorm2d(width),
        "bare": lambda: nn.BatchNorm2d(width, affine=False),
        "group": lambda: nn.GroupNorm(1, width),
        "each": lambda: nn.GroupNorm(width, width),
    }
    return made[kind]()


# ------------------------------------------------------------------ steps


@dataclass(frozen=True)
class Step:
    """One step of a network."""

    def build(self, width: int) -> tuple[nn.Module, int]:
        """Return a module for ``width`` channels, and how many come out."""
        raise NotImplementedError


@dataclass(frozen=True)
class Conv(Step):
    """Convolution, norm, activation, in a ``Sequential`` of its own."""

    out: int = 3
    kernel: int = 3
    norm: str = "none"
    act: str = "relu"
    dilation: int = 1
    stride: int = 1
    bias: bool = True

    def build(self, width: int) -> tuple[nn.Module, int]:
        pad = self.dilation * (self.kernel - 1) // 2
        conv = nn.Conv2d(width, self.out, self.kernel, self.stride, pad, self.dilation, bias=self.bias)
        return nn.Sequential(conv, normalisation(self.norm, self.out), activation(self.act, self.out)), self.out


@dataclass(frozen=True)
class Padded(Step):
    """Convolutions that pad by name, not by number: ``"same"``."""

    out: int = 3
    kernel: int = 3

    def build(self, width: int) -> tuple[nn.Module, int]:
        return nn.Conv2d(width, self.out, self.kernel, padding="same", padding_mode="zeros"), self.out


class ResidualModule(nn.Module):
    """A branch added to its input, in the style before (pre-activation) or after the addition (post-activation)."""

    def __init__(self, step: Residual, width: int) -> None:
        super().__init__()
        first = nn.Conv2d(width, step.hidden, 3, padding=1, bias=step.norm == "none")
        second = nn.Conv2d(step.hidden, width, step.kernel, padding=step.kernel // 2)
        norms = normalisation(step.norm, width if step.pre else step.hidden), normalisation(step.norm, step.hidden)
        if step.pre:
            act = activation(step.act, width)
            self.branch = nn.Sequential(norms[0], act, first, norms[1], activation(step.act, step.hidden), second)
        else:
            end = normalisation(step.norm, width)
            self.branch = nn.Sequential(first, norms[0], activation(step.act, step.hidden), second, end)
        self.gamma = nn.Parameter(torch.full((width, 1, 1), 0.1)) if step.scale else None
        self.end = nn.Identity() if step.pre else activation(step.act, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return self.end(x + (y if self.gamma is None else self.gamma * y))

    def without_branch(self, x: Tensor) -> Tensor:
        return self.end(x)


@dataclass(frozen=True)
class Residual(Step):
    hidden: int = 3
    kernel: int = 1
    norm: str = "none"
    act: str = "relu"
    pre: bool = True
    scale: bool = False

    def build(self, width: int) -> tuple[nn.Module, int]:
        return ResidualModule(self, width), width


class ProjectedModule(nn.Module):
    """A residual block with a convolution on its shortcut."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.again = nn.Conv2d(out, out, 3, padding=1)
        self.short = nn.Conv2d(width, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.again(F.relu(self.norm(self.conv(x)))) + self.short(x))


@dataclass(frozen=True)
class Projected(Step):
    out: int = 3
    stride: int = 1

    def build(self, width: int) -> tuple[nn.Module, int]:
        return ProjectedModule(width, self.out, self.stride), self.out


class ConcatModule(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, growth, 3, padding=1), nn.BatchNorm2d(width + growth)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat([x, F.relu(self.conv(x))], 1))


@dataclass(frozen=True)
class Concat(Step):
    growth: int = 3

    def build(self, width: int) -> tuple[nn.Module, int]:
        return ConcatModule(width, self.growth), width + self.growth


class SplitModule(nn.Module):
    """Unequal parts, by a stored list, go different ways."""

    def __init__(self, width: int, parts: tuple[int, int], out: int) -> None:
        super().__init__()
        self.parts = list(parts)
        self.wide = nn.Conv2d(width, sum(parts), 1)
        self.left, self.right = nn.Conv2d(parts[0], out, 1), nn.Conv2d(parts[1], out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.wide(x).split(self.parts, 1)
        return self.left(F.relu(left)) + self.right(right)


@dataclass(frozen=True)
class Split(Step):
    parts: tuple[int, int] = (3, 5)
    out: int = 3

    def build(self, width: int) -> tuple[nn.Module, int]:
        return SplitModule(width, self.parts, self.out), self.out


class ChunkModule(nn.Module):
    """Halves of one convolution gate each other, one of them behind a convolution or not."""

    def __init__(self, width: int, out: int, direct: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * out, 1)
        self.left = nn.Identity() if direct else nn.Conv2d(out, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, 1)
        return self.left(a) * torch.sigmoid(b)


@dataclass(frozen=True)
class Chunk(Step):
    out: int = 3
    direct: bool = True

    def build(self, width: int) -> tuple[nn.Module, int]:
        return ChunkModule(width, self.out, self.direct), self.out


class ShuffleModule(nn.Module):
    """ShuffleNet's unit: one half passes, the other is convolved, and their channels are shuffled."""

    def __init__(self, width: int, half: int) -> None:
        super().__init__()
        self.wide, self.conv = nn.Conv2d(width, 2 * half, 1), nn.Conv2d(half, half, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.wide(x).chunk(2, 1)
        x = torch.cat([left, F.relu(self.conv(right))], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@dataclass(frozen=True)
class Shuffle(Step):
    half: int = 3

    def build(self, width: int) -> tuple[nn.Module, int]:
        return ShuffleModule(width, self.half), 2 * self.half


class ExciteModule(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


@dataclass(frozen=True)
class Excite(Step):
    hidden: int = 3

    def build(self, width: int) -> tuple[nn.Module, int]:
        return ExciteModule(width, self.hidden), width


@dataclass(frozen=True)
class Grouped(Step):
    """A dense convolution, then a grouped one, then perhaps a group norm over the same groups."""

    groups: int = 2
    inside: int = 3
    out: int = 3
    normed: bool = False

    def build(self, width: int) -> tuple[nn.Module, int]:
        inner, outer = self.groups * self.inside, self.groups * self.out
        norm = nn.GroupNorm(self.groups, outer) if self.normed else nn.Identity()
        dense, grouped = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, outer, 3, padding=1, groups=self.groups)
        return nn.Sequential(dense, nn.ReLU(), grouped, norm), outer


@dataclass(frozen=True)
class Depthwise(Step):
    multiplier: int = 1
    kernel: int = 3

    def build(self, width: int) -> tuple[nn.Module, int]:
        out = width * self.multiplier
        conv = nn.Conv2d(width, out, self.kernel, padding=self.kernel // 2, groups=width)
        return nn.Sequential(conv, nn.PReLU(out)), out


class InvertedModule(nn.Module):
    """MobileNet's block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depth, self.bn2 = (
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
        )
        self.project, self.bn3 = nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn2(self.depth(F.relu6(self.bn1(self.expand(x))))))
        return self.bn3(self.project(y)) + x

    def without_branch(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Inverted(Step):
    hidden: int = 3

    def build(self, width: int) -> tuple[nn.Module, int]:
        return InvertedModule(width, self.hidden), width


class SharedModule(nn.Module):
    """One convolution called twice, and a parameter that scales."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(width, width, 1), nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(x))) * self.scale


@dataclass(frozen=True)
class Shared(Step):
    def build(self, width: int) -> tuple[nn.Module, int]:
        return SharedModule(width), width


class StandardisedConv(nn.Conv2d):
    """A weight computed before use: weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (std + 1e-5), self.bias, padding=self.padding)


@dataclass(frozen=True)
class Computed(Step):
    """A convolution whose weight is computed: standardised, or parametrised."""

    out: int = 3
    kernel: int = 3
    how: str = "standardised"

    def build(self, width: int) -> tuple[nn.Module, int]:
        kind = StandardisedConv if self.how == "standardised" else nn.Conv2d
        conv = kind(width, self.out, self.kernel, padding=self.kernel // 2)
        if self.how == "weight_norm":
            conv = parametrizations.weight_norm(conv)
        elif self.how == "spectral_norm":
            conv = parametrizations.spectral_norm(conv)
        return conv, self.out


class GhostModule(nn.Module):
    """Cheap copies concatenated, and cut to a stored size."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.out_channels = out
        half = math.ceil(out / 2)
        self.primary = nn.Conv2d(width, half, 1)
        self.cheap = nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.primary(x))
        return torch.cat([x, self.cheap(x)], 1)[:, : self.out_channels]


@dataclass(frozen=True)
class Ghost(Step):
    out: int = 3

    def build(self, width: int) -> tuple[nn.Module, int]:
        return GhostModule(width, self.out), self.out


class LastModule(nn.Module):
    """ConvNeXt's block: norm and linear layers on the last axis, and a layer scale."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.gamma = nn.LayerNorm(width), nn.Parameter(torch.full((width,), 0.1))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)

    def without_branch(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Last(Step):
    hidden: int = 3

    def build(self, width: int) -> tuple[nn.Module, int]:
        return LastModule(width, self.hidden), width


@dataclass(frozen=True)
class Transposed(Step):
    out: int = 3
    stride: int = 1

    def build(self, width: int) -> tuple[nn.Module, int]:
        kernel, pad = (2, 0) if self.stride == 2 else (3, 1)
        return nn.ConvTranspose2d(width, self.out, kernel, self.stride, pad), self.out


@dataclass(frozen=True)
class Pool(Step):
    how: str = "max"

    def build(self, width: int) -> tuple[nn.Module, int]:
        return (nn.MaxPool2d if self.how == "max" else nn.AvgPool2d)(3, 2, 1), width


class BranchesModule(nn.Module):
    """Branches of different kernels, summed or concatenated (Inception)."""

    def __init__(self, width: int, outs: tuple[int, ...], summed: bool) -> None:
        super().__init__()
        self.summed = summed
        widths = [outs[0]] * len(outs) if summed else outs
        self.branches = nn.ModuleList(nn.Conv2d(width, out, 2 * i + 1, padding=i) for i, out in enumerate(widths))

    def forward(self, x: Tensor) -> Tensor:
        values = [F.relu(branch(x)) for branch in self.branches]
        return torch.stack(values).sum(0) if self.summed else torch.cat(values, 1)


@dataclass(frozen=True)
class Branches(Step):
    outs: tuple[int, ...] = (3, 5)
    summed: bool = False

    def build(self, width: int) -> tuple[nn.Module, int]:
        return BranchesModule(width, self.outs, self.summed), self.outs[0] if self.summed else sum(self.outs)


# ------------------------------------------------------------------ networks


class RandomNet(nn.Module):
    """A stem, steps, a classifier, and perhaps a second one on the way."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.container, self.head, self.output = net.container, net.head, net.output
        modules: list[nn.Module] = []
        width = net.stem
        for step in net.steps:
            module, width = step.build(width)
            modules.append(module)
            if width > WIDEST:
                modules.append(nn.Conv2d(width, 5, 1))
                width = 5
        self.tap = len(modules) // 2
        self.stem = nn.Conv2d(net.channels, net.stem, 3, padding=1)
        self.steps = nn.ModuleList(modules) if net.container == "list" else nn.Sequential(*modules)
        with torch.no_grad():  # the sizes behind the steps, whatever they are
            last, tapped = self.features(torch.zeros(2, net.channels, *net.size))
        flat = {"pool": width, "grid": 4 * width, "flatten": last[0].numel()}[net.head]
        self.fc = nn.Linear(flat, 3)
        self.aux = nn.Linear(tapped.shape[1], 2) if net.output != "tensor" else None

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = tapped = F.relu(self.stem(x))
        if self.container == "sequential" and self.output == "tensor":
            return self.steps(x), tapped
        for i, step in enumerate(self.steps):
            x = step(x)
            if i == self.tap:
                tapped = x
        return x, tapped

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor] | dict[str, Tensor]:
        x, tapped = self.features(x)
        if self.head == "pool":
            x = x.mean((2, 3))
        elif self.head == "grid":
            x = F.adaptive_avg_pool2d(x, 2)
        logits = self.fc(torch.flatten(x, 1))
        if self.aux is None:
            return logits
        aux = self.aux(tapped.mean((2, 3)))
        return (logits, aux) if self.output == "tuple" else {"logits": logits, "aux": aux}


@dataclass(frozen=True)
class Net:
    """A network, and the seed of its weights, as data.

    Attributes:
        steps: what it is made of.
        stem: channels of the first convolution.
        channels: channels of the input.
        size: height and width of the input.
        container: ``"sequential"``, or ``"list"``: a loop over a ``ModuleList``.
        head: ``"pool"``; ``"grid"``: a pooled 2x2 map is flattened; ``"flatten"``: the map itself is.
        output: ``"tensor"``, or ``"tuple"`` and ``"dict"``: a second classifier on the way.
        seed: of the weights.
    """

    steps: tuple[Step, ...]
    stem: int = 3
    channels: int = 2
    size: tuple[int, int] = (5, 5)
    container: str = "sequential"
    head: str = "pool"
    output: str = "tensor"
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.size)

    def build(self) -> nn.Module:
        """Return the network as its layers initialise it, from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return RandomNet(self)

    def randomised(self) -> nn.Module:
        """Return it in float64 and eval mode with nothing at its initial value."""
        return randomised(self.build(), self.seed)

    def input(self, batch: int = 2, seed: int = 0) -> Tensor:
        """Return a random input in float64."""
        generator = torch.Generator().manual_seed(self.seed + seed)
        return torch.randn(batch, *self.shape, dtype=torch.float64, generator=generator)

    @property
    def computed(self) -> bool:
        """Whether a weight is computed before use."""
        return any(isinstance(step, Computed) for step in self.steps)


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Give every tensor random values, of a size that keeps signals near 1; norms scale by 0.3 to 1, either sign."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or name.endswith(("_u", "_v")):  # singular vectors have length 1
            continue
        noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        if name.endswith("running_var"):
            value = 0.5 + noise
        elif tensor.ndim == 1:
            sign = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
            value = (0.3 + 0.7 * noise) * sign
        else:
            value = (2 * noise - 1) * math.sqrt(6 / math.prod(tensor.shape[1:]))
        tensor.data.copy_(value)
    return model


# ------------------------------------------------------------------ strategies

primes = st.sampled_from([3, 5, 7, 11, 13])
kernels = st.sampled_from([3, 1, 5])
norms = st.sampled_from(["none", "batch", "bare", "group", "each"])
acts = st.sampled_from(["relu", "none", "hardswish", "gelu", "leaky", "prelu"])
pairs = st.tuples(primes, primes)

CONVS = st.builds(
    Conv, primes, kernels, st.sampled_from(["none", "batch", "bare"]), acts, st.sampled_from([1, 2]),
    st.sampled_from([1, 2]), st.booleans(),
)  # fmt: skip
RESIDUALS = st.builds(
    Residual, primes, st.sampled_from([1, 3]), st.sampled_from(["none", "batch"]), acts, st.booleans(), st.booleans()
)
BASIC = [  # no statistic across channels, no computed weight, no stored size: all laws hold exactly
    CONVS,
    RESIDUALS,
    st.builds(Projected, primes, st.sampled_from([1, 2])),
    st.builds(Concat, primes),
    st.builds(Chunk, primes, st.booleans()),
    st.builds(Excite, primes),
    st.builds(Grouped, st.sampled_from([2, 3]), primes, primes),
    st.builds(Depthwise, st.sampled_from([1, 2]), st.sampled_from([3, 1])),
    st.builds(Inverted, primes),
    st.just(Shared()),
    st.builds(Padded, primes, kernels),
    st.builds(Transposed, primes, st.sampled_from([1, 2])),
    st.builds(Pool, st.sampled_from(["max", "avg"])),
    st.builds(Branches, st.tuples(primes, primes) | st.tuples(primes, primes, primes), st.booleans()),
    st.builds(Shuffle, primes),
]
STORED = [st.builds(Split, pairs, primes), st.builds(Ghost, primes)]
STATISTIC = [
    st.builds(Residual, primes, st.just(1), st.sampled_from(["group", "each"]), acts, st.booleans(), st.booleans()),
    st.builds(Grouped, st.sampled_from([2, 3]), primes, primes, st.just(True)),
    st.builds(Last, primes),
]
COMPUTED = [
    st.builds(
        Computed, primes, st.sampled_from([3, 1]), st.sampled_from(["standardised", "weight_norm", "spectral_norm"])
    )
]
EVERY = [*BASIC, *STORED, *STATISTIC, *COMPUTED]
seeds = st.integers(0, 2**31 - 1)


def networks(steps: list[st.SearchStrategy[Step]] = EVERY, most: int = 4, **fixed: object) -> st.SearchStrategy[Net]:
    """Draw networks of some kinds of steps; ``fixed`` sets fields of ``Net``."""
    drawn = {
        "steps": st.lists(st.one_of(*steps), min_size=1, max_size=most).map(tuple),
        "stem": primes,
        "channels": st.sampled_from([2, 3]),
        "size": st.tuples(st.integers(4, 9), st.integers(4, 9)),
        "container": st.sampled_from(["sequential", "list"]),
        "head": st.sampled_from(["pool", "grid", "flatten"]),
        "output": st.sampled_from(["tensor", "tuple", "dict"]),
        "seed": seeds,
    }
    return st.builds(Net, **drawn | {name: st.just(value) for name, value in fixed.items()})

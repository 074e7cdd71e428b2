"""Networks and edits drawn from one number, and a judge that knows nothing of convwright's analysis.

Which channels belong together is found by experiment: each channel of each layer is disturbed, one per image of a
batch, and whatever layer notices reads it. Which channels an edit dropped is seen from the biases that are gone. What
an edit promises is then built from the original with hooks. ``python tests/edits/drawn_networks.py --count 1000``
draws a thousand networks and prints every counterexample.
"""

from __future__ import annotations

import argparse
import collections
import copy
import random
import sys
import traceback
import warnings
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import convwright as cw
from convwright.errors import EditError

ROUNDING = 1e-9  # of outputs that are near 1, in float64
READERS = (nn.modules.conv._ConvNd, nn.Linear)
NORMS = (nn.BatchNorm2d, nn.GroupNorm)


# ------------------------------------------------------------------ networks


class Unit(nn.Module):
    """Convolution, norm, activation."""

    def __init__(self, draw: random.Random, inner: int, outer: int, groups: int = 1, stride: int = 1) -> None:
        super().__init__()
        kernel = draw.choice((1, 3, 3, 5))
        self.conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups)
        even = outer % 2 == 0 and draw.random() < 0.5
        self.norm = draw.choice(
            (nn.BatchNorm2d(outer), nn.Identity(), nn.BatchNorm2d(outer), nn.GroupNorm(1 + even, outer))
        )
        self.act = draw.choice((nn.ReLU(), nn.SiLU(), nn.Identity(), nn.LeakyReLU(), nn.PReLU(outer)))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Residual(nn.Module):
    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        hidden = draw.randint(2, 9)
        self.branch = nn.Sequential(Unit(draw, width, hidden), Unit(draw, hidden, width))
        self.act = draw.choice((nn.ReLU(), nn.Identity()))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.branch(x))


class Concat(nn.Module):
    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        self.keeps = draw.random() < 0.5
        self.a, self.b = Unit(draw, width, draw.randint(2, 6)), Unit(draw, width, draw.randint(2, 6))
        self.width = self.a.conv.out_channels + self.b.conv.out_channels + width * self.keeps

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x), *([x] if self.keeps else [])], 1)


class Shuffle(nn.Module):
    """Mixes the groups of a grouped convolution, written in one of the usual ways."""

    def __init__(self, draw: random.Random, width: int, groups: int) -> None:
        super().__init__()
        self.groups, self.way = groups, draw.randrange(3)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if self.way == 0:
            return x.view(n, self.groups, -1, h, w).transpose(1, 2).flatten(1, 2)
        if self.way == 1:
            return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return F.channel_shuffle(x, self.groups)


class Split(nn.Module):
    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        self.way = draw.randrange(3)
        self.half = width // 2
        self.unit = Unit(draw, self.half, self.half)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == 2:
            a, b = x.split((self.half, x.shape[1] - self.half), 1)
        else:
            a, b = x.chunk(2, 1)
        return torch.cat([b, self.unit(a)], 1) if self.way else a * torch.sigmoid(self.unit(b))


class Gate(nn.Module):
    """Squeeze and excitation, with convolutions or linear layers."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        hidden, self.linear = draw.randint(1, 4), draw.random() < 0.5
        make: Any = nn.Linear if self.linear else (lambda a, b: nn.Conv2d(a, b, 1))
        self.down, self.act, self.up = make(width, hidden), nn.ReLU(), make(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=not self.linear)
        s = torch.sigmoid(self.up(self.act(self.down(s))))
        return x * (s[:, :, None, None] if self.linear else s)


class Drawn(nn.Module):
    """A network drawn from a number."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        steps, width, side = [], draw.randint(3, 10), draw.choice((6, 7, 8))
        self.side = side
        steps.append(Unit(draw, 3, width))
        for _ in range(draw.randint(2, 6)):
            made, width = self._step(draw, width)
            steps += made
        self.steps = nn.Sequential(*steps)
        self.way = draw.randrange(3)
        with torch.no_grad():
            size = self.steps(torch.zeros(2, 3, side, side)).shape[2:]
        flat = width * (size[0] * size[1] if self.way == 0 else 1)
        hidden = draw.randint(3, 8)
        self.head = nn.Sequential(nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, 3))
        self.double().eval()
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point():
                low, high = (0.5, 1.5) if name.endswith(("var", "norm.weight")) else (-0.6, 0.6)
                tensor.uniform_(low, high, generator=generator)

    def _step(self, draw: random.Random, width: int) -> tuple[list[nn.Module], int]:
        kind = draw.choice(
            ("unit", "residual", "concat", "grouped", "depthwise", "shuffle", "split", "gate", "up", "pool")
        )
        if width > 24:
            kind = "unit"
        outer = draw.randint(2, 12)
        if kind == "residual":
            return [Residual(draw, width)], width
        if kind == "concat":
            made = Concat(draw, width)
            return [made], made.width
        if kind in ("grouped", "shuffle"):
            groups = draw.choice((2, 2, 3, 4))
            wide = groups * draw.randint(1, 4)
            first = [Unit(draw, width, wide), Unit(draw, wide, wide, groups)]
            if kind == "grouped":
                return first, wide
            last = draw.choice((Unit(draw, wide, wide, groups), Unit(draw, wide, outer), Unit(draw, wide, wide, wide)))
            shuffle = Shuffle(draw, wide, groups)
            steps = [*first, shuffle, last] if draw.random() < 0.6 else [first[0], shuffle, last]
            return steps, last.conv.out_channels
        if kind == "depthwise":
            return [Unit(draw, width, width, width), Unit(draw, width, outer)], outer
        if kind == "split" and width % 2 == 0:
            made = Split(draw, width)
            return [made], width if made.way else width // 2
        if kind == "gate":
            return [Gate(draw, width)], width
        if kind == "up":
            way = draw.randrange(3)
            if way == 0:
                return [nn.Upsample(scale_factor=2), Unit(draw, width, outer, stride=2)], outer
            if way == 1:
                return [nn.ConvTranspose2d(width, outer, 2, 2), nn.MaxPool2d(2)], outer
            return [Unit(draw, width, 4 * outer), nn.PixelShuffle(2), nn.AvgPool2d(2)], outer
        if kind == "pool":
            return [nn.MaxPool2d(3, 1, 1), Unit(draw, width, outer)], outer
        return [Unit(draw, width, outer)], outer

    def forward(self, x: Tensor) -> Tensor:
        x = self.steps(x)
        if self.way == 0:
            return self.head(x.flatten(1))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1) if self.way == 1 else x.mean((2, 3))
        return self.head(x)

    def input(self, batch: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return torch.randn(1, 3, self.side, self.side, generator=generator, dtype=torch.float64).repeat(batch, 1, 1, 1)


# ------------------------------------------------------------------ which channels belong together


Place = tuple[str, str, int]  # ("out" or "in", layer, channel)


def reads_groups(layer: nn.Module) -> int:
    """Return into how many parts a layer's input falls; 0 for one filter per channel, which only passes channels on."""
    groups = getattr(layer, "groups", 1)
    return 0 if groups > 1 and groups == layer.in_channels and layer.out_channels == groups else groups


def belonging(model: Drawn) -> dict[Place, int]:
    """Return the class of each channel: classes live and die together."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, READERS) and reads_groups(m)}
    parent: dict[Place, Place] = {}

    def find(place: Place) -> Place:
        while parent.setdefault(place, place) != place:
            place = parent[place]
        return place

    def join(a: Place, b: Place) -> None:
        parent[find(a)] = find(b)

    for name, layer in layers.items():
        outs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        for consumer, touched in disturbed(model, layers, name, outs).items():
            for out, place in touched:
                join(("out", name, out), ("in", consumer, place))
        groups = reads_groups(layer)
        inner = (layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels) // groups
        for part in range(1, groups):
            for place in range(inner):
                join(("in", name, place), ("in", name, part * inner + place))
            for out in range(outs // groups):
                join(("out", name, out), ("out", name, part * (outs // groups) + out))
    return {place: hash(find(place)) for place in list(parent)}


def disturbed(model: Drawn, layers: dict[str, nn.Module], source: str, count: int) -> dict[str, list[tuple[int, int]]]:
    """Disturb each output channel of a layer, one per image, and return who reads it where."""
    generator = torch.Generator().manual_seed(1)
    found: dict[str, list[tuple[int, int]]] = {}
    hooks = []

    def freeze(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
        return result[-1:].expand_as(result).clone()  # no disturbance passes a layer that sums over channels

    def disturb(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
        result = freeze(module, args, result)
        for channel in range(count):
            noise = torch.rand(result[0, channel].shape, generator=generator, dtype=torch.float64) + 1
            result[channel, channel] += noise
        return result

    def watch(name: str) -> Any:
        def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            (x,) = args
            moved = (x - x[-1:]).abs() > 1e-7  # more than rounding
            moved = moved.flatten(2).any(2) if x.ndim > 2 else moved
            found.setdefault(name, []).extend(map(tuple, moved.nonzero().tolist()))

        return look

    for name, layer in layers.items():
        hooks.append(layer.register_forward_pre_hook(watch(name)))
        hooks.append(layer.register_forward_hook(disturb if name == source else freeze))
    for module in model.modules():
        if isinstance(module, (*NORMS, nn.ReLU, nn.SiLU)):  # statistics would spread it, flat parts hide it
            hooks.append(module.register_forward_hook(lambda module, args, result: args[0]))
    # A gate that is shut hides what it is multiplied with.
    with torch.no_grad(), mock.patch.object(torch, "sigmoid", lambda x: 1 + 0.01 * x):
        model(model.input(count + 1))
    for hook in hooks:
        hook.remove()
    found.pop(source, None)
    return found


def dropped(old: nn.Module, new: nn.Module) -> set[Place]:
    """Return the output channels whose biases are gone."""
    gone: set[Place] = set()
    for name, layer in old.named_modules():
        if isinstance(layer, READERS):
            left = set(new.get_submodule(name).bias.tolist())
            gone |= {("out", name, i) for i, value in enumerate(layer.bias.tolist()) if value not in left}
    return gone


def without(model: Drawn, gone: set[Place]) -> nn.Module:
    """Return the network with what its layers read from dropped channels multiplied by zero."""
    classes = belonging(model)
    dead = {classes[place] for place in gone if place in classes}
    masked = copy.deepcopy(model)
    for name, layer in masked.named_modules():
        places = [p[2] for p, kind in classes.items() if p[:2] == ("in", name) and kind in dead]
        if isinstance(layer, READERS) and places:

            def silence(module: nn.Module, args: tuple[Tensor, ...], places: list[int] = places) -> tuple[Tensor]:
                return (args[0].index_fill(1, torch.tensor(places), 0.0),)

            layer.register_forward_pre_hook(silence)
    return masked


# ------------------------------------------------------------------ edits, and what they promise


def drawn_edits(draw: random.Random, arch: Any) -> list[Any]:
    kind = draw.choice(("width",) * 6 + ("widths", "all", "add", "remove", "kernel"))
    free = arch.free_groups
    if kind in ("width", "widths") and free:
        return [drawn_width(draw, group) for group in draw.sample(free, min(len(free), 1 if kind == "width" else 2))]
    if kind == "all":
        return list(cw.scale_widths(arch, draw.choice((0.5, 0.75, 1.5, 2.0))))
    blocks = [block.name for block in arch.blocks if block.modules]
    if kind in ("add", "remove") and blocks:
        edit = cw.AddBlock if kind == "add" else cw.RemoveBlock
        return [edit(draw.choice(blocks))]
    convs = [n for n, m in arch.model.named_modules() if type(m) is nn.Conv2d]
    name = draw.choice(convs)
    return [cw.Kernel(name, max(1, arch.model.get_submodule(name).kernel_size[0] + draw.choice((-2, 2, 4))))]


def drawn_width(draw: random.Random, group: Any) -> Any:
    units = group.size // group.step
    other = draw.choice((draw.randint(1, units), 2 * units, 3 * units, draw.randint(units, 2 * units), units * 3 // 2))
    return cw.Width(group.name, max(1, other) * group.step)


def promised(old: nn.Module, new: nn.Module, edits: list[Any]) -> nn.Module | None:
    """Return the network that the result must equal; ``None`` if only convwright knows what a block is."""
    kind = edits[0].kind
    if kind == "width":
        return without(old, dropped(old, new))
    if kind == "remove_block":
        block = old.get_submodule(edits[0].target)
        if not isinstance(block, Residual | Unit):
            return None
        left = copy.deepcopy(old)
        left.set_submodule(edits[0].target, block.act if isinstance(block, Residual) else nn.Identity())
        return left
    if kind == "kernel":
        left = copy.deepcopy(old)
        weight, size = left.get_submodule(edits[0].target).weight, edits[0].size
        rim = (weight.shape[-1] - size) // 2
        if rim > 0:
            inside = torch.zeros_like(weight)
            inside[..., rim:-rim, rim:-rim] = 1
            weight.data *= inside
        return left
    return old


class CounterexampleError(AssertionError):
    """convwright did not do what it promises."""


def check(condition: bool, what: str) -> None:
    if not condition:
        raise CounterexampleError(what)


def check_result(arch: Any, new: Any, edits: list[Any], counts: collections.Counter[str]) -> None:
    old, made = arch.model, new.model
    x = old.input(2) * torch.tensor([1.0, -0.7]).reshape(2, 1, 1, 1)
    changes = new.changes[len(arch.changes) :]
    expected = promised(old, made, edits)
    with torch.no_grad():
        got = made(x)
        wanted = expected(x) if expected is not None else got
    difference = float((got - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
    exact = all(change.exact for change in changes)
    counts["exact" if exact else "inexact"] += 1
    if exact:
        check(difference <= ROUNDING, f"said to be exact, but differs by {difference:.2g}")
    else:
        check(all(change.notes for change in changes), f"not exact ({changes[0].max_difference:.2g}), and no reason")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made(x[:1])
    macs, params = changes[-1].macs[1], changes[-1].params[1]
    check(2 * macs == counter.get_total_flops(), f"{macs} MACs predicted, {counter.get_total_flops() / 2} counted")
    check(params == sum(p.numel() for p in made.parameters()), "another number of parameters than predicted")
    if edits[0].kind in ("width", "kernel"):
        check(made.state_dict().keys() == old.state_dict().keys(), "other names in the state dict")
    trained = copy.deepcopy(made).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3, momentum=0.9)
    trained(torch.cat([x, x + 1])).square().mean().backward()
    optimizer.step()
    check(all(p.grad is not None for p in trained.parameters()), "a parameter gets no gradient")


def try_network(seed: int, counts: collections.Counter[str]) -> None:
    """Draw a network and edits in sequence, and check every result.

    Raises:
        CounterexampleError: if a promise is broken; any other exception but a refusal is a counterexample, too.
    """
    draw, generator = random.Random(-seed - 1), torch.Generator().manual_seed(seed)
    model = Drawn(seed)
    arch = cw.read(model, model.input())
    for _ in range(draw.randint(1, 4)):
        edits = drawn_edits(draw, arch)
        if not edits:
            continue
        before = {name: tensor.clone() for name, tensor in arch.model.state_dict().items()}
        try:
            new = arch.apply(*edits)
        except EditError as error:
            counts["refused"] += 1
            check("convwright does not know why" not in str(error), str(error))
            new = None
        same = all(torch.equal(tensor, before[name]) for name, tensor in arch.model.state_dict().items())
        check(same, "the original was changed")
        if new is not None:
            try:
                check_result(arch, new, edits, counts)
            except CounterexampleError as error:
                raise CounterexampleError(f"{error}, after {edits}") from None
            arch = new
            with torch.no_grad():  # as training would: copies of a channel go their own ways
                for tensor in arch.model.parameters():
                    tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype), alpha=0.1)


def main() -> int:
    """Try many networks, and print the counterexamples."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts: collections.Counter[str] = collections.Counter()
    failed = 0
    for seed in range(asked.seed, asked.seed + asked.count):
        try:
            try_network(seed, counts)
        except Exception as error:
            failed += 1
            last = "" if isinstance(error, CounterexampleError) else traceback.format_exc(limit=-3)
            print(f"{seed}: {type(error).__name__}: {error}\n{last}", flush=True)
        done = seed - asked.seed + 1
        if done % 100 == 0 or done == asked.count:
            print(f"{done} networks from {asked.seed} on, {failed} counterexamples, edits: {dict(counts)}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

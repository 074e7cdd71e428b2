"""Networks and a made-up evaluator for the channel search: qualities as a function of the plan's widths."""

import json
import math

import torch
from torch import nn

from convwright.architecture import read
from convwright.cost import parse_budget
from convwright.cost.cost_model import CostModel
from convwright.edits import solve
from convwright.methods import Evidence
from convwright.metrics.quality.channel_quality import members


class Mobile(nn.Module):
    """Two inverted residual blocks with a depthwise convolution, after a stem."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.stem = nn.Conv2d(1, 13, 3, stride=2)
        self.a = nn.Sequential(nn.Conv2d(13, 31, 1), nn.BatchNorm2d(31), nn.ReLU6())
        self.a += nn.Sequential(nn.Conv2d(31, 31, 3, padding=1, groups=31), nn.ReLU6(), nn.Conv2d(31, 13, 1))
        self.b = nn.Sequential(nn.Conv2d(13, 37, 1), nn.ReLU6(), nn.Conv2d(37, 37, 3, stride=2, groups=37))
        self.b += nn.Sequential(nn.ReLU6(), nn.Conv2d(37, 19, 1))
        self.head, self.fc = nn.Conv2d(19, 41, 1), nn.Linear(41, num_classes)

    def forward(self, x):
        x = self.stem(x)
        return self.fc(torch.relu(self.head(self.b(x + self.a(x)))).mean((2, 3)))


class Concat(nn.Module):
    """Two branches side by side, and a grouped convolution, whose widths are multiples of its groups."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 17, 3), nn.Conv2d(1, 29, 3)
        self.c, self.d = nn.Conv2d(46, 24, 3), nn.Conv2d(24, 36, 3, groups=3, padding=1)
        self.fc = nn.Linear(36, num_classes)

    def forward(self, x):
        x = torch.relu(self.c(torch.cat([self.a(x), self.b(x)], 1)))
        return self.fc(torch.relu(self.d(x)).mean((2, 3)))


class Shuffle(nn.Module):
    """One half goes through a convolution, then channels are shuffled: sizes are tied."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.wide, self.part = nn.Conv2d(1, 34, 3), nn.Conv2d(17, 17, 3, padding=1)
        self.last, self.fc = nn.Conv2d(34, 23, 3), nn.Linear(23, num_classes)

    def forward(self, x):
        left, right = self.wide(x).chunk(2, 1)
        x = torch.cat([left, torch.relu(self.part(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(torch.relu(self.last(x)).mean((2, 3)))


def chain(*widths):
    row, before = [], 1
    for width in widths:
        row += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = width
    return nn.Sequential(*row, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 3))


def small(name):
    """Read one of the networks above."""
    torch.manual_seed(0)
    models = {"mobile": Mobile, "concat": Concat, "shuffle": Shuffle, "chain": lambda: chain(23, 29, 31, 37)}
    return read(models[name](), (1, 1, 15, 15))


def limits_of(arch, budget):
    return parse_budget(budget).resolve(arch.profile())


def constant(value):
    return lambda number, name, size: value


LEVEL = constant(0.45)


class World:
    """Answers with the costs of the plan's own widths, and qualities as a function of them."""

    def __init__(self, arch, quality=LEVEL, score=lambda sizes: 0.5, fails=lambda number: False):
        self.arch, self.quality, self.score, self.fails = arch, quality, score, fails
        self.members, self.model = members(arch), CostModel.of(arch)
        self.evidence, self.batches = [], []

    def sizes(self, plan):
        graph, edits = self.arch.channels, plan.edits
        if not any(g.tied for g in self.arch.free_groups):
            return {g.name: g.size for g in self.arch.free_groups} | {e.target: e.size for e in edits}
        units = solve(self.arch, edits).units if edits else graph.units
        return {g.name: int(units[graph.index[g.name]]) * g.step for g in self.arch.free_groups}

    def answer(self, candidate):
        number = len(self.evidence)
        if self.fails(number):
            return Evidence(candidate, number, math.nan, 0.0, {}, status="failed", message="it broke")
        sizes = self.sizes(candidate.plan)
        costs = {name: int(value) for name, value in self.model.costs(sizes).items()}
        probes = self.observed(number, candidate, sizes) if candidate.probes else {}
        return Evidence(candidate, number, self.score(sizes), 0.01, costs, probes)

    def observed(self, number, candidate, sizes):
        layers = {}
        for group, listed in self.members.items():
            for member in listed:
                sides = layers.setdefault(member.layer, [None, None])
                sides[member.mode == "out"] = self.quality(number, group, sizes[group])
        row = list(layers.values())
        table = {"layers": list(layers), "metrics": {"qc": [row] * max(1, candidate.epochs)}}
        return json.loads(json.dumps({"channel-quality": table}))

    def play(self, method):
        while batch := method.ask():
            self.batches.append(batch)
            for candidate in batch:
                self.evidence.append(self.answer(candidate))
                method.tell(self.evidence[-1])
        return self


def widths(method):
    """Per trial the set of all groups' widths."""
    return [list(step["widths"].values()) for step in method.history]


def hungry(arch, seed=0):
    """Needs that have nothing to do with the present widths, and a quality that falls with width beyond them."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(len(arch.free_groups), generator=generator).tolist()
    need = {g.name: g.size * 4 ** (u - 0.5) for g, u in zip(arch.free_groups, draws, strict=True)}
    return need, lambda number, name, size: 0.5 * need[name] / size


def spread(sizes, need):
    logs = [math.log(sizes[name] / need[name]) for name in sizes]
    middle = sum(logs) / len(logs)
    return math.sqrt(sum((x - middle) ** 2 for x in logs) / len(logs))

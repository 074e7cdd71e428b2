"""Made-up worlds for `Auto`, where accuracy is a known function of the plan."""

import itertools
import math
import random
from functools import cache

import torch
from channel_worlds import limits_of
from torch import nn

from convwright.architecture import read
from convwright.methods import Auto, Evidence
from convwright.methods.auto.designs import DesignBuilder
from convwright.methods.phased.moves import Scene
from convwright.metrics.quality.channel_quality import members


class Block(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.a, self.b = nn.Conv2d(width, hidden, 3, padding=1), nn.Conv2d(hidden, width, 3, padding=1)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))


class Residual(nn.Module):
    """Two stages of residual blocks; widths are primes."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.stem = nn.Conv2d(1, 13, 3, padding=1)
        self.one = nn.Sequential(Block(13, 11), Block(13, 17), Block(13, 13))
        self.down = nn.Conv2d(13, 23, 3, stride=2, padding=1)
        self.two = nn.Sequential(Block(23, 19), Block(23, 29))
        self.fc = nn.Linear(23, num_classes)

    def forward(self, x):
        return self.fc(self.two(self.down(self.one(self.stem(x)))).mean((2, 3)))


@cache
def residual():
    torch.manual_seed(0)
    return read(Residual(), (1, 1, 16, 16))


BENCHES, BUILT = {}, {}  # designs are pure functions of network and budget: made once for all tests


def share_benches(monkeypatch):
    def shared(arch, limits, divisor=1):
        return BENCHES.setdefault((id(arch), limits.describe(), divisor), DesignBuilder(arch, limits, divisor))

    monkeypatch.setattr("convwright.methods.auto.auto.DesignBuilder", shared)
    monkeypatch.setattr("convwright.methods.auto.design_search.DesignBuilder", shared)


class World:
    """Answers with the costs of the plan's network and an accuracy that is a function of it; longer is better."""

    def __init__(
        self,
        arch,
        truth,
        noise=0.0,
        fails=lambda number, candidate: False,
        seed=0,
        quality=None,
        stderr=None,
        recipe=lambda changes: 0.0,
    ):
        self.arch, self.truth, self.noise, self.fails, self.quality = arch, truth, noise, fails, quality
        self.recipe = recipe
        self.random, self.scenes = random.Random(seed), BUILT.setdefault(id(arch), {})
        self.evidence, self.batches = [], []
        self.stderr = stderr if stderr is not None else max(noise, 1e-4)

    def built(self, candidate):
        """Return the network of a candidate, from its parent's."""
        if candidate.parent is None:
            return self.after((), candidate.plan.edits)
        parent = self.evidence[candidate.parent].candidate
        self.built(parent)
        return self.after(parent.plan.edits, candidate.plan.edits[len(parent.plan.edits) :])

    def after(self, done, edits):
        """Return the network after further edits; where widths change its costs come from the cost model."""
        self.scenes.setdefault((), Scene(self.arch, limits_of(self.arch, "macs<=50%")))
        scene = self.scenes[done]
        for is_width, run in itertools.groupby(edits, key=lambda edit: edit.kind == "width"):
            run = tuple(run)
            done = (*done, *run)
            if done not in self.scenes:
                self.scenes[done] = scene.narrowed(run) if is_width else scene.after(run)
            scene = self.scenes[done]
        return scene

    def answer(self, candidate):
        number = len(self.evidence)
        if self.fails(number, candidate):
            return Evidence(candidate, number, math.nan, 0.0, {}, status="failed", message="it broke")
        scene = self.built(candidate)
        trained = self.trained(candidate)
        score = (
            self.truth(scene.arch)
            + self.recipe(candidate.recipe)
            - 0.3 / (1 + trained)
            + self.random.gauss(0, self.noise)
        )
        probes = {}
        if "channel-quality" in candidate.probes and self.quality:
            layers = [m.layer for listed in members(self.arch).values() for m in listed]
            row = [[self.quality(name)] * 2 for name in dict.fromkeys(layers)]
            probes = {"channel-quality": {"layers": list(dict.fromkeys(layers)), "metrics": {"qc": [row]}}}
        return Evidence(candidate, number, score, self.stderr, scene.costs, probes)

    def trained(self, candidate):
        before = self.trained(self.evidence[candidate.parent].candidate) if candidate.parent is not None else 0
        return before + candidate.epochs

    def play(self, method):
        while batch := method.ask():
            self.batches.append(batch)
            for candidate in batch:
                if candidate.parent is not None:
                    parent = self.evidence[candidate.parent].candidate.plan
                    assert candidate.plan.edits[: len(parent.edits)] == parent.edits
                self.evidence.append(self.answer(candidate))
                method.tell(self.evidence[-1])
        return self


def auto(arch, budget="macs<=50%", **options):
    return Auto(arch, limits_of(arch, budget), **{"epochs": 3, "tune_epochs": 2, **options})


def depth(arch):
    return sum(isinstance(module, Block) for module in arch.model.modules())


def shallow_is_best(arch):
    return 0.9 - 0.05 * depth(arch)


def deep_is_best(arch):
    return 0.2 + 0.05 * depth(arch)


def small_is_best(arch):
    return 0.9 - arch.example_input.shape[-1] / 100


def late_is_best(arch):
    """Accuracy by the share of parameters behind the reduction."""
    late = sum(p.numel() for n, p in arch.model.named_parameters() if n.startswith("two"))
    return 0.5 + 0.4 * late / sum(p.numel() for p in arch.model.parameters())

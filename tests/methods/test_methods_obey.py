"""Every method obeys what the user wants left as it is, on networks of several kinds, with made-up evidence."""

import json
import math
from functools import cache

import pytest
from auto_worlds import residual
from channel_worlds import limits_of, small

import convwright as cw
from convwright.cost.budget import costs_of
from convwright.methods import METHODS, Evidence, method_named

GROWING = ("greedy", "scaling")
OPTIONS = {"channel-search": {"trials": 4}, "random": {"trials": 3}, "pareto": {"points": 3}}
NETWORKS = {
    "residual": (
        residual,
        {
            "keep": "two.1.a",
            "ratio": {"one.*": (0.75, 1.25)},
            "divisor": {"two.0.a": 4},
            "blocks": ["one.1"],
            "resolution": "fixed",
        },
    ),
    "mobile": (
        lambda: small("mobile"),
        {"keep": "b.2", "ratio": {"head": (None, 1)}, "divisor": {"depthwise": 2}, "resolution": "fixed"},
    ),
}


@cache
def opened(network):
    made, given = NETWORKS[network]
    arch, constraints = made(), cw.Constraints(**given)
    return arch, constraints, constraints.bound(arch)


@cache
def changed(network, edits):
    """Return the network of a plan, made without constraints."""
    arch = opened(network)[0]
    return arch.apply(*cw.edits.plan.edits_of([json.loads(e) for e in edits], "it"), verify=False, importance="first")


def built(network, candidate):
    return changed(network, tuple(json.dumps(edit.to_dict()) for edit in candidate.plan.edits))


def observed(candidate, arch):
    """Return made-up probes: all kernels are middling, the last blocks are in conflict."""
    probes = {}
    if "channel-quality" in candidate.probes:
        layers = [layer.name for layer in arch.layers if layer.kind in ("conv", "linear")]
        table = {"layers": layers, "metrics": {"qc": [[[0.3, 0.6]] * len(layers)] * max(1, candidate.epochs)}}
        probes["channel-quality"] = table
    if any("bundles" in name for name in candidate.probes):
        names = [block.name for block in arch.blocks]
        times = [{"event": "epoch" if n else "start", "epoch": n, "step": n} for n in range(candidate.epochs + 1)]
        probes["bundles"] = {"own": {n: i for i, n in enumerate(names)}, "times": times,
                             "excess": [[0.2] * len(names) for _ in times]}  # fmt: skip
    if "saliency" in candidate.probes:
        probes["saliency"] = {"groups": {g.name: [1 + i % 7 for i in range(g.units)] for g in arch.free_groups}}
    if "block-losses" in candidate.probes:
        worth = {block.name: 0.1 * i for i, block in enumerate(arch.blocks)}
        probes["block-losses"] = {"blocks": worth, "curve": [[0, 0], [100, 1.0]], "loss": 1.0}
    return json.loads(json.dumps(probes))


def play(method, network, most=80):
    """Return the candidates of a search whose evidence favours what is small."""
    asked, full = [], costs_of(opened(network)[0].profile())["macs"]
    while (batch := method.ask()) and len(asked) < most:
        for candidate in batch:
            after = built(network, candidate)
            costs = costs_of(after.profile())
            score = 0.5 + 0.1 * math.tanh(costs["macs"] / full) + 0.001 * candidate.epochs
            evidence = Evidence(candidate, len(asked), score, 0.01, costs, observed(candidate, after))
            asked.append(candidate)
            method.tell(evidence)
    return asked


def check(network, candidate):
    """See by shapes alone whether a candidate obeys."""
    arch, constraints, bound = opened(network)
    after = built(network, candidate)
    assert after.example_input.shape == arch.example_input.shape
    before, now = arch.model.state_dict(), after.model.state_dict()
    for layer in arch.layers:
        if any(layer.name.startswith(name) for name in constraints.keep):
            kept = {name: tensor.shape for name, tensor in before.items() if name.startswith(f"{layer.name}.")}
            assert {name: now[name].shape for name in kept} == kept
    for block in arch.blocks:
        if constraints.keeps_block(block.name):
            assert any(name.startswith(f"{block.name}.") for name in now)
    there = {group.name: group for group in after.groups}
    for group in bound.free_groups:
        size = there[group.name].size if group.name in there else group.size
        if size != group.size:
            assert group.bounds.least <= size <= group.bounds.most
            assert not group.bounds.divisor or size % group.bounds.divisor == 0


SLOW = ("auto", "pareto", "phased")  # on the larger network
CASES = [
    pytest.param(name, network, marks=[] if (network == "mobile") == (name in SLOW) else pytest.mark.breadth)
    for name in sorted(METHODS)
    for network in NETWORKS
    if (name, network) != ("kernel", "mobile")  # which has no convolution whose operator could change
]


@pytest.mark.parametrize(("name", "network"), CASES)
def test_every_candidate_obeys(name, network):
    _, _, bound = opened(network)
    limits = limits_of(bound, "macs<=130%" if name in GROWING else "macs<=85%")
    method = method_named(name)(bound, limits, epochs=2, tune_epochs=1, **OPTIONS.get(name, {}))
    asked = play(method, network)
    assert any(candidate.plan.edits for candidate in asked)
    for candidate in asked:
        check(network, candidate)

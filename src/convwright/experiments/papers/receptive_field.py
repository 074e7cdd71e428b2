"""``3drf``: both levels of the 3D-receptive-field method, counted on the usual networks and trained on narrow ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from convwright.experiments.designs.design import Design, OptimizedKernels, Organized, RollingEverywhere
from convwright.experiments.papers.small_networks import cifar_recipe
from convwright.experiments.row import Row, Size, experiment, seeds_of
from convwright.methods.receptive_field.layer_operators import Menu
from convwright.methods.receptive_field.unit_moves import Rule

_NETWORKS: Mapping[str, str] = {
    "mobilenet": "zoo:mobilenet-v1",
    "vgg16": "zoo:vgg16-bn",
    "resnet18": "zoo:resnet18_cifar",
    "resnet34": "zoo:resnet34_cifar",
    "resnet50": "zoo:resnet50_cifar",
}

# What a reader worked out by hand from the published descriptions, without this package: units of each stage, Q,
# parameters and millions of MACs before and after the organizer.
_Line = tuple[tuple[int, ...], str, int, str]
_ORGANIZED: Mapping[str, tuple[_Line, _Line]] = {
    "mobilenet": (((1, 2, 2, 6, 2), "2.264", 3217226, "46.35"), ((1, 2, 5, 3, 2), "3.072", 2617418, "46.58")),
    "vgg16": (((2, 2, 3, 3, 3), "2.888", 14728266, "313.2"), ((1, 5, 4, 2, 1), "3.481", 8642826, "369.8")),
    "resnet18": (((2, 2, 2, 2), "2.217", 11173962, "555.4"), ((1, 4, 2, 1), "2.631", 6970186, "555.4")),
    "resnet34": (((3, 4, 6, 3), "3.158", 21282122, "1159.4"), ((7, 4, 3, 2), "3.877", 13315402, "1159.4")),
    "resnet50": (((3, 4, 6, 3), "2.299", 23520842, "1297.8"), ((1, 8, 4, 3), "2.842", 22265930, "1297.8")),
}

# The same of the operators alone: number of groups -> parameters and millions of MACs ("": not worked out). One group
# is depthwise + pointwise; MobileNet has that already.
_ROLLING: Mapping[str, Mapping[int, tuple[int, str]]] = {
    "mobilenet": {2: (1647434, "24.33"), 4: (862538, "13.32"), 8: (470090, "7.82")},
    "vgg16": {1: (1686794, "38.0"), 2: (869642, "20.7"), 4: (461066, "12.1"), 8: (256778, "7.7")},
    "resnet18": {1: (5622602, "289.2"), 2: (5274442, "272.4"), 4: (5100362, "264.0"), 8: (5013322, "259.8")},
    "resnet34": {1: (11260106, ""), 2: (10631370, ""), 4: (10317002, ""), 8: (10159818, "")},
    "resnet50": {1: (13498826, "765.0"), 2: (12870090, "731.5"), 4: (12555722, "714.7"), 8: (12398538, "706.3")},
}

# And of both levels: network, groups, parameters.
_BOTH = (
    ("mobilenet", 2, 1342538),
    ("mobilenet", 4, 705098),
    ("resnet18", 2, 3051978),
    ("resnet34", 2, 6414538),
    ("resnet50", 2, 12240586),
)


def counted_rows() -> Iterator[Row]:
    """Yield the rows that are only counted: the organizer's networks, the operators alone, and both."""
    for name, (before, after) in _ORGANIZED.items():
        yield Row(f"{name}-count", _NETWORKS[name], "", None, paper=_expected(before))
        yield Row(f"{name}-organizer-count", _NETWORKS[name], "", None, design=(Organized(),), paper=_expected(after))
    for name, settings in _ROLLING.items():
        for groups, (params, mmacs) in settings.items():
            yield _rolling_row(name, groups, (), {"params": params, **({"mmacs": mmacs} if mmacs else {})})
    for name, groups, params in _BOTH:
        yield _rolling_row(name, groups, (Organized(),), {"params": params})


def _expected(line: _Line) -> dict[str, Any]:
    units, q, params, mmacs = line
    return {"units": list(units), "q_sum": q, "params": params, "mmacs": mmacs}


def _rolling_row(name: str, groups: int, before: tuple[Design, ...], paper: Mapping[str, Any]) -> Row:
    levels = "both" if before else "kernels"
    design = (*before, RollingEverywhere(groups, bias="depthwise"))
    return Row(f"{name}-{levels}-g{groups}-count", _NETWORKS[name], "", None, design=design, paper=paper)


# ------------------------------------------------------------------ trained

_EPOCHS = {"quick": 1, "standard": 4, "full": 200}
# Network -> width where it is not the full size, and precision: depthwise convolutions are twice as fast in float32 on
# the processors at hand, dense ones are slower.
_TRAINED: Mapping[str, tuple[float, str]] = {
    "mobilenet": (0.25, "fp32"),
    "resnet18": (0.125, "bf16"),
    "vgg16": (0.125, "bf16"),
}
_MENU = Menu(operators=("dw_separable", "dw_rpw", "rpw"))
_KERNELS = OptimizedKernels(_MENU)
_POSITIONS = Organized(Rule("spend", score="positions"), budget="macs<=100%")
_LOG = Organized(Rule("spend", score="log"), budget="macs<=100%")

# Name, design, note. The first is the control; the last three go beyond the reconstructed rule.
_LEVELS: tuple[tuple[str, tuple[Design, ...], str], ...] = (
    ("before", (), "the network as it is"),
    ("organizer", (Organized(),), "stage level: most Q by moves of one unit, at most 120 % of the MACs"),
    ("kernels", (_KERNELS,), "kernel level: the cheapest (depthwise +) rolling pointwise operators that see as much"),
    ("both", (Organized(), _KERNELS), "both levels"),
    ("log", (_LOG,), "ours: the sum of logarithms as Q, at the MACs of the original"),
    (
        "log-35",
        (_LOG, OptimizedKernels(_MENU, budget="params<=35%")),
        "ours: the same, then operators that are just cheap enough for 35 % of the parameters",
    ),
    ("positions", (_POSITIONS,), "ours: the mean logarithm over positions as Q, at the MACs of the original"),
)


# Only these of VGG16: it was added after the first rows of `3drf-rank` had shown, on its plain family, that accuracy
# goes with the units of the first stage. It tells what the rules are worth where that was found, and the other two
# whether it carries over. Likewise the rows "log" and "log-35" were added after one seed of the others.
_OF_VGG = ("before", "organizer", "log", "log-35", "positions")


@experiment(
    "3drf",
    title="The 3D-receptive-field organizer and kernel optimizer: counts, and narrow networks on CIFAR-10",
    source="Wang, Feng, Peng and Ding 2021 (arXiv 2009.05236): reconstructed from abstract, summary and related code; "
    "the paper claims up to +5.47 % accuracy and up to -65.38 % parameters, its tables could not be obtained; the "
    "expected counts were worked out by hand",
)
def three_d_receptive_field(size: Size) -> tuple[Row, ...]:
    """Return the counted rows, and per network its levels, trained alike."""
    fields: dict[str, Any] = {"max_steps": 40} if size == "quick" else {}
    full = size == "full"
    trained = (
        Row(
            f"{name}-{level}",
            _NETWORKS[name],
            "cifar10",
            cifar_recipe(_EPOCHS[size], precision="bf16" if full else precision, **fields),
            seeds_of(size),
            {} if full else {"width": width},
            design=design,
            note=note,
            control="" if level == "before" else f"{name}-before",
        )
        for name, (width, precision) in _TRAINED.items()
        for level, design, note in _LEVELS
        if name != "vgg16" or level in _OF_VGG
    )
    return (*counted_rows(), *trained)

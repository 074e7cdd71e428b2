"""Other operators in the place of layers: separable convolutions, a head that pools, blurred sub-sampling, gates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from convwright.architecture import Architecture, Layer
from convwright.architecture.blocks import branch_ends
from convwright.architecture.capture.graph import argument, module_class
from convwright.edits import Replace
from convwright.edits.operators.blurpool import BlurOrder, Padding
from convwright.edits.operators.convolutions import Init
from convwright.edits.operators.squeeze_excite import Gate
from convwright.training.techniques.structural import Structural, applied_by, modules_called
from convwright.training.techniques.technique import Card, technique


@technique(
    "depthwise_separable",
    Card(
        does="Replaces each dense convolution larger than 1x1 by a depthwise one of the same kernel and a 1x1 one.",
        cost="Fewer parameters and multiply-accumulates: of a 3x3 layer about 1/9 + 1/channels is left. The function "
        "changes; training makes up for it.",
        helps="Parameter budgets. The paper's 1.5K-parameter MNIST network is made of them.",
        hurts="Time: at equal parameters such networks were slower on CPUs than 3x3 ones, as depthwise layers move "
        "much memory for little arithmetic. The first layer reads too few channels to gain.",
        source="Sifre 2014; Howard et al. 2017; the operator dw_separable.",
    ),
)
class DepthwiseSeparable(Structural):
    """Options of depthwise separable convolutions.

    Attributes:
        first: Whether the first convolution is replaced, too.
        init: How the new layers begin: `least_squares` from the old weights, or `fresh`.

    Examples:
        >>> from convwright.techniques import depthwise_separable
        >>> len(depthwise_separable("zoo:resnet20").plan.edits)
        18
    """

    nothing: ClassVar[str] = "it has no dense convolution larger than 1x1 behind the first"

    first: bool = False
    init: Init = "least_squares"

    def candidates(self, arch: Architecture) -> Iterator[Replace | tuple[str, str]]:
        """Yield the dense convolutions larger than 1x1."""
        for number, (layer, conv) in enumerate(modules_called(arch, nn.Conv2d)):
            if conv.groups > 1 or max(conv.kernel_size) == 1 or (number == 0 and not self.first):
                continue
            yield Replace(layer.name, "dw_separable", init=self.init)


depthwise_separable = applied_by(DepthwiseSeparable, "with depthwise separable convolutions for dense ones")


@technique(
    "global_pool",
    Card(
        does="Puts global average pooling before a head that flattens the last map; the first linear layer then reads "
        "channels instead of channels times positions.",
        cost="None: the head gets smaller by the number of positions. The function changes; training makes up for it.",
        helps="Small networks whose parameters lie mostly in the head; networks that shall take any resolution.",
        hurts="Where the position of a feature matters (digits at a fixed place) and the last map is large. Hidden "
        "layers of the head stay as wide as they were.",
        source="Lin et al. 2014 (Network in Network); the operator global_pool.",
    ),
)
class GlobalPool(Structural):
    """Options of global average pooling.

    Attributes:
        init: How the new layer begins: `least_squares` from the old weights, or `fresh`.

    Examples:
        >>> from convwright.techniques import global_pool
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))
        >>> global_pool(net, (1, 1, 8, 8)).model[2]
        PooledLinear(in_features=4, out_features=10, bias=True)
    """

    nothing: ClassVar[str] = "no linear layer reads a flattened map; the head pools already"

    init: Init = "least_squares"

    def candidates(self, arch: Architecture) -> Iterator[Replace | tuple[str, str]]:
        """Yield the linear layers that read a flattened map of more than one position."""
        for layer, _ in modules_called(arch, nn.Linear):
            if len(positions := arch.flow.flattened_map(layer)[2:]) and max(positions) > 1:
                yield Replace(layer.name, "global_pool", init=self.init)


global_pool = applied_by(GlobalPool, "whose head pools the map that it flattened")


@technique(
    "blurpool",
    Card(
        does="Blurs with a fixed binomial filter where the network sub-samples: a max pool becomes a dense maximum and "
        "a strided blur, a strided convolution reads a blurred map (or runs densely and is blurred).",
        cost="No parameters. One depthwise convolution per site; order: after runs strided convolutions on four times "
        "as many positions.",
        helps="Small networks with max pools: the paper's best single technique on its 1.5K-parameter network "
        "(99.21 % on MNIST; 98.35 % without, by another optimizer). Scores change less when the image is shifted.",
        hurts="Slower on CPUs than the pool alone. Nothing to do where the network does not sub-sample.",
        source="Zhang 2019; MosaicML Composer's BlurPool; timm.layers.BlurPool2d.",
    ),
)
class BlurPool(Structural):
    """Options of blur pooling.

    Attributes:
        kernel: Size of the blur, 2 to 7.
        padding: Beyond the border: `constant` (zeros), `reflect` or `replicate`.
        max_pools: Whether max pools are replaced.
        convolutions: Whether strided convolutions are.
        order: Of strided convolutions: the blur `before` them (cheap) or `after` them, where they run at stride 1.
        min_channels: Strided convolutions that read fewer channels stay.

    Examples:
        >>> from convwright.techniques import blurpool
        >>> len(blurpool("zoo:mnist-m3").plan.edits)
        2
    """

    nothing: ClassVar[str] = "it has no max pool and no strided convolution of so many channels"

    kernel: int = Field(3, ge=2, le=7)
    padding: Padding = "constant"
    max_pools: bool = True
    convolutions: bool = True
    order: BlurOrder = "before"
    min_channels: int = Field(16, ge=1)

    def candidates(self, arch: Architecture) -> Iterator[Replace | tuple[str, str]]:
        """Yield max pools and strided convolutions; those that are blurred already are left alone."""
        strided = {layer.name: conv for layer, conv in modules_called(arch, nn.Conv2d) if max(conv.stride) > 1}
        for layer in arch.layers:
            pool = self.max_pools and layer.operator == "max_pool2d" and _sub_samples(arch, layer)
            conv = strided.get(layer.name) if self.convolutions else None
            if not pool and (conv is None or conv.in_channels < self.min_channels):
                continue
            if _blurred(arch, layer):
                yield layer.name, "it is blurred already"
            else:
                order = "after" if pool else self.order
                yield Replace(layer.name, "blurpool", kernel=self.kernel, padding=self.padding, order=order)


blurpool = applied_by(BlurPool, "that blurs where it sub-samples")


def _sub_samples(arch: Architecture, layer: Layer) -> bool:
    """Whether a pool leaves positions out; torch's default is the kernel as stride."""
    node = arch.flow.nodes[arch.flow.place[layer.node]]
    stride = argument(node, "stride") or argument(node, "kernel_size")
    return any(s > 1 for s in (stride if isinstance(stride, list | tuple) else [stride]))


def _blurred(arch: Architecture, layer: Layer) -> bool:
    """Whether a blur stands before or behind a layer."""
    flow = arch.flow
    position = flow.place[layer.node]
    around = [*flow.feeds[position], *flow.users[position]]
    return any(module_class(flow.nodes[n]).startswith("BlurPool") for n in around)


Per = Literal["convolution", "block"]


@technique(
    "squeeze_excite",
    Card(
        does="Multiplies each channel by a gate between 0 and 1, computed from the means of all channels by two small "
        "layers. At insertion the network computes what it did.",
        cost="2 * latent * channels parameters per gate, few multiply-accumulates, but several small operators one "
        "after the other, which take their time.",
        helps="Networks that underfit. The paper's 1.5K-parameter network reached 99.18 % on MNIST with it, with 460 "
        "parameters more (98.35 % without, by another optimizer).",
        hurts="Tight parameter budgets: each gate costs what a wider layer could use.",
        source="Hu et al. 2018; MosaicML Composer's SqueezeExcite (latent_channels, bias: false); "
        "torchvision.ops.SqueezeExcitation.",
    ),
)
class SqueezeExcite(Structural):
    """Options of squeeze-and-excitation.

    Attributes:
        per: One gate behind each `convolution`, or one at the end of the branch of each residual `block`.
        ratio: Channels of the bottleneck as a part of the layer's.
        latent_channels: The same as a number; 0: by the ratio.
        bias: Whether the gate's layers have biases.
        gate: `sigmoid` or `hard_sigmoid`.
        min_channels: Convolutions that read or give fewer channels, and blocks that give fewer, get none.

    Examples:
        >>> from convwright.techniques import squeeze_excite
        >>> paper = squeeze_excite("zoo:mnist-m3", latent_channels=2, min_channels=5, bias=False)
        >>> len(paper.plan.edits), paper.changes[0].exact
        (10, True)
    """

    nothing: ClassVar[str] = "no convolution has so many channels, or the network has no such block"

    per: Per = "convolution"
    ratio: float = Field(0.25, gt=0, le=1)
    latent_channels: int = Field(0, ge=0)
    bias: bool = True
    gate: Gate = "sigmoid"
    min_channels: int = Field(16, ge=1)

    def candidates(self, arch: Architecture) -> Iterator[Replace | tuple[str, str]]:
        """Yield convolutions of enough channels, or the ends of the residual branches."""
        return self._convolutions(arch) if self.per == "convolution" else self._blocks(arch)

    def _convolutions(self, arch: Architecture) -> Iterator[Replace | tuple[str, str]]:
        for layer, conv in modules_called(arch, nn.Conv2d):
            if min(conv.in_channels, conv.out_channels) < self.min_channels:
                continue
            if max(layer.output_shape[2:]) == 1:
                yield layer.name, "its map is a single position, so it is a gate or a head itself"
            elif _gated(arch, layer.name):
                yield layer.name, "a gate stands behind it already"
            else:
                yield self._edit(layer.name)

    def _blocks(self, arch: Architecture) -> Iterator[Replace | tuple[str, str]]:
        blocks = {block.name: block for block in arch.blocks}
        done = set()
        for end in branch_ends(arch):
            block = blocks[end.block]
            if end.block in done or arch.flow.width(arch.flow.place[block.join]) < self.min_channels:
                continue
            done.add(end.block)
            operators = {arch.layer(name).operator for name in block.branch}
            if operators & {"sigmoid", "hardsigmoid"}:
                yield end.block, "its branch has a gate already"
            elif not end.module:
                yield end.block, end.reason
            elif not isinstance(last := arch.model.get_submodule(end.module), nn.Conv2d | nn.BatchNorm2d):
                yield end.block, f"its branch ends in a {type(last).__name__}, not in a Conv2d or BatchNorm2d"
            else:
                yield self._edit(end.module)

    def _edit(self, target: str) -> Replace:
        return Replace(
            target, "squeeze_excite", ratio=self.ratio, gate=self.gate, latent_channels=self.latent_channels,
            bias=self.bias,
        )  # fmt: skip


squeeze_excite = applied_by(SqueezeExcite, "with gates on its channels, computing what it did")


def _gated(arch: Architecture, layer: str) -> bool:
    """Whether a layer is one that this technique has put a gate behind."""
    parent, _, child = layer.rpartition(".")
    return child == "layer" and isinstance(getattr(arch.model.get_submodule(parent), "excite", None), nn.Module)

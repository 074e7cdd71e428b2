"""Deployed networks: fewer operators, the same function to 1e-10; what cannot be folded stays as it is."""

import pytest
import torch
from torch import nn

from convwright.architecture import read
from convwright.cost.deployed import deployed, reparametrised, said
from convwright.edits import scale_widths
from convwright.export.programs import onnx_program


def settled(model, seed=0):
    """Give batch norms the statistics and weights of a trained network."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.uniform_(-1.5, 1.5)
                    module.bias.normal_()
    return model.eval()


def norms(model):
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def apart(arch, done):
    image = torch.randn(3, *arch.example_input.shape[1:], dtype=torch.float64)
    with torch.no_grad():
        one, two = arch.model.eval().double()(image), done.model.double()(image)
    arch.model.float()
    return float((one - two).abs().max() / one.abs().max())


class Shared(nn.Module):
    """One convolution for two norms, one that is read twice, and one that a norm and nothing else reads."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 7, 3, bias=False), nn.BatchNorm2d(7)
        self.shared, self.one, self.two = nn.Conv2d(7, 7, 3, padding=1), nn.BatchNorm2d(7), nn.BatchNorm2d(7)
        self.twice, self.twice_bn = nn.Conv2d(7, 7, 1), nn.BatchNorm2d(7)

    def forward(self, x):
        x = self.stem_bn(self.stem(x))
        x = self.one(self.shared(x)) + self.two(self.shared(x * 2))
        read_twice = self.twice(x)
        return self.twice_bn(read_twice) + read_twice


def plain(kind):
    last = {"affine": nn.BatchNorm2d(11, affine=False), "transposed": nn.BatchNorm2d(11)}.get(kind, nn.BatchNorm2d(11))
    between = {
        "groups": nn.Conv2d(22, 11, 3, groups=11, dilation=2, bias=False),
        "transposed": nn.ConvTranspose2d(22, 11, 3, stride=2, output_padding=1),
    }.get(kind, nn.Conv2d(22, 11, 3))
    layers = [
        nn.Conv2d(3, 22, 3, stride=2),
        nn.BatchNorm2d(22),
        nn.ReLU(),
        between,
        last,
        nn.Flatten(),
        nn.LazyLinear(5),
    ]
    model = nn.Sequential(*layers, nn.BatchNorm1d(5))
    model.eval()(torch.zeros(1, 3, 17, 17))
    return model


@pytest.mark.parametrize("kind", ["plain", "groups", "transposed", "affine"])
def test_batch_norms_go_into_the_weights_before_them(kind):
    arch = read(settled(plain(kind)), torch.randn(2, 3, 17, 17))
    done = deployed(arch)
    assert norms(done.model) == 0
    assert len(done.norms) == 3
    assert norms(arch.model) == 3  # the network itself stays as it is
    assert next(done.model.parameters()).dtype == torch.float32


def test_what_others_read_or_call_stays():
    arch = read(settled(Shared()), torch.randn(2, 3, 9, 9))
    done = deployed(arch)
    assert done.norms == ("stem_bn",)
    assert apart(arch, done) < 1e-6


def test_hooked_and_normalised_weights_stay():
    model = settled(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 7, 3), nn.BatchNorm2d(7)))
    model[0].register_forward_hook(lambda *_: None)
    torch.nn.utils.parametrizations.weight_norm(model[2])
    arch = read(model, torch.randn(2, 3, 9, 9))
    assert deployed(arch).norms == ()


@pytest.mark.parametrize(
    "name",
    ["repvgg_a0", *(pytest.param(each, marks=pytest.mark.breadth) for each in ("mobileone_s0", "fastvit_t8"))],
)
@pytest.mark.parametrize("half", [False, True])
def test_blocks_of_timm_become_one_convolution(name, half):
    timm = pytest.importorskip("timm")
    arch = read(settled(timm.create_model(name, num_classes=5)), "1x3x32x32")
    if half and name != "fastvit_t8":  # of which an edit leaves a size that only the merge reads
        arch = arch.apply(*scale_widths(arch, 0.5), verify=False)
    done = deployed(arch)
    assert done.blocks
    assert not done.left
    assert norms(done.model) == 0
    assert "blocks are one convolution each" in said(done)[0]
    assert len(read(done.model, arch.inputs).layers) < len(arch.layers)


class Odd(nn.Module):
    """A block whose own merge is wrong, or breaks."""

    def __init__(self, broken):
        super().__init__()
        self.conv, self.broken = nn.Conv2d(3, 3, 1), broken

    def forward(self, x):
        return self.conv(x) + x

    def switch_to_deploy(self):
        if self.broken:
            raise ValueError("no")
        self.conv = nn.Conv2d(3, 3, 1)


@pytest.mark.parametrize(("broken", "why"), [(True, "ValueError: no"), (False, "they compute something else")])
def test_a_merge_that_is_wrong_is_not_taken(broken, why):
    model = nn.Sequential(Odd(broken)).eval()
    done = reparametrised(model, torch.randn(1, 3, 5, 5))
    assert done.model is model
    assert why in done.left
    assert "keep their branches" in said(done)[0]


def test_an_exported_file_has_no_branches():
    pytest.importorskip("onnxscript")
    onnx, timm = pytest.importorskip("onnx"), pytest.importorskip("timm")
    arch = read(settled(timm.create_model("repvgg_a0", num_classes=5)), "1x3x32x32")
    content, _ = onnx_program(deployed(arch).model, arch.example_input, dynamic=False)
    kinds = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert kinds.count("Conv") == 22
    assert "BatchNormalization" not in kinds

"""Operators with options by place and by keyword: the program computes what the network does, or says why not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convwright.export import ExportError, python_source

EXPRESSIONS = (
    "x.var(1, keepdim=True, unbiased=False)",
    "x.var(dim=1, correction=0)",
    "torch.var(x, 1, False)",
    "x.var()",
    "torch.std(x, dim=(2, 3), correction=0, keepdim=True)",
    "torch.var_mean(x, dim=1, unbiased=False, keepdim=True)[0]",
    "x * F.adaptive_max_pool2d(x, 1)",
    "x * F.adaptive_max_pool2d(x, (1, 1), return_indices=True)[0]",
    "F.max_pool2d(x, 3, padding=1, return_indices=True)[0]",
    "F.max_pool2d(x, 2, stride=1, ceil_mode=True)",
    "F.avg_pool2d(x, 3, 2, 1, True, divisor_override=4)",
    "F.instance_norm(x)",
    "F.instance_norm(x, weight=x.mean((0, 2, 3)), eps=1e-3)",
    "F.layer_norm(x, (8, 8), eps=0.5)",
    "F.normalize(x, p=1.0, dim=(2, 3), eps=0.1)",
    "x.softmax(-1, dtype=torch.float64)",
    "F.hardtanh(x, min_val=-0.5, max_val=0.25)",
    "F.softplus(x, beta=2)",
    'F.gelu(x, approximate="tanh")',
    "F.softshrink(x, 0.2)",
    'F.interpolate(x, scale_factor=1.5, mode="bicubic", antialias=True)',
    'F.interpolate(x, size=(5, 7), mode="nearest-exact")',
    'F.pad(x, (1, 1, 2, 2), mode="reflect")',
    "F.unfold(x, 3, padding=1, stride=2)",
    'F.conv2d(x, x[0, :1, :3, :3].expand(4, 1, 3, 3), groups=4, padding="same")',
    "F.conv_transpose2d(x, x[0, :, :3, :3].unsqueeze(1), output_padding=1, stride=2)",
    'F.grid_sample(x, torch.zeros(x.shape[0], 5, 5, 2), align_corners=False, padding_mode="border")',
    "F.scaled_dot_product_attention(x, x, x, is_causal=True)",
    "x.sum(dtype=torch.float64) + x",
    "x.amin(dim=(1, 2), keepdim=True)",
    "x.max(1, keepdim=True)[0]",
    "torch.max(x, x * 2)",
    "x.median(1, keepdim=True).values",
    "x.topk(2, dim=1, largest=False)[0]",
    "x.logsumexp(1, keepdim=True)",
    "x.norm(1, 1)",
    "torch.linalg.vector_norm(x, 2, dim=1, keepdim=True)",
    "x.clamp(max=0.1)",
    "torch.where(x > 0, -1.0, x)",
    "torch.sub(x, x.mean(), alpha=2)",
    "torch.rsub(x, 1, alpha=2)",
    "(-2.0) ** (x > 0)",
    'torch.div(x, 0.3, rounding_mode="floor")',
    "torch.matmul(x, x.mT)",
    'torch.einsum("bchw,bdhw->bcd", x, x)',
    "torch.baddbmm(x[:, 0], x[:, 1], x[:, 2], beta=0.5, alpha=2)",
    "torch.addcmul(x, x, x, value=0.3)",
    "torch.cat(x.tensor_split(3, dim=1), 1)",
    "x.rot90(1, (2, 3))",
    "x.repeat_interleave(2, dim=1)",
    "x[:, 1:3, ::2, -1]",
    "x.gather(1, torch.zeros(x.shape[0], 1, 8, 8, dtype=torch.long))",
    "x.diagonal(dim1=2, dim2=3)",
    "x + torch.linspace(-1, 1, steps=8)",
    "x / x.shape[0] * x.shape[0]",
    "x - (x.shape[0] + 1)",
    "torch.cdist(x.flatten(2), x.flatten(2), p=1.0)",
    "F.one_hot((x[:, 0, 0] > 0).long(), num_classes=3)",
    "F.bilinear(x, x, x[0, :3, :, :].clone())",
    "torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0]), right=True)",
    "~(x > 0)",
    "torch.tensordot(x, x[0, 0], dims=([3], [0]))",
    'torch.meshgrid(x[0, 0, 0], x[0, 0, 1], indexing="xy")[0] + x',
    'torch.fft.rfft2(x, norm="ortho")',
    "x.log()",
    "x.clone().clamp_(min=0.0).mul_(2).add_(x, alpha=0.5)",
)


class Expression(nn.Module):
    """A convolution, and what an expression makes of its output ``x``."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.conv, self.text = nn.Conv2d(3, 4, 3, padding=1), text

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = eval(self.text, {"torch": torch, "F": F, "x": self.conv(x)})
        return result


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_operators(text: str) -> None:
    made = python_source(Expression(text).eval(), torch.zeros(1, 3, 8, 8))
    assert made.difference <= 1e-6


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("x.var(1, keepdim=True, unbiased=False)", "x.var(dim=1, unbiased=False, keepdim=True)"),
        ("x * F.adaptive_max_pool2d(x, 1)", "F.adaptive_max_pool2d(x, (1, 1), return_indices=True)"),
        ("x.clamp(max=0.1)", "x.clamp(max=0.1)"),
        ("x - (x.shape[0] + 1)", "x - (x.shape[0] + 1)"),
    ],
)
def test_as_a_person_would_write_it(text: str, written: str) -> None:
    assert written in python_source(Expression(text).eval(), torch.zeros(1, 3, 8, 8)).source.text


def test_a_network_that_draws_numbers_is_refused_with_the_reason() -> None:
    with pytest.raises(ExportError, match="returns something else each time"):
        python_source(Expression("x + torch.rand(1)").eval(), torch.zeros(1, 3, 8, 8))

"""An edited network says the same after export to ONNX, where ONNX Runtime is installed."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from networks import Mobile, Residual, Shuffled
from torch import nn

from convwright.architecture import read
from convwright.edits import Kernel, scale_widths

SHAPE = (3, 11, 13)


@pytest.mark.slow
@pytest.mark.parametrize("network", [Residual, Mobile, Shuffled], ids=lambda n: n.__name__)
@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_outputs_agree_after_export(network: type[nn.Module], ratio: float, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        arch = read(network(), SHAPE)
    kernel = next(layer.name for layer in arch.layers if layer.kind == "conv")
    edited = arch.apply(*scale_widths(arch, ratio), Kernel(kernel, 5)).model.eval()
    x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(3))
    file = tmp_path / "edited.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(edited, (x,), str(file), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = edited(x)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)

"""The table of structures from public reports: what is read, changed, said and exported of each. It is a law."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import convwright as cw
from convwright.cost import count_by_torch
from convwright.diagnose.doctor import diagnose
from convwright.edits.surgery import tensors_in
from convwright.export import python_source
from convwright.export.programs import onnx_program, onnx_runner, pt2_program
from convwright.export.registry import difference

from . import networks

IN, OUT = "the network's input", "the network's output"


@dataclass(frozen=True)
class Case:
    """What is right for one network.

    Attributes:
        shape: of one input; with the batch axis where it has five axes. Of several inputs a tuple, or a dictionary.
        frozen: frozen group -> part of the reason.
        refused: parts of the reasons for which a change of a free group may be refused.
        inexact: part of the note of changes that may be inexact; empty: all are exact.
        advice: part of what doctor advises; empty: nothing about widths.
        uncounted: operators that PyTorch's counter may know and convwright names as not counted.
        one_batch: it takes other steps for other batch sizes, so that an export takes one.
        onnx: part of the reason why ONNX is refused.
    """

    shape: Any
    frozen: dict[str, str] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    inexact: str = ""
    advice: str = ""
    uncounted: bool = False
    one_batch: bool = False
    onnx: str = ""


OTHERS_OUT = {"b": OUT, "cls": OUT, "box": OUT}
CASES = {
    "Shuffle": Case((3, 18, 22), {"input": IN, "fc": OUT}, refused=("Change the layer as a whole",)),
    "UNet": Case((3, 21, 27), {"input": IN, "out": OUT}),
    "Recurrent": Case((1, 16, 29), {"fc": OUT}),
    "GroupedBottleneck": Case((3, 17, 19), {"input": IN, "fc": OUT}),
    "Deformable": Case(
        (3, 13, 15),
        {"input": IN, "offset": "follows from the kernel", "mask": "(networks.py", "fc": OUT},
        uncounted=True,
    ),
    "Gated": Case((6, 31), {"input": IN, "layer.4": OUT}),
    "Style": Case((3, 19, 23), {"input": IN, "out": OUT}),
    "TwoInputs": Case(((3, 16, 20), (3, 16, 20)), {"input": IN, "out": OUT}),
    "Exchange": Case((3, 18, 26), {"input": IN, "out": OUT}),
    "PaddedShortcut": Case(
        (3, 18, 22),
        {"input": IN, "stem": "padded by a constant", "blocks.1.pw[10:16]": "padded by a constant", "fc": OUT},
        advice="1x1 convolution on the shortcut",
    ),
    "Matting": Case((3, 16, 20), {"input": IN, "out": OUT}),
    "Einsum": Case((3, 13, 11), {"input": IN, "b": OUT}, inexact="einsum in the network itself"),  # c**-0.5 by x.shape
    "DynamicKernel": Case(
        (3, 13, 15),
        {"input": IN, "a": "computed weight hides", "fc": OUT},
        inexact="softmax in d",
        advice="plain parameter",
        one_batch=True,
    ),
    "Reparametrised": Case((3, 17, 21), {"input": IN, "fc": OUT}),
    "Unpooling": Case((3, 18, 22), {"input": IN, "out": OUT}),
    "Involution": Case((3, 13, 15), {"input": IN, "fc": OUT}),
    "Temporal": Case((5, 37), {"input": IN, "fc": OUT}),
    "Vocoder": Case((6, 19), {"input": IN}),
    "ConvLstm": Case((1, 4, 2, 11, 13), {"out": OUT, "enc.weight": "carries no channels"}, advice="enc.weight"),
    "DictOutput": Case((3, 20, 24), {"input": IN, **OTHERS_OUT}),
    "FocusSpp": Case((3, 24, 28), {"input": IN, "last": OUT}),
    "Fourier": Case((3, 12, 14), {"input": IN, "out.4": OUT}),
    "Halves": Case((3, 14, 16), {"input": IN, "out": OUT}, refused=("change these groups in proportion",)),
    "Diffusion": Case(
        (3, 16, 12),
        {"input": IN, "emb.0.weight": "carries no channels", "out": OUT},
        inexact="a statistic runs across these channels",
        advice="let a layer with weights make what enters",
        onnx=r"does not know scaled_dot_product_attention in the network itself \(networks.py:\d+ ",
    ),
    "BatchFlatten": Case((2, 8, 6), {"input": IN, "linear2": OUT}, one_batch=True),
    "DictInput": Case({"image": (3, 16, 18)}, {"input": IN, "fc": OUT}),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),  # the old hook is one of the structures
    pytest.mark.filterwarnings("ignore::convwright.InexactEditWarning"),  # notes are asserted instead
]
EXPORTED = [name for name in CASES if name not in ("TwoInputs", "DictInput")]  # the writers take one tensor


def reading(name: str) -> cw.Architecture:
    return cw.read(getattr(networks, name)().eval(), CASES[name].shape)


def changed(arch: cw.Architecture, edit: cw.Width, refused: tuple[str, ...]) -> cw.Architecture | None:
    """Apply an edit; None if it is refused for one of the reasons that are true."""
    try:
        return arch.apply(edit)
    except cw.EditError as error:
        if not any(words in str(error) for words in refused):
            raise
        return None


@pytest.mark.parametrize("name", CASES)
def test_read_with_the_true_reasons(name: str) -> None:
    case, arch = CASES[name], reading(name)
    reasons = {group.name: group.reason for group in arch.groups if group.frozen}
    assert reasons.keys() == case.frozen.keys()
    assert all(case.frozen[group] in reason for group, reason in reasons.items()), reasons
    costs = arch.profile()
    with sdpa_kernel(SDPBackend.MATH):
        counted = count_by_torch(arch.model, arch.inputs)
    assert costs.macs == counted or (case.uncounted and costs.uncounted)


@pytest.mark.parametrize("name", CASES)
def test_every_free_group_halved_doubled_and_grown_by_half(name: str) -> None:
    case, arch = CASES[name], reading(name)
    for group in arch.free_groups:
        sizes = {max(1, round(group.units * factor)) * group.step for factor in (0.5, 2, 1.5)} - {group.size}
        for size in sorted(sizes):
            new = changed(arch, cw.Width(group.name, size), case.refused)
            if new is None:
                continue
            change = new.changes[0]
            assert change.exact or (case.inexact and any(case.inexact in note for note in change.notes)), change
            assert change.macs[1] == new.profile().macs
            count = len(arch.example_input) if name == "BatchFlatten" else 2
            images = arch.inputs.map(lambda tensor, count=count: torch.randn(count, *tensor.shape[1:]))
            outputs = tensors_in(images.call(new.model.train()))
            sum(output.sum() for output in outputs).backward()


@pytest.mark.parametrize("name", CASES)
def test_doctor_says_what_helps(name: str) -> None:
    found, case = diagnose(reading(name)), CASES[name]
    about_widths = [text for text in found.advice if text.startswith("to change the width of")]
    assert {name for obstacle in found.frozen for name in obstacle.names} == case.frozen.keys()
    assert any(case.advice in text for text in about_widths) if case.advice else not about_widths


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_as_python_and_as_a_program(name: str) -> None:
    case, arch = CASES[name], reading(name)
    example = arch.example_input
    if name == "BatchFlatten":
        with pytest.raises(cw.ConvwrightError, match="takes other steps for other batch sizes"):
            python_source(arch.model, example)
        return
    with sdpa_kernel(SDPBackend.MATH):
        source = python_source(arch.model, example)
        program, dynamic = pt2_program(arch.model, example, dynamic=not case.one_batch)
    assert source.difference <= 1e-6 or case.one_batch
    assert difference(arch.model, program.module(), example, (1, 3) if dynamic else (1,)) <= 1e-5


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="the extra onnx is not installed")
@pytest.mark.parametrize("name", EXPORTED)
def test_exported_to_onnx(name: str) -> None:
    case, arch = CASES[name], reading(name)
    example = arch.example_input
    if case.onnx:
        with pytest.raises(cw.ConvwrightError, match=case.onnx):
            onnx_program(arch.model, example)
        return
    content, dynamic = onnx_program(arch.model, example, dynamic=not case.one_batch)
    assert difference(arch.model, onnx_runner(content), example, (1, 3) if dynamic else (1,)) <= 1e-4


def test_parts_that_move_together_change_as_a_whole() -> None:
    arch = reading("Shuffle")
    with pytest.raises(cw.EditError, match=r'such as Width\("stem", 52\)'):
        arch.apply(cw.Width("stem[0:4]", 8))
    new = arch.apply(cw.Width("stem", 52))
    assert new.changes[0].exact
    assert new.model.stem.out_channels == 52


def test_shares_of_a_shape_change_in_proportion() -> None:
    arch = reading("Halves")
    with pytest.raises(cw.EditError) as caught:
        arch.apply(cw.Width("a[0:10]", 16))
    named = re.findall(r'Width\("([^"]+)", (\d+)\)', str(caught.value))
    new = arch.apply(*[cw.Width(target, int(size)) for target, size in named])
    assert all(change.exact for change in new.changes)
    assert new.model.a.out_channels == 2 * arch.model.a.out_channels

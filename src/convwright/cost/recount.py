"""The independent count: torch's own counter, over the network as it really runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from convwright.architecture.capture.graph import in_mode
from convwright.architecture.capture.pytrees import Inputs

Run = Callable[[nn.Module, Inputs], object]

# torch has no formula for the CPU's fused attention, and would count it as nothing.
_FUSED_ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop}


def count_by_torch(model: nn.Module, example_input: Tensor | Inputs) -> int:
    """Count the multiply-accumulates of one sample with ``torch.utils.flop_counter``.

    Runs the forward pass in eval mode on empty (meta) weights, so it costs no arithmetic; a model that
    needs real values is run for real. Nothing of convwright's own reading is used: this is the proof
    of a budget.

    Args:
        model: the network; it is left as it was.
        example_input: a batch, shape (n, ...), or all that the network is called with; of one tensor only the first
            sample is run, unless the model refuses.

    Returns:
        Half of torch's FLOPs.
    """
    inputs = Inputs.of(example_input)
    first = inputs.map(lambda tensor: tensor[:1]) if inputs.one else inputs
    *attempts, last = itertools.product((first, inputs), (_run_empty, lambda model, sample: sample.call(model)))
    with unfused(), torch.no_grad():
        for sample, run in attempts:
            with suppress(Exception), in_mode(model, training=False):  # which also undoes what a run stored
                return _macs(run, model, sample)
        with in_mode(model, training=False):
            return _macs(last[1], model, last[0])


def _macs(run: Run, model: nn.Module, sample: Inputs) -> int:
    with FlopCounterMode(display=False, custom_mapping=_FUSED_ON_CPU) as counter:
        run(model, sample)
    return int(counter.get_total_flops()) // 2 // sample.batch


def _run_empty(model: nn.Module, sample: Inputs) -> object:
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    empty = {name: tensor.to("meta") for name, tensor in tensors}
    sample = sample.map(lambda tensor: tensor.to("meta"))
    return functional_call(model, empty, sample.args, dict(sample.kwargs))


@contextmanager
def unfused() -> Iterator[None]:
    """Do without the fused transformer kernels: torch's counter does not know them, and they do not look at widths."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)

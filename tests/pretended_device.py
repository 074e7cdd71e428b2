"""A device that is not there: tensors that say they lie on it, over real CPU data, and what mixes raises as on a GPU.

torch's PrivateUse1 with a backend in Python: modules move to it, factories make tensors on it, autograd runs on it. The
CPU computes. Raised are a CPU tensor (of one axis or more) beside one of the device, indices on the CPU, ``.numpy()``,
and every copy to the CPU but those that say so: `to_host`, a whole module that is moved, and what is written to a file.
Reading one number (``float``, ``bool``, ``item``) and ``tolist`` is allowed, as on a GPU, where it waits.
"""

import sys
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import Accelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor, library
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
ABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
_COPIES = ("aten::copy_", "aten::_to_copy", "aten::_copy_from", "aten::_copy_from_and_resize")
_ALLOWED = ("devices.py:to_host", "module.py:_apply", "torch.py:save_model", "serialization.py:_save")
_KERNELS: list[library.Library] = []  # held: what is collected takes its kernels along


class CopiedToHostError(RuntimeError):
    """Something was copied to the CPU where nothing says so."""


class OnDevice(Tensor):
    """Wraps `inner`, a tensor on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner, requires_grad=False):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        layout |= {"requires_grad": requires_grad, "device": _device()}
        with torch.inference_mode(False):
            return Tensor._make_wrapper_subclass(cls, inner.shape, **layout)

    def __init__(self, inner, requires_grad=False):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return _run(operator, *args, **(kwargs or {}))

    def __repr__(self):
        return f"OnDevice({self.inner!r})"

    def __reduce_ex__(self, protocol):  # a file holds plain tensors, whatever the device
        return self.inner.__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = copied = OnDevice(self.inner.clone(), self.requires_grad)
            copied.__dict__ |= {name: value for name, value in self.__dict__.items() if name == "_is_param"}
        return memo[id(self)]

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def data_ptr(self):
        return self.inner.data_ptr()

    def tolist(self):
        return self.inner.tolist()


def _device():
    return torch.device(NAME, 0)


def _run(operator, *args, **kwargs):
    name, tensors = operator._schema.name, [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, OnDevice)]
    to = kwargs.get("device")
    if fakes := [x for x in tensors if isinstance(x, FakeTensor)]:  # a tensor of a GPU would be no subclass
        mode = fakes[0].fake_mode

        def faked(value):
            return FakeTensor(mode, value.inner.to("meta"), _device()) if isinstance(value, OnDevice) else value

        with mode:
            return operator(*tree_map(faked, args), **tree_map(faked, kwargs))
    if name in _COPIES:
        target = args[1] if name.startswith("aten::_copy_from") else args[0]
        down = torch.device(to).type == "cpu" if to is not None else not isinstance(target, OnDevice)
        if here and down and not _allowed():
            raise CopiedToHostError(f"copied to the CPU by {operator}, and not by to_host")
    elif here and any(x.dim() and not isinstance(x, OnDevice) for x in tensors):
        raise RuntimeError(f"a tensor on the CPU meets one on the device in {operator}")
    plain = tree_map(_inner, args), tree_map(_inner, kwargs)
    if to is not None:
        plain[1]["device"] = torch.device(to).type if torch.device(to).type != NAME else "cpu"
    result = operator(*plain[0], **plain[1])
    returns = operator._schema.returns
    if args and isinstance(args[0], Tensor) and returns and returns[0].alias_info and returns[0].alias_info.is_write:
        return args[0]
    if to is not None and torch.device(to).type != NAME:
        return result
    return tree_map(lambda x: OnDevice(x) if isinstance(x, Tensor) else x, result)


def _inner(value):
    return value.inner if isinstance(value, OnDevice) else value


def _allowed():
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if f"{code.co_filename.rpartition('/')[2]}:{code.co_name}" in _ALLOWED:
            return True
        frame = frame.f_back
    return False


class _Module(backend_registration._DummyBackendModule if ABLE else object):
    """``torch.pretended``: what torch asks of a device's module."""

    on = False

    def is_available(self):
        return self.on

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device=0):
        return torch.zeros(8, dtype=torch.uint8)  # random numbers are the CPU's

    def set_rng_state(self, state, device=0):
        assert len(state) == 8

    def synchronize(self, device=None):
        return None


if ABLE:

    class _Hook(backend_registration._DummyPrivateUse1Hook):
        def is_available(self):
            return _Module.on


def register():
    """Bring the device about: before a first backward pass of the process, which counts the devices."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module(), _Hook())
    _KERNELS.append(library.Library("_", "IMPL"))
    _KERNELS[0].fallback(_run, "PrivateUse1")


class _Accelerator(Accelerator):
    def setup_device(self, device):
        assert device.type == NAME

    def teardown(self):
        """There is nothing to end."""

    @staticmethod
    def parse_devices(devices):
        return devices

    @staticmethod
    def get_parallel_devices(devices):
        return [_device()]

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return _Module.on

    @staticmethod
    def name():
        return NAME


@contextmanager
def pretended():
    """Yield the device; whatever asks for an accelerator gets it meanwhile."""

    from convwright.training import preflight

    def fabric(accelerator="auto", devices=1, precision="32-true"):
        if accelerator == "cpu":
            return Fabric(accelerator=accelerator, devices=devices, precision=precision)
        strategy = SingleDeviceStrategy(_device(), _Accelerator())
        return Fabric(strategy=strategy, precision=precision)

    _Module.on, of_numbers = True, torch.tensor

    def tensor(data, *, device=None, **how):  # torch's own lets no backend in Python see what it copies
        return of_numbers(data, **how) if device is None else of_numbers(data, **how).to(device)

    try:
        with mock.patch.object(preflight, "Fabric", fabric), mock.patch.object(torch, "tensor", tensor):
            yield _device()
    finally:
        _Module.on = False


def pretended_or_skip():
    """Yield the device: a fixture's function."""
    if not _KERNELS:
        pytest.skip("this torch has no backends in Python, or the machine has a GPU")
    with pretended() as found:
        yield found

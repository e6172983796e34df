"""A device that is not there: its tensors are computed on the CPU, say that they are elsewhere, and refuse company.

On a machine without a GPU it finds what would stop on one: a tensor that was left on the CPU, or one of the device that
is read as if it were there. Like Apple's GPUs it has neither float64 nor sparse
matrices. Numbers are the CPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("xla", 0)  # torch knows its name, and nothing here has it
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._copy_from.default)  # from one device to another
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class OnDevice(Tensor):
    """A tensor of the device; to torch's own code it has no data, ``held`` has it."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        facts = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        facts |= {"dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.size(), **facts, device="meta", requires_grad=held.requires_grad)

    def __init__(self, held: Tensor):
        self.held = held

    @property
    def device(self) -> torch.device:
        return DEVICE

    @property
    def is_meta(self) -> bool:
        return False

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def compute(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Do an operation on what is held; its results are where its tensors are, or where it is asked to put them."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    of_device = {id(t.held): t for t in tensors if isinstance(t, OnDevice)}
    beside = tensors
    if function in INDEXING and isinstance(args[0], OnDevice):  # which places on the CPU may name
        beside = [args[0], *(leaf for leaf in tree_leaves(args[2:]) if isinstance(leaf, Tensor))]
    mixed = len({isinstance(t, OnDevice) for t in beside if t.dim() or isinstance(t, OnDevice)}) > 1  # but for numbers
    if mixed and function not in COPIES:
        shapes = [(t.device.type, tuple(t.shape)) for t in tensors]
        raise RuntimeError(f"Expected all tensors to be on the same device: {function} of {shapes}")
    there, asked = bool(of_device), kwargs.get("device")
    if function in COPIES:
        there = isinstance(args[0], OnDevice)
    if asked is not None:
        there, kwargs = torch.device(asked).type in (DEVICE.type, "meta"), kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map_only(OnDevice, lambda t: t.held, (args, kwargs))
    found = function(*args, **kwargs)
    if not there:
        return found
    for t in tree_leaves(found):
        if isinstance(t, Tensor) and (t.dtype == torch.float64 or t.is_sparse):
            raise TypeError(f"{DEVICE.type} has no float64 and no sparse matrices: {function}")
    return tree_map_only(Tensor, lambda t: of_device[id(t)] if id(t) in of_device else OnDevice(t), found)


class _Computes(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class _Makes(TorchFunctionMode):
    """What torch does before any operation: tensors of numbers, places that are lists, lists of tensors."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return function(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        if function is Tensor.new_tensor and isinstance(args[0], OnDevice):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(DEVICE)
        if function is Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].held.tolist()
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            places = tuple(torch.tensor(place) if isinstance(place, list) else place for place in places)
            args = (args[0], places if isinstance(args[1], tuple) else places[0], *args[2:])
        return function(*args, **kwargs)


@contextmanager
def made_device() -> Iterator[torch.device]:
    """The device, for as long as the context is open."""
    random = {"get_rng_state": torch.get_rng_state, "set_rng_state": torch.set_rng_state}  # for recomputed steps
    module = SimpleNamespace(**random, device=lambda index: nullcontext(), current_device=lambda: 0)
    with patch.object(torch, "xla", module, create=True), _Makes(), _Computes():
        yield DEVICE

"""Operations of `npu` tensors computed by torch on the host, which is where a simulated NPU's memory is.

A call of torch_npu's own passes the real schema, then the real Meta kernel, then its reference
(`references.py`), and the reference's shapes and dtypes must be the Meta kernel's. A call of torch's is
refused where a real device would refuse it: tensors of the host and of the device together. Nothing here is
an NPU's arithmetic, tiling, speed or asynchrony.
"""

import ctypes
import dataclasses
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from model.devices import npu_chips
from tests.npu.graphs import Graphs
from tests.npu.references import REFERENCES

#: Calls that torch_npu does by itself on any memory: they make, describe or re-point storage.
_OWN = {
    "aten::empty.memory_format",
    "aten::empty_strided",
    "aten::detach",
    "aten::alias",
    "aten::as_strided",
    "aten::_unsafe_view",
    "aten::resize_",
    "aten::set_.source_Tensor",
    "aten::set_.source_Storage",
    "aten::set_.source_Storage_storage_offset",
    "aten::is_pinned",
    "aten::_pin_memory",
    "aten::record_stream",
}
#: Calls between host and device.
_BETWEEN = {"aten::copy_", "aten::_to_copy"}
#: Arguments that are on the host by the operation's own documentation.
_HOST_ARGUMENTS = {"atb::_npu_flash_attention", "atb::_npu_paged_attention_splitfuse"}


class MixedDevices(RuntimeError):  # noqa: N818
    """One call got tensors of the host and of the device."""


class Emulation(TorchDispatchMode):
    """While entered, `npu` tensors compute. `calls` counts the operations of torch_npu's own that did."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.graphs = Graphs()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        name = schema.name + ("." + schema.overload_name if schema.overload_name else "")
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        on_npu = [one for one in tensors if one.device.type == "npu"]
        asked = kwargs.get("device")
        wants_npu = asked is not None and torch.device(asked).type == "npu"
        if not on_npu and not wants_npu:
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            # Inference mode shows these whole. On a device they are what they are made of.
            with self:
                return func.decompose(*args, **kwargs)
        if name in _OWN or (func.is_view and "device" not in kwargs):
            return func(*args, **kwargs)
        if name not in _BETWEEN and name not in _HOST_ARGUMENTS and not wants_npu:
            _require_one_device(name, tensors)
        if self.graphs.is_updating:
            return self.graphs.replace(func, args, kwargs)
        where = torch.device(asked) if asked is not None else on_npu[0].device
        return self._compute(func, name, args, kwargs, where)

    def _compute(self, func: Any, name: str, args: Any, kwargs: Any, where: torch.device) -> Any:
        lowered: dict[int, Tensor] = {}
        owners: dict[int, Tensor] = {}

        def down(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.device.type != "npu":
                return value
            host = on_host(value)
            lowered[id(host)] = value
            owners[host.untyped_storage().data_ptr()] = value
            return host

        def up(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.device.type != "cpu":
                return value
            if id(value) in lowered:
                return lowered[id(value)]
            if where.type == "cpu":
                return value
            owner = owners.get(value.untyped_storage().data_ptr())
            if owner is not None and value.dtype == owner.dtype and value.numel():
                return owner.as_strided(value.shape, value.stride(), value.storage_offset())
            made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=where)
            if value.numel():
                on_host(made).copy_(value)
            return made

        host_args, host_kwargs = tree_map(down, (tuple(args), dict(kwargs)))
        if "device" in host_kwargs:
            host_kwargs["device"] = torch.device("cpu")
        if func.namespace in ("npu", "atb"):
            self.calls[name] += 1
            out = checked(func, REFERENCES[schema_name(func)], host_args, host_kwargs)
        else:
            out = func(*host_args, **host_kwargs)
        raised = tree_map(up, out)
        self.graphs.note(func, args, kwargs, raised)
        return raised


def schema_name(func: Any) -> str:
    """`npu::npu_rms_norm`"""
    return str(func._schema.name)


def checked(func: Any, reference: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The reference's result, of the shapes and dtypes that the real Meta kernel gives, if any."""
    expected = None
    if func._schema.overload_name == "out":
        # torch_npu has no Meta kernel for these: the results must be what the plain form's would be.
        plain = {name: value for name, value in kwargs.items() if name not in ("out", "workspace")}
        expected = func.overloadpacket.default(*tree_map(_meta, args), **tree_map(_meta, plain))
    elif has_meta(func):
        expected = func(*tree_map(_meta, args), **tree_map(_meta, kwargs))
    out = reference(*args, **kwargs)
    if expected is not None:
        pairs = zip(_tensors(expected), _tensors(out), strict=False)
        for meta, found in pairs:
            if meta.numel() and (meta.shape != found.shape or meta.dtype != found.dtype):
                raise AssertionError(f"{func}: Meta {meta.shape} {meta.dtype}, {found.shape} {found.dtype}")
    return out


def has_meta(func: Any) -> bool:
    """Whether torch_npu registers a Meta kernel for this overload."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "Meta"))


def on_host(tensor: Tensor) -> Tensor:
    """A CPU tensor over the bytes of a simulated device's."""
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    raw = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    shared = torch.frombuffer(raw, dtype=torch.uint8).untyped_storage()
    host = torch.empty(0, dtype=tensor.dtype)
    return host.set_(shared, tensor.storage_offset(), tensor.shape, tensor.stride())


def _meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _tensors(value: Any) -> list[Tensor]:
    return [one for one in tree_flatten(value)[0] if isinstance(one, Tensor)]


def _require_one_device(name: str, tensors: list[Tensor]) -> None:
    if any(one.device.type == "cpu" and one.dim() for one in tensors):
        raise MixedDevices(f"{name} got tensors of the host and of the simulated device together")


#: What runs in this process, if it does.
current: list[Emulation] = []


def start() -> None:
    """Emulate from now on, to the end of the process.

    With SIM_NPU_FLOAT32 the chip is taken to compute in float32, which none does: so what the engine does can
    be told from how numbers are rounded.
    """
    if os.environ.get("SIM_NPU_FLOAT32"):
        npu_chips.CHIPS = tuple(
            dataclasses.replace(chip, dtypes=(*chip.dtypes, torch.float32)) for chip in npu_chips.CHIPS
        )
    current.append(Emulation())
    current[0].graphs.install()
    current[0].__enter__()

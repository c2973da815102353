"""One file per kind of device behind one small interface. Adding a device is adding a file and a line here.

A device is a module: its functions take tensors and own no state. It never sees requests, schedules or files.
"""

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.batch import AttentionMetadata, Batch
from model.config import DeviceName, DTypeName, Int8Scheme
from model.errors import ConfigError


class CacheShape(NamedTuple):
    """What a layer's cache holds, whatever the layout."""

    num_blocks: int
    block_size: int
    kv_heads: int
    head_dim: int


class LayerCache(NamedTuple):
    """One layer's keys and values, in the device's own layout."""

    keys: Tensor
    values: Tensor


#: [tokens, in] → [tokens, out]: a weight in the form that the device multiplies fastest.
Projection = Callable[[Tensor], Tensor]


class Attend(Protocol):
    """Attention of one step, prepared once and called in each layer."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache) -> Tensor:
        """Write this step's keys and values to the cache, then attend causally to all of each sequence's.

        query [tokens, heads, head_dim]; key and value [tokens, kv_heads, head_dim].
        Returns [tokens, heads * head_dim].
        """
        ...


class Device(Protocol):
    """What the engine asks of a device."""

    #: Backend for torch.distributed that carries both host integers and device tensors.
    BACKEND: str
    #: Whether it computes behind the host, which can tell it the next step before this one is done.
    RUNS_BEHIND: bool

    def place(self, local_rank: int) -> torch.device:
        """Where rank `local_rank` keeps its tensors."""
        ...

    def set_threads(self, num_threads: int | None, world: int) -> None:
        """Bound the host threads of this process, one of `world` that share the machine."""
        ...

    def dtype(self, asked: DTypeName, stored: DTypeName) -> torch.dtype:
        """The dtype to compute in, where the checkpoint has `stored`."""
        ...

    def spare_bytes(self, world: int) -> int:
        """Memory that one of `world` ranks may take for its cache after the weights are loaded."""
        ...

    def used_bytes(self) -> int:
        """Memory in use on this rank's device, by whomever; on CPUs, by this process and those it started."""
        ...

    def projection(self, weight: Tensor, bias: Tensor | None) -> Projection:
        """Prepare weight [out, in] and bias [out]."""
        ...

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMSNorm over the last dimension: x / sqrt(mean(x²) + eps) in float32, cast back, times weight."""
        ...

    def add_norm(self, residual: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add delta to residual in place and return the RMSNorm of the sum."""
        ...

    def rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Half-split rotary in place: heads [tokens, heads, head_dim]; cos, sin [tokens, head_dim / 2]."""
        ...

    def gate(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of [tokens, 2 * columns], gate first → [tokens, columns]."""
        ...

    def allocate_cache(self, shape: CacheShape, dtype: torch.dtype, where: torch.device) -> LayerCache:
        """An empty cache of one layer."""
        ...

    def attention(self, metadata: AttentionMetadata, kv_heads: int, where: torch.device) -> Attend:
        """Prepare the attention of one step."""
        ...


class StepInputs(NamedTuple):
    """What the decoder reads of a step, on the device."""

    #: int32 [tokens]
    token_ids: Tensor
    #: int32 [tokens]
    positions: Tensor
    #: What each token's rotary angle goes by, float32 [tokens].
    bases: Tensor
    attend: Attend


class DecodeLimits(NamedTuple):
    """The largest decode step."""

    rows: int
    #: Of one sequence.
    blocks: int
    block_size: int
    #: Whether NULL_BLOCK is no sequence's, so that anything may be written there.
    has_null_block: bool = False


#: A decode step without its last product: StepInputs → [rows, hidden_size]. Reads only what is on the device.
DecodeRun = Callable[[StepInputs], Tensor]
#: A batch of single tokens whose logits are all wanted, and their rope bases → what the run gives for it.
DecodeStep = Callable[[Batch, NDArray[np.float32]], Tensor]


@runtime_checkable
class RecordsDecode(Protocol):
    """What a device may offer besides: decode steps that are recorded once and replayed."""

    def record_decode(self, run: DecodeRun, limits: DecodeLimits, where: torch.device) -> DecodeStep | None:
        """Decode steps by recordings of `run`; None where they are not wanted or can not be."""
        ...


@runtime_checkable
class Quantizes(Protocol):
    """What a device may offer besides: products with int8 weights."""

    def scale_dtype(self, scheme: Int8Scheme, own: torch.dtype) -> torch.dtype:
        """What the scales of weights are multiplied in, where the engine computes in `own`.

        Raises ConfigError for a scheme that the device does not have.
        """
        ...

    def quantized_projection(
        self, weight: Tensor, scale: Tensor, bias: Tensor | None, scheme: Int8Scheme
    ) -> Projection:
        """Prepare weight int8 [out, in], its scales [out] and bias [out]. Raises ConfigError."""
        ...


def load_device(name: DeviceName) -> Device:
    """The module of a device, imported when it is asked for. Raises ConfigError where there is none yet."""
    module = f"model.devices.{name}"
    try:
        return cast(Device, import_module(module))
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ConfigError(f"this version has no support for device {name}: use cpu") from error

"""What the wrappers of an NPU's operations assert with: each raises NpuCallError naming the operation."""

import torch
from torch import Tensor

from model.devices.npu_chips import is_available, this_chip
from model.errors import NpuCallError


def require(operation: str, condition: bool, what: str) -> None:
    """`what` is wrong unless the condition holds."""
    if not condition:
        raise NpuCallError(f"{operation}: {what}")


def allowed(operation: str) -> None:
    """The chip's list and the installed torch_npu have it."""
    require(operation, is_available(operation), f"not an operation of {this_chip().name}, or not installed")


def dtypes(operation: str, *tensors: Tensor) -> None:
    """All have one dtype, in which the chip computes."""
    own = tensors[0].dtype
    require(operation, own in this_chip().dtypes, f"{own} is no dtype of {this_chip().name}")
    require(operation, all(one.dtype == own for one in tensors), "the tensors have several dtypes")


def contiguous(operation: str, *tensors: Tensor) -> None:
    """All are."""
    require(operation, all(one.is_contiguous() for one in tensors), "a tensor is not contiguous")


def heads_share(operation: str, heads: int, kv_heads: int) -> None:
    """Each key's head is that of equally many of the query's, 64 at most."""
    require(operation, kv_heads > 0 and heads % kv_heads == 0, f"{heads} heads do not share {kv_heads}")
    require(operation, heads // kv_heads <= 64, f"{heads} heads for {kv_heads} are more than 64 for each")


def block_table(operation: str, tables: Tensor, sequences: int) -> None:
    """int32 [sequences, pages]."""
    require(operation, tables.dtype == torch.int32, f"the block table is {tables.dtype}")
    require(
        operation, tables.dim() == 2 and len(tables) == sequences, "not one row of the table per sequence"
    )
    contiguous(operation, tables)

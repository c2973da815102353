"""The Ascend chips: which operations each is allowed, and what else differs. Also the way to torch_npu.

An operation is on a chip's list because its documentation names the chip. Nothing here computes.
"""

import logging
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch

from model.errors import ConfigError

_LOG = logging.getLogger(__name__)

#: What both chips have.
_COMMON = frozenset(
    {
        "npu_rms_norm",
        "npu_add_rms_norm",
        "npu_apply_rotary_pos_emb",
        "npu_format_cast",
        "npu_weight_quant_batchmatmul",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One kind of chip."""

    name: str
    #: The card that carries it, as the vendor sells it.
    card: str
    #: Versions that torch.npu.get_soc_version() gives for it, first and last.
    soc_versions: tuple[int, int]
    dtypes: tuple[torch.dtype, ...]
    operations: frozenset[str]
    #: Weights and cache lie in FRACTAL_NZ.
    is_nz: bool
    #: Part of the free memory that the cache may take.
    cache_share: float
    #: Tokens of a page times head_dim, at most; 0 is no such limit.
    page_numbers: int


CHIPS = (
    Chip(
        name="910B",
        card="800I A2",
        soc_versions=(220, 225),
        dtypes=(torch.bfloat16, torch.float16),
        operations=_COMMON
        | {
            "npu_rotary_mul",
            "npu_swiglu",
            "npu_scatter_pa_kv_cache",
            "npu_fused_infer_attention_score",
            "_npu_fused_infer_attention_score_get_max_workspace",
            "npu_mm_all_reduce_base",
            "npu_dynamic_quant",
            "npu_quant_matmul",
        },
        is_nz=False,
        cache_share=0.9,
        page_numbers=0,
    ),
    Chip(
        name="310P",
        card="300I DUO",
        soc_versions=(200, 205),
        dtypes=(torch.float16,),
        operations=_COMMON
        | {
            "_npu_reshape_and_cache",
            "_npu_paged_attention",
            "_npu_flash_attention",
            "_npu_paged_attention_splitfuse",
            "npu_incre_flash_attention",
            "npu_prompt_flash_attention",
        },
        is_nz=True,
        cache_share=0.5,
        page_numbers=128 * 128,
    ),
)


@cache
def torch_npu() -> Any:
    """The package, imported when a device is asked for. Raises ConfigError where it can not be."""
    try:
        return import_module("torch_npu")
    except Exception as error:  # noqa: BLE001 - where CANN's variables are missing, it raises just that
        raise ConfigError(
            f"device npu needs torch_npu for torch {torch.__version__} and CANN's libraries ({error}): "
            "install both and source CANN's set_env.sh, or choose another device"
        ) from None


@cache
def this_chip() -> Chip:
    """The chip of this machine's cards. Raises ConfigError where there is none that is known."""
    npu = torch_npu().npu
    if npu.device_count() == 0:
        raise ConfigError(
            "no NPU is visible: look at `npu-smi info` and ASCEND_RT_VISIBLE_DEVICES, or use another device"
        )
    return chip_of(npu.get_soc_version())


def chip_of(soc_version: int) -> Chip:
    """The chip with this version. Raises ConfigError for one that is not known."""
    for chip in CHIPS:
        first, last = chip.soc_versions
        if first <= soc_version <= last:
            return chip
    known = ", ".join(f"{chip.name} ({chip.card})" for chip in CHIPS)
    raise ConfigError(f"NPU version {soc_version} is not supported; known are {known}")


@cache
def is_available(operation: str) -> bool:
    """Whether this machine's chip is allowed the operation and the installed torch_npu has it."""
    return operation in this_chip().operations and hasattr(torch_npu(), operation)


@cache
def log_fallback(operation: str, reason: str) -> None:
    """Say once that something goes another way than the chip's best."""
    _LOG.warning("%s goes through plain torch on %s: %s", operation, this_chip().name, reason)

"""What a card does, measured: each function of the device against the CPU's, ranks, graphs, memory and speed.

For a person with a card (`model doctor --device npu`). It decides nothing for the engine. As a program it is
one of two ranks that exchange numbers.
"""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore

from model.batch import AttentionMetadata
from model.config import Int8Scheme
from model.devices import CacheShape, cpu, cpu_torch, npu
from model.devices.npu_chips import is_available, this_chip, torch_npu
from model.errors import ModelError
from model.quantization import quantize

#: Largest difference from the CPU's result, over the largest value there.
_TOLERANCES = {torch.float16: 0.01, torch.bfloat16: 0.04}
_HEADS, _KV_HEADS, _BLOCK = 8, 2, 128
_RANK_SECONDS = 120
_SIDE, _REPEATS = 4096, 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and whether that is as it should be."""

    check: str
    #: ok, failed, or skipped.
    status: str
    found: str


def _card() -> Any:
    """torch.npu"""
    return torch_npu().npu


def is_simulated() -> bool:
    """Whether CANN's library is the stand-in of this project's tests, which computes on the host."""
    torch_npu()
    return hasattr(ctypes.CDLL("libascendcl.so"), "sim_trace")


def examine() -> Iterator[Finding]:
    """All findings, one after another. Raises ConfigError where there is no card or no torch_npu."""
    where = npu.place(0)
    chip = this_chip()
    missing = ", ".join(sorted(name for name in chip.operations if not is_available(name)))
    yield Finding(
        "card",
        "ok",
        f"{chip.name} ({chip.card}), {_card().device_count()} visible, torch_npu {torch_npu().__version__}",
    )
    yield Finding("operations", "failed" if missing else "ok", f"not installed: {missing or 'none'}")
    with torch.inference_mode():
        for dtype in chip.dtypes:
            for name, compare in (_COMPARISONS | _INT8[chip.name]).items():
                yield _attempt(f"{name} {_named(dtype)}", partial(_numerics, compare, dtype, where))
        yield _attempt("memory", lambda: _memory(where))
    yield _attempt("ranks", _ranks)
    yield _attempt("graph", lambda: _graph(where))
    yield _attempt("speed", lambda: _speed(where))


def _attempt(check: str, run: Callable[[], tuple[str, str]]) -> Finding:
    try:
        return Finding(check, *run())
    except (RuntimeError, ModelError, OSError, subprocess.TimeoutExpired) as error:
        return Finding(check, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


#: What the card computed and what the CPU did.
Pairs = list[tuple[Tensor, Tensor]]
Compare = Callable[[torch.dtype, torch.device], Pairs]


def _numerics(compare: Compare, dtype: torch.dtype, where: torch.device) -> tuple[str, str]:
    pairs = compare(dtype, where)
    error = max(float((a.cpu().float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)
    limit = _TOLERANCES[dtype]
    return "ok" if error <= limit else "failed", f"largest relative error {error:.2e}, limit {limit:.0e}"


def _draw(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def _norms(dtype: torch.dtype, where: torch.device) -> Pairs:
    x, delta, weight = _draw(dtype, 33, 2048), _draw(dtype, 33, 2048).flip(0), _draw(dtype, 2048)
    residual = x.to(where)
    first = (npu.norm(residual, weight.to(where), 1e-5), cpu.norm(x, weight, 1e-5))
    second = (
        npu.add_norm(residual, delta.to(where), weight.to(where), 1e-5),
        cpu.add_norm(x, delta, weight, 1e-5),
    )
    return [first, second, (residual, x)]


def _rotary(dtype: torch.dtype, where: torch.device) -> Pairs:
    pairs = []
    for dim in (64, 128):
        heads, angles = _draw(dtype, 33, _HEADS, dim), _draw(torch.float32, 33, dim // 2)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        found = heads.to(where)
        npu.rotate(found, cos.to(where), sin.to(where))
        cpu.rotate(heads, cos, sin)
        pairs.append((found, heads))
    return pairs


def _gate(dtype: torch.dtype, where: torch.device) -> Pairs:
    x = _draw(dtype, 33, 4096)
    return [(npu.gate(x.to(where)), cpu.gate(x))]


def _projection(dtype: torch.dtype, where: torch.device) -> Pairs:
    x, weight, bias = _draw(dtype, 33, 512), _draw(dtype, 768, 512), _draw(dtype, 768)
    return [(npu.projection(weight.to(where), bias.to(where))(x.to(where)), cpu.projection(weight, bias)(x))]


def _int8_projection(scheme: Int8Scheme) -> Compare:
    """Against the same integers in full; the first token is all zeros."""

    def compare(dtype: torch.dtype, where: torch.device) -> Pairs:
        x, weight, bias = _draw(dtype, 33, 512), _draw(dtype, 768, 512), _draw(dtype, 768)
        x[0] = 0
        values, scale = quantize(weight, npu.scale_dtype(scheme, dtype))
        project = npu.quantized_projection(values.to(where), scale.to(where), bias.to(where), scheme)
        steps, step = quantize(x, torch.float32)
        given = steps * step[:, None] if scheme == "w8a8" else x.float()
        return [(project(x.to(where)), F.linear(given, values * scale.float()[:, None], bias.float()))]

    return compare


def _attention(steps: list[list[tuple[int, int]]]) -> Compare:
    """Steps of sequences (tokens, keys after the step) over one cache; the last step is compared."""

    def compare(dtype: torch.dtype, where: torch.device) -> Pairs:
        shape = CacheShape(16, _BLOCK, _KV_HEADS, 128)
        host, device = (
            cpu.allocate_cache(shape, dtype, torch.device("cpu")),
            npu.allocate_cache(shape, dtype, where),
        )
        pairs: Pairs = []
        for step in steps:
            metadata = _metadata(step)
            count = int(metadata.query_starts[-1])
            parts = [_draw(dtype, count, heads, 128) for heads in (_HEADS, _KV_HEADS, _KV_HEADS)]
            expected = cpu_torch.attention(metadata, _HEADS, _KV_HEADS, 128)(
                parts[0], parts[1], parts[2], host
            )
            own = [part.to(where) for part in parts]
            pairs = [(npu.attention(metadata, _KV_HEADS, where)(own[0], own[1], own[2], device), expected)]
        return pairs

    return compare


def _metadata(step: list[tuple[int, int]]) -> AttentionMetadata:
    """Four blocks for each sequence, side by side."""
    queries = np.array([count for count, _ in step], np.int32)
    tables = np.arange(4 * len(step), dtype=np.int32).reshape(len(step), 4)
    slots = [row * 4 * _BLOCK + at for row, (count, end) in enumerate(step) for at in range(end - count, end)]
    return AttentionMetadata(
        num_decodes=int((queries == 1).sum()),
        query_starts=np.concatenate(([0], np.cumsum(queries))).astype(np.int32),
        context_lens=np.array([end for _, end in step], np.int32),
        block_tables=tables,
        slot_mapping=np.array(slots, np.int64),
        block_size=_BLOCK,
    )


_COMPARISONS: dict[str, Compare] = {
    "norms": _norms,
    "rotary": _rotary,
    "gate": _gate,
    "projection": _projection,
    "attention, prompts": _attention([[(7, 7), (300, 300)]]),
    "attention, decoding": _attention([[(7, 7), (300, 300)], [(1, 8), (1, 301)]]),
    "attention, chunks": _attention([[(7, 7), (300, 300)], [(9, 16), (90, 390)]]),
    "attention, mixed": _attention([[(7, 7), (300, 300)], [(1, 8), (90, 390)]]),
}

#: By the chip's name.
_INT8: dict[str, dict[str, Compare]] = {
    "910B": {"w8a16": _int8_projection("w8a16"), "w8a8": _int8_projection("w8a8")},
    "310P": {"w8a16": _int8_projection("w8a16")},
}


def _memory(where: torch.device) -> tuple[str, str]:
    free, total = _card().mem_get_info()
    block = torch.full((2**28,), 7, dtype=torch.int8, device=where)
    right = int(block[-1].cpu()) == 7
    return "ok" if right else "failed", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _ranks() -> tuple[str, str]:
    """Two processes, each with a card of its own, that add and gather through HCCL."""
    if _card().device_count() < 2:
        return "skipped", "one card: nothing to exchange with"
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = [sys.executable, "-m", "model.devices.npu_doctor", str(store.port)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]  # noqa: S603 - our own
    try:
        statuses = [rank.wait(_RANK_SECONDS) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return "failed" if any(statuses) else "ok", f"two ranks ended with {statuses}"


def _graph(where: torch.device) -> tuple[str, str]:
    if is_simulated():
        return "skipped", "simulated: there is nothing to capture"
    if this_chip().name != "910B" or os.environ.get("ASCEND_LAUNCH_BLOCKING") == "1":
        return "skipped", "needs a 910B and ASCEND_LAUNCH_BLOCKING other than 1"
    x, weight = (_draw(torch.float16, 256, 256).to(where) for _ in range(2))
    expected = (x @ weight).cpu()
    graph = _card().NPUGraph()
    with _card().graph(graph):
        out = x @ weight
    out.zero_()
    graph.replay()
    _card().synchronize()
    return "ok" if out.cpu().equal(expected) else "failed", "a captured product was replayed"


def _speed(where: torch.device) -> tuple[str, str]:
    if is_simulated():
        return "skipped", "simulated: a time would be the host's"
    a, b = (torch.ones(_SIDE, _SIDE, dtype=torch.float16, device=where) for _ in range(2))
    product = _seconds(lambda: a @ b)
    copy = _seconds(lambda: b.copy_(a))
    rate, bandwidth = 2 * _SIDE**3 / product / 1e12, 2 * a.nbytes / copy / 1e9
    return "ok", f"float16 products of {_SIDE}: {rate:.1f} TFLOP/s; copies: {bandwidth:.0f} GB/s"


def _seconds(run: Callable[[], object]) -> float:
    run()
    _card().synchronize()
    start = time.perf_counter()
    for _ in range(_REPEATS):
        run()
    _card().synchronize()
    return (time.perf_counter() - start) / _REPEATS


def _be_rank(port: int, rank: int) -> None:
    where = npu.place(rank)
    store = PrefixStore("doctor", TCPStore("127.0.0.1", port, is_master=False))
    dist.init_process_group(npu.BACKEND, store=store, rank=rank, world_size=2)
    values = torch.full((1024,), rank + 1.0, dtype=torch.float16, device=where)
    numbers = torch.tensor([rank], dtype=torch.int32)
    parts = [torch.empty_like(values) for _ in range(2)]
    dist.all_gather(parts, values)
    dist.all_reduce(values)
    dist.broadcast(numbers, src=1)
    right = bool((values.cpu() == 3).all()) and [float(part.cpu()[0]) for part in parts] == [1, 2]
    dist.destroy_process_group()
    sys.exit(0 if right and int(numbers) == 1 else 1)


if __name__ == "__main__":
    _be_rank(int(sys.argv[1]), int(sys.argv[2]))

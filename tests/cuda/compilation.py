"""Compiles kernels for GPUs that are not there, and says what they take: `compilation.py SM SHAPE DTYPE …`.

The device's own functions run on a few tokens of the real models' shapes; where a kernel would be launched it
is compiled only, for the arguments it would have had. One line of JSON for each kernel that this makes.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from model.batch import AttentionMetadata
from model.devices import CacheShape, cuda, cuda_card

HOST = torch.device("cpu")
#: Heads, kv heads, their width, hidden size and MLP columns of a rank: InternLM2 7B and 20B, and odd ones.
SHAPES = {
    "7b": (32, 8, 128, 4096, 14336),
    "20b": (48, 8, 128, 6144, 16384),
    "small": (9, 3, 64, 576, 1536),
    "wide": (8, 4, 256, 2048, 5000),
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Compiler:
    """Stands where Triton looks for a GPU, and keeps what is compiled."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.kernels: dict[int, tuple[str, Any]] = {}
        target = GPUTarget("cuda", architecture, 32)
        stand_in = SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: architecture,
            get_current_stream=lambda _device: 0,
        )
        driver.set_active(stand_in)
        run = JITFunction.run

        def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:  # noqa: ARG001
            compiled = run(kernel, *args, grid=grid, warmup=True, **options)
            self.kernels[id(compiled)] = (kernel.fn.__name__.strip("_"), compiled)
            return compiled

        JITFunction.run = compile_only
        self.restore = lambda: setattr(JITFunction, "run", run)


def step(lens: list[tuple[int, int]], size: int) -> AttentionMetadata:
    contexts = np.array([context for _, context in lens], np.int32)
    tokens = sum(count for count, _ in lens)
    return AttentionMetadata(
        num_decodes=sum(count == 1 for count, _ in lens),
        query_starts=np.cumsum([0, *(count for count, _ in lens)]).astype(np.int32),
        context_lens=contexts,
        block_tables=np.zeros((len(lens), -(-int(contexts.max()) // size)), np.int32),
        slot_mapping=np.zeros(tokens, np.int64),
        block_size=size,
    )


def launch_all(shape: tuple[int, ...], dtype: torch.dtype, steps: list[list[tuple[int, int]]]) -> None:
    """What a layer of these steps launches."""
    heads, kv_heads, head_dim, hidden, columns = shape
    cache = cuda.allocate_cache(CacheShape(2, 32, kv_heads, head_dim), dtype, HOST)
    for lens in steps:
        metadata = step(lens, 32)
        tokens = len(metadata.slot_mapping)
        x = torch.empty(tokens, hidden, dtype=dtype)
        cuda.norm(x, x[0], 1e-5)
        cuda.add_norm(x, x, x[0], 1e-5)
        cuda.gate(torch.empty(tokens, 2 * columns, dtype=dtype))
        merged = torch.empty(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
        angles = torch.empty(tokens, head_dim // 2, dtype=dtype)
        cuda.rotate(merged[:, : heads + kv_heads], angles, angles)
        attend = cuda.attention(metadata, kv_heads, HOST)
        attend(*merged.split([heads, kv_heads, kv_heads], 1), cache)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack of each thread."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return {name.lower(): int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", text)}


def product(ptx: str) -> str:
    """The instructions that multiply matrices."""
    return next((name for name in ("wgmma", "tcgen05", "mma.sync") if name in ptx), "none")


#: One sequence alone, whose keys are split; decoding among a prompt; a long prompt.
STEPS = [[(1, 3000)], [(1, 30)] * 40 + [(60, 90)], [(300, 300)]]


#: Decode steps of many sizes, as they come by when some sequences end and others begin. Triton would like to
#: make kernels of their own for block tables of 1 or 16 columns and for integers at other addresses.
DECODES = [
    [(1, context)] * count for count, context in ((2, 44), (3, 20), (4, 500), (5, 65), (16, 90), (33, 1000))
]


def main(architecture: int, *cases: str) -> None:
    """The kernels of each case, and how many more kernels further decode steps call for."""
    for name, kind in zip(cases[::2], cases[1::2], strict=True):
        compiler = Compiler(architecture)
        dtype = getattr(torch, kind)
        cuda_card.processors = lambda: 132
        launch_all(SHAPES[name], dtype, STEPS)
        cuda_card.processors = lambda: 1
        launch_all(SHAPES[name], dtype, DECODES[:1])
        made = dict(compiler.kernels)
        launch_all(SHAPES[name], dtype, DECODES)
        compiler.restore()
        further = [kernel for number, (kernel, _) in compiler.kernels.items() if number not in made]
        print(json.dumps({"shape": name, "dtype": kind, "further": further}))
        for kernel, compiled in made.values():
            takes = {"shared": compiled.metadata.shared, "product": product(compiled.asm["ptx"])}
            takes |= resources(compiled.asm["cubin"])
            print(json.dumps({"kernel": kernel, "sm": architecture, "shape": name, "dtype": kind} | takes))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])

"""CPU time of a prefill and a decode step, by kernels and by torch: `cpu_steps.py MODEL DTYPE [BLOCK_SIZE]`.

A prefill step is 8 prompts of 256 tokens, a decode step 64 sequences of about 290. In turn, A B A B, then
with kernels the time that each operation takes. CPU time, which a shared machine moves less than wall time.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.batch import Batch
from model.config import ModelConfig
from model.devices import cpu
from model.layers import Loader
from model.parallel import Group, Shard
from model.transformer import Decoder
from model.weights import Checkpoint

PROMPT, LIMIT, SEQUENCES = 256, 320, 64


def batch(sequences: range, tokens: int, context: int, block_size: int) -> Batch:
    """The last `tokens` of each sequence, whose blocks follow one another."""
    random = np.random.default_rng(0)
    count, each = len(sequences), -(-LIMIT // block_size)
    blocks = np.arange(-(-context // block_size))
    return Batch(
        token_ids=random.integers(100, 40000, count * tokens).astype(np.int32),
        query_lens=np.full(count, tokens, np.int32),
        context_lens=np.full(count, context, np.int32),
        prompt_lens=np.full(count, PROMPT, np.int32),
        write_starts=np.full(count, context - tokens, np.int32),
        block_tables=np.stack([1 + sequence * each + blocks for sequence in sequences]).astype(np.int32),
        logit_rows=((np.arange(count) + 1) * tokens - 1).astype(np.int32),
    )


def milliseconds(run: Callable[[Batch], Any], batches: list[Batch]) -> float:
    start = time.process_time()
    for each in batches:
        run(each)
    return (time.process_time() - start) / len(batches) * 1e3


class Clock:
    """Wraps operations, and adds up the time in each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.process_time()
            result = function(*arguments)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start
            return result

        return run

    def watch(self, decoder: Decoder) -> None:
        for name in ("norm", "add_norm", "rotate", "gate"):
            setattr(cpu, name, self.timed(name, getattr(cpu, name)))
        prepare = cpu.attention
        cpu.attention = lambda *arguments: self.timed("attention", prepare(*arguments))
        for layer in decoder.layers:
            for owner, name in (
                (layer.attention, "qkv"),
                (layer.attention, "out"),
                (layer.mlp, "gate_up"),
                (layer.mlp, "down"),
            ):
                setattr(owner, name, self.timed(f"linear {name}", getattr(owner, name)))
        decoder.head.project = self.timed("linear head", decoder.head.project)


def main(path: str, dtype: str, block_size: int) -> None:
    config = ModelConfig.load(Path(path))
    checkpoint = Checkpoint(Path(path), getattr(torch, dtype))
    decoder = Decoder(
        Loader(config, Shard.of(config, 0, 1), checkpoint, cpu, torch.device("cpu")), Group(0, 1)
    )
    caches = decoder.allocate_cache(SEQUENCES * -(-LIMIT // block_size) + 1, block_size)
    steps = {
        "prefill": [
            batch(range(first, first + 8), PROMPT, PROMPT, block_size) for first in range(0, SEQUENCES, 8)
        ],
        "decode": [
            batch(range(SEQUENCES), 1, context, block_size) for context in range(PROMPT + 20, PROMPT + 50)
        ],
    }

    def run(step: Batch) -> None:
        decoder(step, caches, block_size)

    for step in steps["prefill"]:
        run(step)
    kernels, in_use = cpu.KERNELS, cpu.kernels_in_use()
    for _ in range(2):
        for name, operations in ((in_use, kernels), ("torch", {})):
            cpu.KERNELS = operations
            figures = {kind: f"{milliseconds(run, batches[:10]):.1f}" for kind, batches in steps.items()}
            print(f"RESULT {dtype} {name}: CPU ms a step: {figures}", flush=True)
    cpu.KERNELS = kernels
    clock = Clock()
    clock.watch(decoder)
    for kind, batches in steps.items():
        clock.seconds.clear()
        whole = milliseconds(run, batches)
        parts = {name: seconds * 1e3 / len(batches) for name, seconds in clock.seconds.items()}
        parts["the rest"] = whole - sum(parts.values())
        shares = ", ".join(
            f"{name} {part:.1f} ({part / whole:.1%})"
            for name, part in sorted(parts.items(), key=lambda item: -item[1])
        )
        print(f"RESULT {dtype} {kind} step {whole:.1f} ms: {shares}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 32)

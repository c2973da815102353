"""Builds, checks and times the engine on a GPU in one call: `python -m benchmarks.gpu [OPTIONS]`.

The exit status is 2 where there is no GPU. Weights are made up in the shapes of InternLM2, in bfloat16. Steps
are held against a floor: for decoding the bytes of weights and cache over the measured rate of copying, for
prompts their operations over the measured rate of matrix products. transformers' continuous batching runs
the same requests on a Llama of the same shape. Each side has a process of its own; a short table comes last.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import LLM, SamplingParams
from model.batch import Batch
from model.config import ModelConfig
from model.request import Request
from model.shapes import SHAPES, num_parameters, write
from tests.golden import reference

ROOT = Path(__file__).parents[1]
#: Requests, tokens in, tokens out.
WORKLOADS = {"a": (256, 512, 128), "b": (1, 2048, 2048), "c": (32, 32768, 256), "d": (64, 1024, 64)}
LONGEST = 32768 + 256
BYTES = 2
Prompts = list[list[int]]


@dataclass
class Work:
    """What the steps of one kind had to do, and how long they took."""

    seconds: float = 0.0
    tokens: int = 0
    #: Weights and cache that had to be read.
    bytes: float = 0.0
    operations: float = 0.0


@dataclass
class Steps:
    """Takes the engine's steps apart: those that decode alone, and those with prompts in them."""

    model: ModelConfig
    decode: Work = field(default_factory=Work)
    prefill: Work = field(default_factory=Work)

    def count(self, batch: Batch, seconds: float) -> None:
        """Add one step, by the rows that the decoder had to compute."""
        model = self.model
        embedding = model.vocab_size * model.hidden_size
        layers = num_parameters(model) - (1 if model.tied_head else 2) * embedding
        tokens = len(batch.token_ids)
        seen = int((batch.positions.astype(np.int64) + 1).sum())
        work = self.decode if tokens == len(batch.query_lens) else self.prefill
        work.seconds += seconds
        work.tokens += tokens
        kept = 2 * model.num_layers * model.num_kv_heads * model.head_dim * BYTES
        work.bytes += (layers + embedding) * BYTES + float(batch.context_lens.sum()) * kept
        work.operations += 2.0 * layers * tokens + 2.0 * embedding * len(batch.logit_rows)
        work.operations += 4.0 * model.num_layers * model.num_heads * model.head_dim * seen


def timed(llm: LLM, prompts: Prompts, count: int) -> tuple[float, Steps]:
    """Seconds in all, and the steps."""
    engine, steps, batches = llm.engine, Steps(llm.engine.model), []
    execute = engine._execute
    params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)

    def kept(batch: Batch) -> torch.Tensor:
        batches.append(batch)
        return execute(batch)

    engine._execute = kept  # type: ignore[method-assign]
    try:
        start = time.perf_counter()
        for number, prompt in enumerate(prompts):
            engine.add(Request(id=str(number), prompt_token_ids=tuple(prompt), params=params))
        while engine.has_unfinished:
            before = time.perf_counter()
            engine.step()
            steps.count(batches[-1], time.perf_counter() - before)
        return time.perf_counter() - start, steps
    finally:
        engine._execute = execute  # type: ignore[method-assign]


def drawn(requests: int, length: int) -> Prompts:
    draw = random.Random(0)  # noqa: S311
    return [[draw.randrange(100, 40000) for _ in range(length)] for _ in range(requests)]


def longhaul(shape: str, names: list[str]) -> Iterator[dict[str, Any]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        LLM(
            write(shape, Path(folder)),
            device="cuda",
            dtype="bfloat16",
            random_weights=True,
            prefix_caching=False,
            max_model_len=LONGEST,
            max_num_seqs=256,
            max_step_tokens=8192,
        ) as llm,
    ):
        for name in names:
            requests, length, count = WORKLOADS[name]
            # The same batch sizes once before: kernels are compiled and steps recorded by then.
            timed(llm, drawn(requests, min(length, 64)), 4)
            seconds, steps = timed(llm, drawn(requests, length), count)
            yield {"workload": name, "seconds": seconds} | {
                kind: vars(work) for kind, work in (("decode", steps.decode), ("prefill", steps.prefill))
            }


def transformers(shape: str, names: list[str]) -> Iterator[dict[str, Any]]:
    from transformers import (  # noqa: PLC0415
        AutoModelForCausalLM,
        ContinuousBatchingConfig,
        GenerationConfig,
        LlamaConfig,
    )
    from transformers.generation.continuous_batching.utils import WorkloadHints  # noqa: PLC0415

    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    sizes = {name: SHAPES[shape][name] for name in (*kept, "num_key_value_heads", "rms_norm_eps")}
    with torch.device("cuda"):
        decoder: Any = AutoModelForCausalLM.from_config(
            LlamaConfig(**sizes, max_position_embeddings=LONGEST), dtype=torch.bfloat16
        ).eval()

    def generate(manager: Any, prompts: Prompts, count: int) -> None:
        waiting = len(manager.add_requests(inputs=prompts, max_new_tokens=count))
        while waiting:
            result = manager.get_result(timeout=1)
            assert manager.is_running(), "its thread ended"
            if result and result.is_finished():
                waiting -= 1
                assert len(result.generated_tokens) == count, result.error

    settings = GenerationConfig(do_sample=False, eos_token_id=-1)
    for name in names:
        requests, length, count = WORKLOADS[name]
        hints = WorkloadHints(max_prompt_length=length, max_generated_length=count, num_requests=requests)
        with decoder.continuous_batching_context_manager(
            generation_config=settings,
            continuous_batching_config=ContinuousBatchingConfig(allow_block_sharing=False),
            block=True,
            warmup=True,
            workload_hints=hints,
        ) as manager:
            generate(manager, drawn(requests, min(length, 64)), 4)
            start = time.perf_counter()
            generate(manager, drawn(requests, length), count)
            yield {"workload": name, "seconds": time.perf_counter() - start}


SIDES: dict[str, Callable[[str, list[str]], Iterator[dict[str, Any]]]] = {
    "longhaul": longhaul,
    "transformers": transformers,
}


def run_side(side: str, shape: str, names: list[str], limit: float) -> dict[str, dict[str, Any]]:
    """The results of a process of its own, as many as it has in time; why it ended goes to the output."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--side", side, "--shapes", shape]
    try:
        done = subprocess.run(
            [*command, "--workloads", ",".join(names)],
            cwd=ROOT, check=False, capture_output=True, text=True, timeout=limit,
        )  # fmt: skip
        output, errors = done.stdout, done.stderr
    except subprocess.TimeoutExpired as expired:
        output, errors = (part.decode() if part else "" for part in (expired.stdout, expired.stderr))
        print(f"{side} {shape}: stopped after {limit:.0f} s", flush=True)
    found = [json.loads(line[6:]) for line in output.splitlines() if line.startswith("RESULT")]
    if len(found) < len(names) and errors:
        print(f"{side} {shape}: {errors.strip().splitlines()[-1]}", flush=True)
    for result in found:
        print(f"{side} {shape} {json.dumps(result)}", flush=True)
    return {result["workload"]: result for result in found}


def seconds_of(run: Callable[[], object], rounds: int = 20) -> float:
    """Of one call on the GPU, the median."""
    run()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times)[rounds // 2]


def rates() -> tuple[float, float]:
    """Bytes copied (read and written) and operations multiplied in a second."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.numel() / seconds_of(lambda: target.copy_(source))
    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    multiplied = 2 * size**3 / seconds_of(lambda: left @ right)
    return copied, multiplied


def check() -> str:
    """Build the kernels and compare: golden tokens on the GPU, and the kernels' own tests where pytest is."""
    golden = reference.load("v2_gqa")
    params = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)
    with LLM(golden.folder, device="cuda", dtype="float32", max_model_len=256) as llm:
        equal = [list(one.token_ids) for one in llm.generate(golden.prompts, params)] == golden.tokens
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cuda"],
        cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    print(tests.stdout, tests.stderr, sep="", flush=True)
    last = (tests.stdout or tests.stderr).strip().splitlines()[-1]
    return f"golden tokens {'equal' if equal else 'DIFFER'}; tests/cuda: {last}"


def table(shape: str, ours: dict[str, Any], theirs: dict[str, Any], rate: tuple[float, float]) -> list[str]:
    """A line for each workload."""
    lines = []
    for name, result in ours.items():
        requests, length, count = WORKLOADS[name]
        decode, prefill = Work(**result["decode"]), Work(**result["prefill"])
        floor = decode.bytes / rate[0] / decode.seconds if decode.seconds else 0.0
        share = prefill.operations / rate[1] / prefill.seconds if prefill.seconds else 0.0
        ratio = f"{theirs[name]['seconds'] / result['seconds']:.2f}x" if name in theirs else "-"
        speed = requests * (length + count) / result["seconds"]
        lines.append(
            f"{shape:<15}{name} {requests:>4} x {length}/{count:<8}{result['seconds']:>9.2f} s"
            f"{speed:>10.0f} tok/s   decode {floor:>4.0%} of floor   prefill {share:>4.0%}"
            f"   vs transformers {ratio}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="internlm2-7b,internlm2-20b")
    parser.add_argument("--workloads", default="d,a,b,c")
    parser.add_argument("--limit", type=float, default=240, help="seconds for each side and shape")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"gpu.py: torch {torch.__version__} finds no GPU: nothing was measured", file=sys.stderr)
        sys.exit(2)
    names = options.workloads.split(",")
    if options.side:
        for result in SIDES[options.side](options.shapes, names):
            print(f"RESULT{json.dumps(result)}", flush=True)
        return
    checked = check()
    rate = rates()
    torch.cuda.empty_cache()
    lines = []
    for shape in options.shapes.split(","):
        ours, theirs = (run_side(side, shape, names, options.limit) for side in SIDES)
        lines += table(shape, ours, theirs, rate)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}; {checked}")
    print(f"copying {rate[0] / 1e12:.2f} TB/s, multiplying {rate[1] / 1e12:.0f} TFLOP/s")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()

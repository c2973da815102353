"""Does every checkpoint of the family answer as the original modelling code, however it is run? A table.

    python -m benchmarks.golden_table [--golden DIR] [--tp 1 2 4 8] [--only NAME] [--few]

DIR holds for each checkpoint a folder NAME and NAME.*.npz (or NAME/expected.npz) with `p{i}_ids`,
`p{i}_prefill_logits` and `p{i}_gen_ids`; without it the checkpoint in tests/golden is taken. Each is run in
float32 in every setting: chunks of 7, 64 and 512 tokens, blocks of 1, 8 and 32, with and without prefix
caching, and contiguous caches; --few tries four in which each of these values occurs. Compared are the logits
of all prompt positions that the file has, twice, so that the second time finds what the first left; and
greedily chosen tokens of all prompts in one batch, twice. A row is one checkpoint on one number of ranks. The
exit status is 1 if a token differs, or a logit by more than 1e-4.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from model import Engine, EngineConfig, Request, SamplingParams
from model.batch import NULL_BLOCK, Batch
from model.kv_cache import BlockPool
from model.prefix import BlockKeys
from model.rope import base_of
from model.scheduler import Scheduler, Sequence
from tests.golden import reference

TOLERANCE = 1e-4
_ROOM = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How the KV cache is laid out, and the chunks that are tried with it."""

    chunks: tuple[int, ...] = (7, 64, 512)
    attention: str = "paged"
    block_size: int = 32
    prefix_caching: bool = False


ALL = [
    *(Setting(block_size=size, prefix_caching=on) for size in (1, 8, 32) for on in (True, False)),
    Setting(attention="flash"),
]
FEW = [
    Setting(chunks=(7,), block_size=1, prefix_caching=True),
    Setting(chunks=(64,), block_size=8),
    Setting(chunks=(512,), block_size=32, prefix_caching=True),
    Setting(chunks=(7,), attention="flash"),
]


@dataclass(slots=True)
class Row:
    """What was found for one checkpoint on one number of ranks."""

    settings: int = 0
    error: float = 0.0
    equal: int = 0
    compared: int = 0
    wrong: list[str] = field(default_factory=list)

    def cells(self) -> str:
        return f"{self.settings} | {self.error:.1e} | {self.equal}/{self.compared}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, default=reference.HERE)
    parser.add_argument("--tp", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--only", nargs="+", help="names of checkpoints")
    parser.add_argument("--few", action="store_true", help="four settings instead of 21")
    options = parser.parse_args()
    print("| checkpoint | architecture | ranks | settings | largest logit error | tokens equal |")
    print("|---|---|---|---|---|---|", flush=True)
    wrong = []
    for name, folder, answers in reference.find(options.golden):
        if options.only and name not in options.only:
            continue
        golden = reference.read(folder, answers)
        label = f"{answers.stem if answers.parent != folder else name} | {golden.model.architecture}"
        for world in options.tp:
            row = measure(golden, world, FEW if options.few else ALL)
            wrong += row.wrong
            print(f"| {label} | {world} | {row.cells()} |", flush=True)
    sys.exit("\n".join(wrong) or None)


def measure(golden: reference.Golden, world: int, settings: list[Setting]) -> Row:
    """Try every setting. Ranks are started anew for each cache; the chunk is the scheduler's affair alone."""
    row = Row()
    for setting in settings:
        engine = Engine(
            EngineConfig(
                path=golden.folder,
                attention=setting.attention,  # type: ignore[arg-type]
                block_size=setting.block_size,
                prefix_caching=setting.prefix_caching,
                tensor_parallel_size=world,
                dtype="float32",
                max_model_len=_ROOM,
                max_num_seqs=7,
                num_threads=1,
            )
        )
        try:
            for chunk in setting.chunks:
                _compare_tokens(row, golden, engine, chunk)
            # These write over the engine's own blocks, so they come last.
            for chunk in setting.chunks:
                _compare_logits(row, golden, engine, chunk)
        finally:
            engine.close()
    return row


def _compare_tokens(row: Row, golden: reference.Golden, engine: Engine, chunk: int) -> None:
    row.settings += 1
    engine._scheduler.max_step_tokens = chunk
    for answers in (_generated(engine, golden.prompts), _generated(engine, golden.prompts)):
        for answer, tokens, count in zip(answers, golden.tokens, golden.comparable, strict=True):
            row.compared += 1
            row.equal += answer[:count] == tokens[:count]
            if answer[:count] != tokens[:count]:
                row.wrong.append(
                    f"{golden.name}, chunk {chunk}: tokens {answer}, not {tokens}: {engine.config}"
                )


def _compare_logits(row: Row, golden: reference.Golden, engine: Engine, chunk: int) -> None:
    error = max(_errors(golden, engine, chunk))
    row.error = max(row.error, error)
    if not error <= TOLERANCE:
        row.wrong.append(f"{golden.name}, chunk {chunk}: logits differ by {error:.1e}: {engine.config}")


def _generated(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    params = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)
    for number, prompt in enumerate(prompts):
        engine.add(Request(id=str(number), prompt_token_ids=tuple(prompt), params=params))
    found = {}
    while engine.has_unfinished:
        found.update((one.request_id, list(one.token_ids)) for one in engine.step())
    return [found[str(number)] for number in range(len(prompts))]


def _errors(golden: reference.Golden, engine: Engine, chunk: int) -> Iterator[float]:
    """The largest difference of the logits of each prompt, computed twice over one cache."""
    runner, model, shares = engine._runner, golden.model, engine.config.shares_prefixes
    size = runner.block_size
    pool = BlockPool(engine._pool.num_blocks, first=NULL_BLOCK + 1 if shares else 0)
    scheduler = Scheduler(pool, block_size=size, max_num_seqs=1, max_step_tokens=chunk, max_model_len=_ROOM)
    for (number, prompt), _ in itertools.product(enumerate(golden.prompts), range(2)):
        base = base_of(model.rope, model.head_dim, len(prompt))
        keys = BlockKeys(size, base) if shares else None
        sequence = Sequence(id="prompt", tokens=list(prompt), prompt_len=len(prompt), keys=keys)
        scheduler.add(sequence)
        expected = golden.prefill_logits(number)
        first = len(prompt) - len(expected)
        while sequence.num_pending:
            (planned,) = scheduler.schedule()
            start = sequence.num_computed
            batch = Batch.of([planned], size)
            rows = np.arange(max(0, first - start), planned.num_tokens, dtype=np.int32)
            logits = runner.lead(replace(batch, logit_rows=rows)).numpy()
            positions = start + rows - first
            yield float(np.abs(logits - expected[positions]).max(initial=0.0))
            sequence.num_computed += planned.num_tokens
        scheduler.remove("prompt")


if __name__ == "__main__":
    main()

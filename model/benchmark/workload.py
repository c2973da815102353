"""What the engine is given to do: random prompts of set lengths, a trace's lengths, or real dialogues."""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model.errors import InvalidPrompt
from model.request import Request, SamplingParams

_CONTEXT, _GENERATED = "ContextTokens", "GeneratedTokens"


class Lengths(NamedTuple):
    """Tokens of one request."""

    input: int
    output: int

    def __str__(self) -> str:
        return f"{self.input}→{self.output}"


def parse_pairs(text: str) -> list[tuple[int, int]]:
    """Pairs as modeltest writes them: `[[2048,2048],[1024,1024]]`. Raises ValueError."""
    if not re.fullmatch(r"\s*\[\s*\[[\s\d,\[\]]*\]\s*\]\s*", text):
        raise ValueError(f"{text!r} is not a list of pairs: write [[2048,2048],[1024,1024]]")
    try:
        pairs = json.loads(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a list of pairs: write [[2048,2048],[1024,1024]]") from None
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"{text!r} holds something that is not a pair of numbers")
    if not all(isinstance(number, int) and number > 0 for pair in pairs for number in pair):
        raise ValueError(f"{text!r} holds a number below 1")
    return [(first, second) for first, second in pairs]


def read_trace(path: Path, limit: int | None = None) -> list[Lengths]:
    """The first `limit` requests of an Azure LLM inference trace; when they came is not used.

    The format: TIMESTAMP,ContextTokens,GeneratedTokens (github.com/Azure/AzurePublicDataset). A request that
    generated nothing counts as one token, which is what computing its prompt gives. Raises InvalidPrompt.
    """
    found = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {_CONTEXT, _GENERATED} <= set(reader.fieldnames or ()):
                raise InvalidPrompt(f"{path} is no trace: it has no columns {_CONTEXT} and {_GENERATED}")
            for row in islice(reader, limit):
                try:
                    found.append(Lengths(max(1, int(row[_CONTEXT])), max(1, int(row[_GENERATED]))))
                except (TypeError, ValueError):
                    raise InvalidPrompt(f"{path}:{reader.line_num} has no two numbers of tokens") from None
    except OSError as error:
        raise InvalidPrompt(f"can not read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidPrompt(f"{path} is not UTF-8 text") from None
    if not found:
        raise InvalidPrompt(f"{path} holds no request")
    return found


def random_requests(
    lengths: Iterable[Lengths], vocab_size: int, seed: int | tuple[int, ...], name: str = "request"
) -> list[Request]:
    """Prompts of random token ids, greedy, each generating exactly its length."""
    draw = np.random.default_rng(seed)
    return [
        Request(
            id=f"{name}-{number}",
            prompt_token_ids=tuple(draw.integers(0, vocab_size, size.input).tolist()),
            params=SamplingParams(max_tokens=size.output, temperature=0.0, ignore_eos=True),
        )
        for number, size in enumerate(lengths)
    ]


def dialogue_requests(
    prompts: Iterable[Sequence[int]], output: int, *, ignore_eos: bool, name: str = "request"
) -> list[Request]:
    """Encoded dialogues, greedy, each generating `output` tokens at most."""
    params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=ignore_eos)
    return [
        Request(id=f"{name}-{number}", prompt_token_ids=tuple(prompt), params=params)
        for number, prompt in enumerate(prompts)
    ]


def fitting(requests: Sequence[Request], max_model_len: int) -> list[Request]:
    """Those that the context holds with their answers. Raises InvalidPrompt if none does."""
    held = [
        request
        for request in requests
        if len(request.prompt_token_ids) + request.params.max_tokens <= max_model_len
    ]
    if not held:
        raise InvalidPrompt(f"no request fits into the context of {max_model_len} tokens")
    return held

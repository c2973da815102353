"""What goes into the engine and what comes out: SamplingParams, Request, Completion. Imports no torch.

It owns the validation of parameters that needs no model; what depends on the model is `Engine.add`'s.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from model.errors import InvalidParams

FinishReason = Literal["stop", "length", "abort"]

MAX_LOGPROBS = 20
MAX_N = 128
MAX_LOGPROB_TOKENS = 64
#: vLLM's (vllm/sampling_params.py, _SAMPLING_EPS).
_GREEDY_BELOW = 1e-5
_MAX_INT32 = 2**31 - 1
_LARGEST = sys.float_info.max


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request is sampled and when it ends.

    Penalties come first, then temperature, min_p, top_k, and top_p over what these left. `seed` makes the
    request reproducible, alone and in any batch. Raises InvalidParams.
    """

    #: Answers to the one prompt, each drawn anew.
    n: int = 1
    #: Tokens to generate at most.
    max_tokens: int = 256
    #: Tokens before which no stop token is generated.
    min_tokens: int = 0
    #: 0 is greedy.
    temperature: float = 1.0
    #: Sample from the k likeliest tokens; 0 is all.
    top_k: int = 0
    #: Sample from the likeliest tokens whose probabilities add up to this.
    top_p: float = 1.0
    #: Sample from the tokens that are at least this share as likely as the likeliest.
    min_p: float = 0.0
    #: Divides the logits of tokens in the prompt and the answer that are positive and multiplies the negative
    #: ones (CTRL, arXiv 1909.05858); 1 is off.
    repetition_penalty: float = 1.0
    #: Taken from the logits of tokens that the answer has; OpenAI's, 0 is off.
    presence_penalty: float = 0.0
    #: Taken from the logits of tokens once for each time that the answer has them; OpenAI's, 0 is off.
    frequency_penalty: float = 0.0
    #: None draws a fresh one.
    seed: int | None = None
    #: Strings that end the text; the text is cut before the first of them.
    stop: tuple[str, ...] = ()
    #: Token ids that end the answer besides the model's own.
    stop_token_ids: tuple[int, ...] = ()
    #: Generate past the model's own end tokens.
    ignore_eos: bool = False
    #: Log-probabilities of the sampled token and of this many of the likeliest; None is none at all.
    logprobs: int | None = None
    #: Tokens whose log-probabilities are wanted besides, whatever their rank; needs `logprobs`.
    logprob_token_ids: tuple[int, ...] = ()
    #: As `logprobs`, for each prompt token after the first.
    prompt_logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken: at temperature 0, or so close to it as vLLM takes for 0."""
        return self.temperature < _GREEDY_BELOW

    def __post_init__(self) -> None:
        for name in _LISTS:
            object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        for name, (holds, expected) in _RULES.items():
            if not holds(getattr(self, name)):
                raise InvalidParams(f"{name} must be {expected}, not {getattr(self, name)!r}")
        if self.min_tokens > self.max_tokens:
            raise InvalidParams(f"min_tokens {self.min_tokens} is over max_tokens {self.max_tokens}")
        if self.n > 1 and self.greedy:
            raise InvalidParams(
                f"n {self.n} answers at temperature 0 would be the same: raise the temperature"
            )
        if self.logprob_token_ids and self.logprobs is None:
            raise InvalidParams("logprob_token_ids needs logprobs, which may be 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to continue. The id is the caller's and unique among unfinished requests."""

    id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Log-probabilities, natural and before temperature and truncation, at one generated position."""

    token_id: int
    logprob: float
    #: The likeliest tokens with their log-probabilities, best first.
    top: tuple[tuple[int, float], ...]
    #: Those of `logprob_token_ids`, in that order.
    asked: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The answer to one request."""

    request_id: str
    #: Which of the request's `n` answers.
    index: int = 0
    #: All generated tokens, the one that ended the answer included.
    token_ids: tuple[int, ...]
    #: Decoded without control tokens, cut before a stop string; empty if the model folder has no tokenizer.
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    #: Of each prompt token but the first.
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_tokens: int
    #: Prompt tokens whose keys and values were found in the cache.
    cached_tokens: int


def _as_tuple(name: str, value: object) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidParams(f"{name} must be a list, not {value!r}")
    return tuple(value)


def _is_int(value: object, least: int | None = None, most: int | None = None) -> bool:
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )


def _is_number(value: object, least: float = -_LARGEST, most: float = _LARGEST) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _are_ids(value: Sequence[object], most: float = math.inf) -> bool:
    return len(value) <= most and all(_is_int(token, 0, _MAX_INT32) for token in value)


_LISTS = ("stop", "stop_token_ids", "logprob_token_ids")
_COUNT_OF_LOGPROBS = (
    lambda value: value is None or _is_int(value, 0, MAX_LOGPROBS),
    f"an integer from 0 to {MAX_LOGPROBS}",
)
#: What each parameter must be by itself.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "n": (lambda value: _is_int(value, 1, MAX_N), f"an integer from 1 to {MAX_N}"),
    "max_tokens": (lambda value: _is_int(value, 1), "an integer >= 1"),
    "min_tokens": (lambda value: _is_int(value, 0), "an integer >= 0"),
    "temperature": (lambda value: _is_number(value, least=0), "a number >= 0"),
    "top_k": (lambda value: _is_int(value, 0, _MAX_INT32), "an integer >= 0, where 0 is all tokens"),
    "top_p": (lambda value: _is_number(value, 0, 1) and value > 0, "a number in (0, 1]"),
    "min_p": (lambda value: _is_number(value, 0, 1), "a number from 0 to 1"),
    "repetition_penalty": (lambda value: _is_number(value) and value > 0, "a number > 0, where 1 is off"),
    "presence_penalty": (lambda value: _is_number(value, -2, 2), "a number from -2 to 2"),
    "frequency_penalty": (lambda value: _is_number(value, -2, 2), "a number from -2 to 2"),
    "seed": (lambda value: value is None or _is_int(value), "an integer"),
    "stop": (
        lambda value: all(isinstance(text, str) and text for text in value),
        "a list of non-empty strings",
    ),
    "stop_token_ids": (_are_ids, "a list of token ids"),
    "ignore_eos": (lambda value: isinstance(value, bool), "true or false"),
    "logprobs": _COUNT_OF_LOGPROBS,
    "logprob_token_ids": (
        lambda value: _are_ids(value, MAX_LOGPROB_TOKENS),
        f"a list of {MAX_LOGPROB_TOKENS} token ids at most",
    ),
    "prompt_logprobs": _COUNT_OF_LOGPROBS,
}

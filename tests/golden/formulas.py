"""Log-probabilities and penalties as their sources write them, a token at a time, in float64 numpy."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from model import SamplingParams


def log_softmax(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype(np.float64)
    shifted = exact - exact.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def penalized(
    logits: np.ndarray, prompt: Sequence[int], answer: Sequence[int], params: SamplingParams
) -> np.ndarray:
    """vLLM's order: repetition over prompt and answer, then frequency and presence over the answer."""
    out = logits.astype(np.float64).copy()
    for token in {*prompt, *answer}:
        if out[token] > 0:
            out[token] /= params.repetition_penalty
        else:
            out[token] *= params.repetition_penalty
    for token, count in Counter(answer).items():
        out[token] -= params.frequency_penalty * count + params.presence_penalty
    return out

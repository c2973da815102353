"""Which sampling a line gets: its own choices, then its job's, then the model's, then the fleet's limit.

Owns the merge, and what generation_config.json means. Never samples.
"""

from pathlib import Path

from jobs.dialogue import Sampling
from model.config import read_json
from model.request import SamplingParams


def model_sampling(checkpoint: Path) -> Sampling:
    """What generation_config.json asks for, as transformers reads it: without `do_sample` it is greedy."""
    path = checkpoint / "generation_config.json"
    if not path.exists():
        return Sampling(temperature=0.0)
    config = read_json(path)
    if not config.get("do_sample"):
        return Sampling(max_tokens=config.get("max_new_tokens"), temperature=0.0)
    return Sampling(
        max_tokens=config.get("max_new_tokens"),
        temperature=config.get("temperature", 1.0),
        top_k=config.get("top_k", 50),
        top_p=config.get("top_p", 1.0),
    )


def sampling_params(sampling: Sampling, *, default_max_tokens: int, room: int) -> SamplingParams:
    """The engine's parameters; an answer gets the `room` that its prompt leaves in the context at most."""
    wanted = default_max_tokens if sampling.max_tokens is None else sampling.max_tokens
    given = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": sampling.stop,
        "stop_token_ids": sampling.stop_token_ids,
        "ignore_eos": sampling.ignore_eos,
        "logprobs": sampling.logprobs,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    return SamplingParams(max_tokens=min(wanted, room), **chosen)  # type: ignore[arg-type]

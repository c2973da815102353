"""Which sampling a line gets: its own choices, then its job's, then the model's, then the fleet's limit.

Owns the merge, and what generation_config.json means. Never samples.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.dialogue import Sampling
from model.config import read_json
from model.errors import CheckpointError, InvalidParams
from model.request import SamplingParams

NO_LIMIT = 2**31 - 1


def model_sampling(checkpoint: Path) -> Sampling:
    """What generation_config.json asks for, as transformers reads it: without `do_sample` it is greedy.

    Raises CheckpointError where the engine refuses a value: another one would be another distribution.
    """
    path = checkpoint / "generation_config.json"
    if not path.exists():
        return Sampling(temperature=0.0)
    config = read_json(path)
    sampling = Sampling(
        max_tokens=config.get("max_new_tokens"),
        min_tokens=config.get("min_new_tokens"),
        repetition_penalty=config.get("repetition_penalty"),
        **(_drawn(config) if config.get("do_sample") else {"temperature": 0.0}),
    )
    try:
        _params(sampling, default_max_tokens=NO_LIMIT)
    except InvalidParams as error:
        raise CheckpointError(f"{path}: {error}; correct the file") from error
    return sampling


def sampling_params(sampling: Sampling, *, default_max_tokens: int, room: int) -> SamplingParams:
    """The engine's parameters; an answer gets the `room` that its prompt leaves in the context at most.

    Raises InvalidParams where line, job and model contradict each other.
    """
    params = _params(sampling, default_max_tokens=default_max_tokens)
    return replace(params, max_tokens=min(params.max_tokens, room), min_tokens=min(params.min_tokens, room))


def _drawn(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers goes by where it samples, with its defaults; null switches a limit off."""
    return {
        "temperature": config.get("temperature", 1.0),
        "top_k": config.get("top_k", 50),
        "top_p": config.get("top_p", 1.0),
        "min_p": config.get("min_p"),
    }


def _params(sampling: Sampling, *, default_max_tokens: int) -> SamplingParams:
    """All fields of `Sampling` have the engine's names."""
    given = {name: getattr(sampling, name) for name in sampling.__struct_fields__}
    chosen = {name: value for name, value in given.items() if value is not None}
    return SamplingParams(**({"max_tokens": default_max_tokens} | chosen))

"""Sampling parameters and engine settings: what is refused, and how it is said."""

from typing import Any

import pytest

from model.config import EngineConfig
from model.errors import ConfigError, InvalidParams
from model.request import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_tokens", value) for value in (0, -1, 1.5, True, "8", None)),
        *(("temperature", value) for value in (-0.1, float("nan"), float("inf"), "1", None, True)),
        *(("top_k", value) for value in (-1, 0.5, None)),
        *(("top_p", value) for value in (0, -0.1, 1.1, float("nan"), None)),
        *(("seed", value) for value in (1.0, "1", True)),
        *(("stop", value) for value in ("text", [""], [1], None)),
        *(("stop_token_ids", value) for value in (7, [-1], ["2"], [True])),
        ("ignore_eos", 1),
        *(("logprobs", value) for value in (-1, 21, 1.0, True)),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(InvalidParams) as refused:
        SamplingParams(**{name: value})
    assert refused.value.code == "invalid_request"
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_lists_become_tuples_and_the_bounds_are_allowed() -> None:
    params = SamplingParams(
        max_tokens=1,
        temperature=0,
        top_k=0,
        top_p=1,
        seed=-(2**70),
        stop=["a"],
        stop_token_ids=[0],
        logprobs=20,
    )  # type: ignore[arg-type]
    assert (params.stop, params.stop_token_ids) == (("a",), (0,))


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int8"},
        {"device": "tpu"},
        {"block_size": 0},
        {"tensor_parallel_size": -1},
        {"max_num_seqs": True},
        {"max_model_len": 0},
        {"kv_cache_bytes": 1.5},
        {"max_num_seqs": 64, "max_step_tokens": 63},
    ],
)
def test_bad_settings_are_refused_in_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        EngineConfig(path="anywhere", **options)  # type: ignore[arg-type]
    assert refused.value.code == "invalid_settings"
    assert next(iter(options)) in str(refused.value)

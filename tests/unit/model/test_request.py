"""Sampling parameters and engine settings: what is refused, and how it is said."""

from typing import Any

import pytest

from model.config import EngineConfig
from model.errors import ConfigError, InvalidParams
from model.request import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n", value) for value in (0, -1, 129, 1.0, True, None)),
        *(("max_tokens", value) for value in (0, -1, 1.5, True, "8", None)),
        *(("min_tokens", value) for value in (-1, 1.5, True, None)),
        *(("temperature", value) for value in (-0.1, float("nan"), float("inf"), 10**400, "1", None, True)),
        *(("top_k", value) for value in (-1, 0.5, 2**31, None)),
        *(("top_p", value) for value in (0, -0.1, 1.1, float("nan"), None)),
        *(("min_p", value) for value in (-0.1, 1.1, float("nan"), "0", None, True)),
        *(
            ("repetition_penalty", value)
            for value in (0, -1, float("nan"), float("inf"), 10**400, None, True)
        ),
        *(
            (name, value)
            for name in ("presence_penalty", "frequency_penalty")
            for value in (-2.1, 2.1, float("nan"), "1", None, True)
        ),
        *(("seed", value) for value in (1.0, "1", True)),
        *(("stop", value) for value in ("text", [""], [1], None)),
        *(("stop_token_ids", value) for value in (7, [-1], ["2"], [True], [2**31])),
        ("ignore_eos", 1),
        *(("logprobs", value) for value in (-1, 21, 1.0, True)),
        *(("prompt_logprobs", value) for value in (-1, 21, 1.0, True)),
        *(("logprob_token_ids", value) for value in (7, [-1], ["2"], list(range(65)), None)),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(InvalidParams) as refused:
        SamplingParams(**{name: value})
    assert refused.value.code == "invalid_request"
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens 5 is over max_tokens 4"),
        ({"min_tokens": 257}, "min_tokens 257 is over max_tokens 256"),
        ({"n": 2, "temperature": 0}, "n 2 answers at temperature 0"),
        ({"n": 2, "temperature": 1e-9}, "n 2 answers at temperature 0"),
        ({"logprob_token_ids": [5]}, "logprob_token_ids needs logprobs"),
    ],
)
def test_contradictions_are_refused_in_one_line(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidParams, match=named) as refused:
        SamplingParams(**options)
    assert "\n" not in str(refused.value)


def test_lists_become_tuples_and_the_bounds_are_allowed() -> None:
    least = SamplingParams(
        n=1,
        max_tokens=1,
        min_tokens=1,
        temperature=0,
        top_k=0,
        top_p=1,
        min_p=0,
        repetition_penalty=1e-300,
        presence_penalty=-2,
        frequency_penalty=-2,
        seed=-(2**70),
        stop=["a"],
        stop_token_ids=[0],
        logprobs=0,
        logprob_token_ids=[9, 9],
        prompt_logprobs=0,
    )  # type: ignore[arg-type]
    assert (least.stop, least.stop_token_ids, least.logprob_token_ids) == (("a",), (0,), (9, 9))
    SamplingParams(
        n=128,
        top_k=2**31 - 1,
        min_p=1,
        presence_penalty=2,
        frequency_penalty=2,
        logprobs=20,
        logprob_token_ids=tuple(range(64)),
        prompt_logprobs=20,
    )


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    assert [SamplingParams(temperature=value).greedy for value in (0, 9e-6, 1e-5, 1)] == [
        True,
        True,
        False,
        False,
    ]


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

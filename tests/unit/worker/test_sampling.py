"""Whose sampling holds: the line's before the job's before the model's."""

import json
from pathlib import Path

import msgspec
import pytest

from jobs.dialogue import Sampling
from model.errors import CheckpointError, InvalidParams
from worker.sampling import model_sampling, sampling_params


def test_own_choices_go_first() -> None:
    line, job = Sampling(temperature=0.5), Sampling(temperature=0.9, top_k=7, max_tokens=50)
    model = Sampling(top_k=3, top_p=0.8)
    params = sampling_params(line.over(job).over(model), default_max_tokens=512, room=1000)
    assert (params.temperature, params.top_k, params.top_p, params.max_tokens) == (0.5, 7, 0.8, 50)


def test_every_choice_reaches_the_engine_and_may_switch_off_the_models() -> None:
    model = Sampling(
        max_tokens=9,
        min_tokens=3,
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=4,
        stop=("x",),
        stop_token_ids=(6,),
        ignore_eos=True,
        logprobs=2,
    )
    assert None not in msgspec.structs.astuple(model), "a field that this test does not know"
    params = sampling_params(Sampling().over(model), default_max_tokens=512, room=1000)
    assert {name: getattr(params, name) for name in model.__struct_fields__} == msgspec.structs.asdict(model)
    off = Sampling(min_tokens=0, min_p=0, repetition_penalty=1, presence_penalty=0, frequency_penalty=0)
    params = sampling_params(off.over(model), default_max_tokens=512, room=1000)
    assert (params.min_tokens, params.min_p, params.repetition_penalty) == (0, 0, 1)
    assert (params.presence_penalty, params.frequency_penalty, params.top_k) == (0, 0, 7)


def test_an_answer_gets_the_room_there_is() -> None:
    assert sampling_params(Sampling(), default_max_tokens=512, room=100).max_tokens == 100
    assert sampling_params(Sampling(max_tokens=20), default_max_tokens=512, room=100).max_tokens == 20
    params = sampling_params(Sampling(min_tokens=200), default_max_tokens=512, room=100)
    assert (params.min_tokens, params.max_tokens) == (100, 100)


@pytest.mark.parametrize("room", [5, 1000])
def test_a_line_and_a_job_that_contradict_each_other_are_refused(room: int) -> None:
    line, job = Sampling(min_tokens=30), Sampling(max_tokens=20)
    with pytest.raises(InvalidParams, match="min_tokens 30 is over max_tokens 20"):
        sampling_params(line.over(job), default_max_tokens=512, room=room)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"eos_token_id": 2}, Sampling(temperature=0.0)),
        (
            {"do_sample": False, "temperature": 0.7, "max_new_tokens": 9},
            Sampling(temperature=0.0, max_tokens=9),
        ),
        (
            {"repetition_penalty": 1.2, "min_p": 0.1, "min_new_tokens": 600, "top_p": 7},
            Sampling(temperature=0.0, repetition_penalty=1.2, min_tokens=600),
        ),
        ({"do_sample": True}, Sampling(temperature=1.0, top_k=50, top_p=1.0)),
        (
            {"do_sample": True, "min_p": 0.1, "repetition_penalty": 1.005},
            Sampling(temperature=1.0, top_k=50, top_p=1.0, min_p=0.1, repetition_penalty=1.005),
        ),
        ({"do_sample": True, "temperature": None, "top_k": None, "top_p": None, "min_p": None}, Sampling()),
        (
            {"do_sample": True, "temperature": 0.8, "top_p": 0.9},
            Sampling(temperature=0.8, top_k=50, top_p=0.9),
        ),
    ],
)
def test_generation_config_is_read_as_transformers_reads_it(
    tmp_path: Path, config: dict[str, object], expected: Sampling
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert model_sampling(tmp_path) == expected


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"do_sample": True, "top_p": 0}, r"top_p must be a number in \(0, 1\], not 0"),
        ({"do_sample": True, "temperature": "warm"}, "temperature must be a number"),
        ({"do_sample": True, "min_p": 2}, "min_p must be"),
        ({"repetition_penalty": 0}, "repetition_penalty must be"),
        ({"max_new_tokens": 5, "min_new_tokens": 6}, "min_tokens 6 is over max_tokens 5"),
    ],
)
def test_a_model_that_asks_for_what_can_not_be_is_refused(
    tmp_path: Path, config: dict[str, object], said: str
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"generation_config.json: {said}"):
        model_sampling(tmp_path)


def test_a_model_that_says_nothing_is_greedy(tmp_path: Path) -> None:
    assert model_sampling(tmp_path) == Sampling(temperature=0.0)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        model_sampling(tmp_path)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        model_sampling(tmp_path)

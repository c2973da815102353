"""Whose sampling holds: the line's before the job's before the model's."""

import json
from pathlib import Path

import pytest

from jobs.dialogue import Sampling
from model.errors import CheckpointError
from worker.sampling import model_sampling, sampling_params


def test_own_choices_go_first() -> None:
    line, job = Sampling(temperature=0.5), Sampling(temperature=0.9, top_k=7, max_tokens=50)
    model = Sampling(top_k=3, top_p=0.8)
    params = sampling_params(line.over(job).over(model), default_max_tokens=512, room=1000)
    assert (params.temperature, params.top_k, params.top_p, params.max_tokens) == (0.5, 7, 0.8, 50)


def test_an_answer_gets_the_room_there_is() -> None:
    assert sampling_params(Sampling(), default_max_tokens=512, room=100).max_tokens == 100
    assert sampling_params(Sampling(max_tokens=20), default_max_tokens=512, room=100).max_tokens == 20


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"eos_token_id": 2}, Sampling(temperature=0.0)),
        (
            {"do_sample": False, "temperature": 0.7, "max_new_tokens": 9},
            Sampling(temperature=0.0, max_tokens=9),
        ),
        ({"do_sample": True}, Sampling(temperature=1.0, top_k=50, top_p=1.0)),
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


def test_a_model_that_says_nothing_is_greedy(tmp_path: Path) -> None:
    assert model_sampling(tmp_path) == Sampling(temperature=0.0)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        model_sampling(tmp_path)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        model_sampling(tmp_path)

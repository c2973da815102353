"""The model a job is for."""

from pathlib import Path

import pytest

from jobs.errors import JobsError
from jobs.ledger import WorkerInfo
from jobs.settings import Settings, load_settings
from producer.errors import ModelError
from producer.models import chosen_model, is_served


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    return load_settings()


def worker(model: str) -> WorkerInfo:
    return WorkerInfo(name=f"w-{model}", model=model, group="cpu:0", started_at=0, seen_at=0)


def test_what_is_asked_for_goes_first(settings: Settings) -> None:
    named = settings.model_copy(update={"model_name": "b", "model": Path("/models/c")})
    assert chosen_model("a", named, [worker("d")]) == "a"
    assert chosen_model(None, named, [worker("d")]) == "b"
    assert chosen_model(None, settings.model_copy(update={"model": Path("/models/c")}), [worker("d")]) == "c"


def test_the_only_model_served_needs_no_name(settings: Settings) -> None:
    assert chosen_model(None, settings, [worker("d"), worker("d")]) == "d"


def test_none_or_several_need_one(settings: Settings) -> None:
    with pytest.raises(ModelError, match="no worker serves"):
        chosen_model(None, settings, [])
    with pytest.raises(ModelError, match="d, e"):
        chosen_model(None, settings, [worker("e"), worker("d")])


def test_a_name_that_is_none_is_refused(settings: Settings) -> None:
    with pytest.raises(JobsError, match="not a model name"):
        chosen_model("a/b", settings, [])


def test_is_served() -> None:
    assert is_served("d", [worker("d")])
    assert not is_served("e", [worker("d")])

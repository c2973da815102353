"""Settings: one home, clear errors, and secrets that stay secret."""

from pathlib import Path

import pytest

from jobs.errors import SettingsError
from jobs.settings import load_settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGHAUL_SHARD_LINES", "7")
    monkeypatch.setenv("LONGHAUL_END_MARKERS", '["<end>"]')
    settings = load_settings()
    assert settings.shard_lines == 7
    assert settings.end_markers == ("<end>",)


def test_a_wrong_value_is_named_as_the_user_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGHAUL_LEASE_SECONDS", "soon")
    monkeypatch.setenv("LONGHAUL_BACKLOG", "0")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert "LONGHAUL_LEASE_SECONDS" in str(error.value)
    assert "LONGHAUL_BACKLOG" in str(error.value)
    assert "\n" not in str(error.value)


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGHAUL_REDIS_URL", "redis://:hush@host/0")
    monkeypatch.setenv("LONGHAUL_S3_SECRET_ACCESS_KEY", "hush")
    settings = load_settings()
    assert "hush" not in repr(settings)
    assert "hush" not in str(settings.model_dump())
    assert settings.redis_url.get_secret_value().endswith("hush@host/0")


def test_the_served_model_has_its_folders_name_or_the_given_one(tmp_path: Path) -> None:
    assert load_settings(model=tmp_path / "m1").served_model() == (tmp_path / "m1", "m1")
    assert load_settings(model=tmp_path, model_name="n").served_model()[1] == "n"
    with pytest.raises(SettingsError, match="LONGHAUL_MODEL"):
        load_settings().served_model()

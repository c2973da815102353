"""A deadline as users write it."""

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from producer.deadline import check_deadline, moment_of
from producer.errors import OptionError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("2h", 7200), ("1d12h", 129_600), ("1h0m30s", 3630), ("45s", 45), ("0m", 0)],
)
def test_a_duration_counts_from_now(text: str, seconds: int) -> None:
    before = time.time()
    moment = moment_of(text)
    assert before + seconds - 1 <= moment <= time.time() + seconds + 1


def test_a_time_with_a_zone() -> None:
    expected = datetime(2031, 5, 1, 18, tzinfo=UTC).timestamp()
    assert moment_of("2031-05-01T18:00Z") == expected
    assert moment_of("2031-05-01 20:00+02:00") == expected


def test_a_time_without_a_zone_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")  # 5:45 hours ahead
    time.tzset()
    try:
        zone = timezone(timedelta(hours=5, minutes=45))
        assert moment_of("2031-05-01T18:00") == datetime(2031, 5, 1, 18, tzinfo=zone).timestamp()
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "soon", "90", "m", "1h1d", "-5m", "1.5h", "9" * 30 + "d", "2031-13-01"])
def test_what_can_not_be_read_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="can not be read") as caught:
        moment_of(text)
    assert "90m" in caught.value.advice


def test_a_deadline_must_be_to_come() -> None:
    check_deadline(None)
    check_deadline(time.time() + 60)
    for passed in (time.time() - 60, moment_of("0s"), moment_of("2001-01-01"), float("nan"), 1e20):
        with pytest.raises(OptionError, match="passed"):
            check_deadline(passed)

"""Waiting for services: what is waited for, what is not, and how one gives up."""

from collections.abc import Callable

import pytest

from jobs.errors import LeaseLostError, LedgerError, MissingObjectError, StoreError
from worker.errors import HandedBackError
from worker.metrics import Metrics
from worker.patience import patiently

METRICS = Metrics(model="m", group="cpu:0")


def failing(*errors: Exception) -> Callable[[], str]:
    """An action that fails with these, one after another, and then succeeds."""
    left = list(errors)

    def action() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return action


def nothing(*_: object) -> None: ...


def test_redis_and_the_store_may_go_and_come_back() -> None:
    waits: list[float] = []
    told: list[str] = []
    action = failing(LedgerError("redis"), StoreError("full"), LedgerError("redis"))
    assert patiently(action, check=nothing, metrics=METRICS, report=told.append, sleep=waits.append) == "done"
    assert len(waits) == 3
    assert all(0 <= wait <= 5 for wait in waits)
    assert told == ["full"], "what holds a job up is noted in the ledger, which is not possible for Redis"


@pytest.mark.parametrize("error", [LeaseLostError("x"), MissingObjectError("x"), ValueError("x")])
def test_what_does_not_pass_is_raised_at_once(error: Exception) -> None:
    with pytest.raises(type(error)):
        patiently(failing(error), check=nothing, metrics=METRICS, sleep=pytest.fail)


def test_whoever_waits_may_give_up() -> None:
    def give_up() -> None:
        raise HandedBackError("draining")

    with pytest.raises(HandedBackError):
        patiently(failing(LedgerError("redis")), check=give_up, metrics=METRICS, sleep=pytest.fail)

"""The engine's process as the worker sees it: a tiny real engine, killed, refused and restarted for real."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from jobs.settings import Settings
from model.request import SamplingParams
from tests.services import wait_until
from tests.tiny_checkpoint import CONTEXT, make_tiny_checkpoint
from worker.engine_host import EngineHost
from worker.errors import EngineDiedError, EngineStartError, RequestRefusedError
from worker.groups import parse_groups
from worker.protocol import Finished

LONG = SamplingParams(max_tokens=CONTEXT - 10, temperature=0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def opened(checkpoint: Path, groups: str = "cpu:0", **settings: object) -> EngineHost:
    return EngineHost.open(parse_groups(groups)[0], checkpoint, Settings(**settings))  # type: ignore[arg-type]


@pytest.fixture
def host(checkpoint: Path) -> Iterator[EngineHost]:
    host = opened(checkpoint)
    host.start()
    yield host
    host.close()


def test_answers_come_to_who_asked(host: EngineHost) -> None:
    answers = [host.submit(f"r{number}", [5 + number, 6], SHORT) for number in range(20)]
    found = [answer.result(60) for answer in answers]
    assert [each.id for each in found] == [f"r{number}" for number in range(20)]
    assert all((each.prompt_tokens, each.completion_tokens) == (2, 3) for each in found)
    assert all(each.engine_seconds > 0 for each in found)
    assert host.requests == 20


def test_a_refusal_is_one_requests_own(host: EngineHost) -> None:
    bad = host.submit("bad", [5] * (CONTEXT + 8), SHORT)
    good = host.submit("good", [5], SHORT)
    with pytest.raises(RequestRefusedError) as refusal:
        bad.result(60)
    assert refusal.value.code == "context_length_exceeded"
    assert good.result(60).finish_reason == "length"


def test_an_engine_that_dies_fails_what_is_in_flight_and_another_takes_over(host: EngineHost) -> None:
    answers = [host.submit(f"r{number}", [5, 6], LONG) for number in range(50)]
    killed = host.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    failed = [error for answer in answers if isinstance(error := outcome(answer), EngineDiedError)]
    assert failed
    assert "SIGKILL" in str(failed[0])
    assert host.submit("after", [5], SHORT).result(60).completion_tokens == 3
    assert host.pid != killed
    assert not host.hopeless.is_set()


def test_what_is_aborted_is_cancelled_and_takes_no_more_steps(host: EngineHost) -> None:
    unwanted = [host.submit(f"r{number}", [5, 6], LONG) for number in range(8)]
    host.abort([f"r{number}" for number in range(8)])
    assert all(answer.cancelled() for answer in unwanted)
    assert host.submit("r0", [5], SHORT).result(60).completion_tokens == 3, "the id is free again"


def test_a_closed_engine_leaves_no_process_and_no_waiting_caller(checkpoint: Path) -> None:
    host = opened(checkpoint, "cpu:0-1", tensor_parallel_size=2)
    host.start()
    engine = host.pid
    assert engine is not None
    answer = host.submit("r", [5, 6], LONG)
    host.close()
    assert isinstance(outcome(answer), EngineDiedError | None)
    wait_until(lambda: not group_lives(engine), seconds=20, what="the ranks to end")
    with pytest.raises(EngineDiedError):
        host.submit("late", [5], SHORT)


def test_a_model_that_is_not_there_is_no_reason_to_try_again(tmp_path: Path) -> None:
    host = opened(tmp_path)
    with pytest.raises(EngineStartError, match=r"config\.json"):
        host.start()
    assert host.hopeless.wait(10)
    host.close()


def test_a_device_without_support_is_named(checkpoint: Path) -> None:
    host = opened(checkpoint, "npu:0")
    with pytest.raises(EngineStartError, match="no support for device npu"):
        host.start()
    host.close()


def outcome(answer: "Future[Finished]") -> BaseException | None:
    return answer.exception(60)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True

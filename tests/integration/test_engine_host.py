"""The engine's process as the worker sees it: a tiny real engine and an echo, killed, hung and poisoned."""

import os
import queue
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.settings import Settings
from model.request import SamplingParams
from tests.services import wait_until
from tests.tiny_checkpoint import CONTEXT, make_tiny_checkpoint
from worker.engine_host import Answer, Blamed, EngineHost
from worker.errors import EngineStartError
from worker.groups import parse_groups
from worker.metrics import Metrics
from worker.protocol import Finished, Generate, Refused

LONG = SamplingParams(max_tokens=CONTEXT - 10, temperature=0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
FAULTS = Path(__file__).parent / "engine_faults"


class Asker:
    """Asks a host and collects its answers."""

    def __init__(self, host: EngineHost) -> None:
        self.host = host
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def ask(self, prompts: dict[str, list[int]], params: SamplingParams) -> None:
        self.host.submit(
            [Generate(name, tuple(ids), params) for name, ids in prompts.items()], self._answers.put
        )

    def say(self, *texts: str) -> None:
        """Ask an echo engine for these texts; each is its own request's id."""
        self.ask({text: list(text.encode()) for text in texts}, SamplingParams(max_tokens=100, temperature=0))

    def answers(self, count: int, seconds: float = 60) -> dict[str, Finished | Refused | Blamed]:
        found = [self._answers.get(timeout=seconds) for _ in range(count)]
        return {answer.id: answer.result for answer in found}

    @property
    def quiet(self) -> bool:
        return self._answers.empty()


@contextmanager
def running(checkpoint: Path, groups: str = "cpu:0", **settings: object) -> Iterator[Asker]:
    host = opened(checkpoint, groups, **settings)
    host.start()
    try:
        yield Asker(host)
    finally:
        host.close()


def opened(checkpoint: Path, groups: str, **settings: object) -> EngineHost:
    metrics = Metrics(model="tiny", group=groups)
    return EngineHost.open(parse_groups(groups)[0], checkpoint, Settings(**settings), metrics)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny(checkpoint: Path) -> Iterator[Asker]:
    with running(checkpoint) as asker:
        yield asker


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Asker]]:
    """Echo engines in whose processes faults happen, see `engine_faults`."""
    monkeypatch.setenv("PYTHONPATH", f"{FAULTS}:{os.environ.get('PYTHONPATH', '')}")
    hosts: list[EngineHost] = []

    def start(**settings: object) -> Asker:
        hosts.append(opened(Path(), "echo:0", **settings))
        hosts[-1].start()
        return Asker(hosts[-1])

    yield start
    for host in hosts:
        host.close()


def test_answers_come_to_who_asked(tiny: Asker) -> None:
    tiny.ask({f"r{number}": [5 + number, 6] for number in range(20)}, SHORT)
    found = tiny.answers(20)
    assert found.keys() == {f"r{number}" for number in range(20)}
    for each in found.values():
        assert isinstance(each, Finished)
        assert (each.prompt_tokens, each.completion_tokens) == (2, 3)
        assert each.engine_seconds > 0
    assert tiny.host.requests == 20


def test_the_engine_tells_its_devices_memory(tiny: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU more than torch takes by itself."""
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    monkeypatch.setattr(Metrics, "engine_state", lambda _, **state: told.put(state["device_memory_bytes"]))
    tiny.ask({"r": [5, 6]}, SHORT)
    tiny.answers(1)
    assert told.get(timeout=60) > 2**26


def test_a_refusal_is_one_requests_own(tiny: Asker) -> None:
    tiny.ask({"bad": [5] * (CONTEXT + 8), "good": [5]}, SHORT)
    found = tiny.answers(2)
    assert isinstance(found["bad"], Refused)
    assert found["bad"].code == "context_length_exceeded"
    assert isinstance(found["good"], Finished)


def test_what_an_engine_had_when_it_died_is_resumed_by_the_next(tiny: Asker) -> None:
    tiny.ask({f"r{number}": [5, 6] for number in range(50)}, LONG)
    killed = tiny.host.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    found = tiny.answers(50)
    assert all(isinstance(each, Finished) for each in found.values())
    assert tiny.host.pid != killed
    assert tiny.host.starts == 2
    assert not tiny.host.hopeless.is_set()


def test_what_is_aborted_takes_no_more_steps(tiny: Asker) -> None:
    names = [f"r{number}" for number in range(8)]
    tiny.ask({name: [5, 6] for name in names}, LONG)
    tiny.host.abort(names)
    tiny.ask({"r0": [5]}, SHORT)
    (answer,) = tiny.answers(1).values()
    assert isinstance(answer, Finished)
    assert answer.completion_tokens == 3, "the id is free again"
    assert tiny.quiet


def test_a_closed_engine_leaves_no_process(checkpoint: Path) -> None:
    with running(checkpoint, "cpu:0-1", tensor_parallel_size=2) as asker:
        engine = asker.host.pid
        assert engine is not None
        asker.ask({"r": [5, 6]}, LONG)
    wait_until(lambda: not group_lives(engine), seconds=20, what="the ranks to end")


def test_a_model_that_is_not_there_is_no_reason_to_try_again(tmp_path: Path) -> None:
    host = opened(tmp_path, "cpu:0")
    with pytest.raises(EngineStartError, match=r"config\.json"):
        host.start()
    assert host.hopeless.wait(10)
    host.close()


def test_a_device_without_support_is_named(checkpoint: Path) -> None:
    host = opened(checkpoint, "npu:0")
    with pytest.raises(EngineStartError, match="device npu needs torch_npu"):
        host.start()
    host.close()


def test_what_a_device_can_not_do_is_said_by_the_engine(checkpoint: Path) -> None:
    host = opened(checkpoint, "cpu:0", quantization="w8a16")
    with pytest.raises(EngineStartError, match="device cpu does not multiply by int8 weights"):
        host.start()
    host.close()


def test_an_engine_that_is_not_ready_in_time_is_killed(checkpoint: Path) -> None:
    host = opened(checkpoint, "cpu:0", engine_start_seconds=0.01, engine_hang_seconds=0.1)
    with pytest.raises(EngineStartError, match="not ready within 0 s"):
        host.start()
    host.close()


def test_an_engine_that_makes_no_step_is_killed_and_what_it_had_resumed(
    checkpoint: Path,
) -> None:
    with running(checkpoint, engine_hang_seconds=1.0) as asker:
        asker.ask({"long": [5, 6]}, LONG)
        stopped = asker.host.pid
        assert stopped is not None
        os.killpg(stopped, signal.SIGSTOP)
        (answer,) = asker.answers(1).values()
        assert isinstance(answer, Finished)
        assert asker.host.starts == 2
        assert not group_lives(stopped)


def test_an_idle_engine_is_not_taken_for_a_hung_one(faulty: Callable[..., Asker]) -> None:
    asker = faulty(engine_hang_seconds=0.2)
    asker.say("a")
    asker.answers(1)
    with pytest.raises(queue.Empty):
        asker.answers(1, seconds=1.0)  # five times the limit, with nothing to do
    asker.say("b")
    assert isinstance(asker.answers(1)["b"], Finished)
    assert asker.host.starts == 1


def test_one_line_that_kills_engines_is_found_and_the_others_are_answered(
    faulty: Callable[..., Asker],
) -> None:
    asker = faulty()
    texts = [f"t{number}" for number in range(40)]
    asker.say(*texts[:17], "DIE", *texts[17:])
    found = asker.answers(41)
    guilty = found.pop("DIE")
    assert isinstance(guilty, Blamed)
    assert "SIGABRT" in guilty.reason
    assert all(isinstance(each, Finished) and each.text == name for name, each in found.items())
    assert asker.host.starts <= 12, "halves of halves"


def test_two_lines_that_kill_engines_and_one_that_hangs_them(faulty: Callable[..., Asker]) -> None:
    asker = faulty(engine_hang_seconds=0.5)
    asker.say("a", "DIE 1", "b", "c", "HANG", "d", "e", "f", "DIE 2")
    asker.say("later")  # waits until the trials are over
    found = asker.answers(10)
    assert {name for name, each in found.items() if isinstance(each, Blamed)} == {"DIE 1", "DIE 2", "HANG"}
    hung = found["HANG"]
    assert isinstance(hung, Blamed)
    assert "made no step for 0.5 s" in hung.reason


def test_engines_that_die_of_anything_blame_no_line(
    faulty: Callable[..., Asker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe dies too: the device is broken, and the worker has to give up."""
    monkeypatch.setenv("FAULTS_EVERY", "1")
    asker = faulty()
    asker.say("a")
    assert asker.host.hopeless.wait(60)
    assert asker.quiet


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True

"""Running lines of a cancelled job stop at once: their worker hears of it and waits for no renewal."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.call_offs import CallOffs
from jobs.records import JobState
from producer.submission import Order
from tests.chaos.fleet import injected
from tests.fleet import Place, Worker, wait_for_job
from tests.services import Valkey, wait_until

pytestmark = pytest.mark.slow

#: As the documentation had them before there was a channel.
EARLIER_RIGHTS = (
    "~longhaul ~longhaul:* resetchannels -@all +@connection +@transaction +@scripting +@read +@write +time"
)
LINES = 4


@pytest.fixture
def place(valkey: Valkey, tmp_path: Path) -> Place:
    """For echoes that take minutes for a line of four thousand letters."""
    return Place.at(tmp_path, redis=valkey.url, model=tmp_path, model_name="echo", echo_step_seconds="0.05")


def ended_after_cancel(place: Place, worker: Worker) -> None:
    """Cancel a job of which every line is running: all of them end without an answer."""
    path = place.folder / "lines.jsonl"
    path.write_text(f'{{"prompt": "{4000 * "x"}", "max_tokens": 4000}}\n' * LINES)
    with place.client() as client:
        job = client.submit(Order(sources=(str(path),), model="echo")).spec.id
        worker.wait_for("shard begun")
        client.cancel(job)
        status = wait_for_job(
            client.ledger, job, lambda job: job.state.final, seconds=60, what="the job's end"
        )
    assert (status.state, status.succeeded, status.failed) == (JobState.CANCELLED, 0, LINES)


def test_lines_stop_long_before_their_lease_is_renewed(place: Place) -> None:
    seldom = {
        **injected(place.folder, {"worker.leases._NOTICE_SECONDS": "3600"}),
        "LONGHAUL_LEASE_SECONDS": "14400",
    }
    with replace(place, environment={**place.environment, **seldom}).worker("echo:0") as worker:
        ended_after_cancel(place, worker)


def test_without_the_right_to_a_channel_the_next_renewal_tells(place: Place, valkey: Valkey) -> None:
    with valkey.client() as redis:
        redis.execute_command("ACL", "SETUSER", "fleet", "on", ">secret", *EARLIER_RIGHTS.split())
    url = f"redis://fleet:secret@127.0.0.1:{valkey.port}/0"
    limited = replace(place, environment={**place.environment, "LONGHAUL_REDIS_URL": url})
    with limited.worker("echo:0") as worker:
        ended_after_cancel(limited, worker)
        assert worker.events("no word of cancelled jobs: leases tell a second later") != []


def test_word_comes_again_after_redis_was_away(place: Place, valkey: Valkey) -> None:
    heard = threading.Event()
    call_offs = CallOffs(place.settings, heard.set)
    call_offs.start()

    def told() -> bool:
        with valkey.client() as redis:
            return bool(redis.publish("longhaul:called_off", "job-1"))

    try:
        wait_until(told, seconds=20, what="somebody to listen")
        assert heard.wait(20)
        valkey.stop()
        heard.clear()
        valkey.start()
        wait_until(told, seconds=20, what="somebody to listen again")
        assert heard.wait(20)
    finally:
        call_offs.close()

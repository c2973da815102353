"""Results are the parts in order, and reach a file whole or not at all. Needs no Redis."""

import os
import stat
import threading
from pathlib import Path

import msgspec
import pytest

from jobs.dialogue import error_line
from jobs.errors import MissingObjectError, StoreError, UnknownJobError
from jobs.records import JobKeys, JobSpec
from jobs.settings import load_settings
from jobs.storage import Store
from producer.delivery import Written, write_results
from producer.errors import UnfinishedError
from producer.results import result_lines
from tests.output_lines import answered

JOB = "job-1"
KEYS = JobKeys(JOB)


def good(line: int, text: str = "an answer") -> bytes:
    return answered(JOB, line, text) + b"\n"


def bad(line: int) -> bytes:
    return error_line(JOB, line, None, "invalid_json", "no") + b"\n"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A job of six lines in three shards, of which the first and the last are committed."""
    monkeypatch.chdir(tmp_path)
    store = Store.open(load_settings(store_url=f"file://{tmp_path}/store"))
    store.put(KEYS.spec, msgspec.json.encode(SPEC))
    store.put(KEYS.part(0), good(1) + bad(2))
    store.put(KEYS.part(2), good(5) + good(6))
    return store


SPEC = JobSpec(
    id=JOB, model="m", created_at=0, source="s", lines=6, rejected=1, shards=3, input_bytes=1, input_sha256=""
)


def end(store: Store, *, success: bool) -> None:
    store.put(KEYS.manifest, b"{}")
    if success:
        store.put(KEYS.success, b"")


def test_all_lines_in_the_order_of_the_input(store: Store, tmp_path: Path) -> None:
    store.put(KEYS.part(1), bad(3) + good(4))
    end(store, success=True)
    out = tmp_path / "out.jsonl"
    written = write_results(store, JOB, output=out, errors=None, partial=False)
    assert out.read_bytes() == good(1) + bad(2) + bad(3) + good(4) + good(5) + good(6)
    assert written == Written(succeeded=4, failed=2, missing=0)


def test_failed_lines_go_to_their_own_file(store: Store, tmp_path: Path) -> None:
    store.put(KEYS.part(1), bad(3) + good(4))
    end(store, success=True)
    out, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    write_results(store, JOB, output=out, errors=errors, partial=False)
    assert out.read_bytes() == good(1) + good(4) + good(5) + good(6)
    assert errors.read_bytes() == bad(2) + bad(3)


def test_a_job_that_runs_has_partial_results_alone(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(UnfinishedError):
        write_results(store, JOB, output=out, errors=None, partial=False)
    assert not out.exists()
    written = write_results(store, JOB, output=out, errors=None, partial=True)
    assert out.read_bytes() == good(1) + bad(2) + good(5) + good(6)
    assert written == Written(succeeded=3, failed=1, missing=2)


def test_a_job_that_was_called_off_has_what_was_finished(store: Store, tmp_path: Path) -> None:
    end(store, success=False)
    written = write_results(store, JOB, output=tmp_path / "out", errors=None, partial=False)
    assert written == Written(succeeded=3, failed=1, missing=2)


def test_a_completed_job_without_a_part_is_an_error(store: Store, tmp_path: Path) -> None:
    end(store, success=True)
    out = tmp_path / "out.jsonl"
    out.write_text("what was here before")
    with pytest.raises(MissingObjectError, match="part-00001"):
        write_results(store, JOB, output=out, errors=None, partial=False)
    assert out.read_text() == "what was here before"
    assert {path.name for path in tmp_path.iterdir()} == {"store", "out.jsonl"}


def test_a_damaged_part_is_an_error(store: Store, tmp_path: Path) -> None:
    store.put(KEYS.part(1), b'{"id":"job-1-3","response":{')
    with pytest.raises(StoreError, match="damaged"):
        write_results(store, JOB, output=tmp_path / "out", errors=None, partial=True)


def test_an_unknown_job(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UnknownJobError):
        write_results(store, "job-2", output=tmp_path / "out", errors=None, partial=False)


def test_lines_that_cross_chunks_come_whole(store: Store) -> None:
    long = good(3, "長" * 3_000_000)  # 9 MB: over the size of a chunk
    store.put(KEYS.part(1), long + good(4))
    assert list(result_lines(store, SPEC, partial=True))[2:4] == [long, good(4)]


def test_the_file_has_the_usual_mode_and_a_link_stays_a_link(store: Store, tmp_path: Path) -> None:
    plain, link = tmp_path / "plain", tmp_path / "link"
    plain.touch()
    usual = stat.S_IMODE(plain.stat().st_mode)
    link.symlink_to(plain)
    write_results(store, JOB, output=link, errors=None, partial=True)
    assert link.is_symlink()
    assert plain.read_bytes().startswith(good(1))
    assert stat.S_IMODE(plain.stat().st_mode) == usual


def test_a_pipe_is_written_and_not_replaced(store: Store, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_results(store, JOB, output=pipe, errors=None, partial=True)
    reader.join(10)
    assert heard == [good(1) + bad(2) + good(5) + good(6)]
    assert pipe.is_fifo()

"""A job and its retries as one stream. Needs no Redis: parts are written as workers would."""

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from jobs.dialogue import error_line
from jobs.errors import StoreError
from jobs.origin import encode_origin, read_origins
from jobs.records import JobKeys, JobSpec
from jobs.settings import load_settings
from jobs.storage import Store
from producer.delivery import Written, write_results
from producer.errors import UnfinishedError
from producer.merge import family_of, merged_lines
from producer.results import stored_spec
from tests.output_lines import answered

#: A line by its number: its answer, or the message of its error after a "!".
Lines = Mapping[int, str]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(load_settings(store_url=f"file://{tmp_path}/store"))


def line(job: str, number: int, text: str) -> bytes:
    if text.startswith("!"):
        return error_line(job, number, f"id-{text}", "engine_error", text[1:]) + b"\n"
    return answered(job, number, text, f"id-{text}", logprobs={"content": [{"logprob": -0.1}]}) + b"\n"


def write_job(
    store: Store, job: str, *parts: Lines, age: int, of: str | None = None, origins: tuple[int, ...] = ()
) -> None:
    """A job that has ended; an empty part is one that was never written."""
    keys = JobKeys(job)
    for number, lines in enumerate(parts):
        if lines:
            store.put(keys.part(number), b"".join(line(job, each, lines[each]) for each in lines))
    spec = JobSpec(
        id=job,
        model="m",
        created_at=age,
        source="s",
        lines=6,
        rejected=0,
        shards=len(parts),
        input_bytes=1,
        input_sha256="",
        retry_of=of,
    )
    if of is not None:
        store.put(keys.origin, b"".join(map(encode_origin, origins)))
        store.put(f"{JobKeys(of).retries}/{job}", b"")
    store.put(keys.spec, msgspec.json.encode(spec))
    store.put(keys.manifest, b"{}")


def merged(store: Store, job: str, *, partial: bool = False) -> dict[int, str]:
    """The texts by number; what every line says of itself is checked on the way."""
    texts: dict[int, str] = {}
    for row in merged_lines(store, stored_spec(store, job), partial=partial):
        assert row.endswith(b"\n")
        read = json.loads(row)
        owner, _, number = read["id"].rpartition("-")
        assert owner == job
        if read["error"]:
            text = "!" + read["error"]["message"]
        else:
            body = read["response"]["body"]
            text = body["choices"][0]["message"]["content"]
            assert read["response"]["request_id"] == f"req-{read['id']}"
            assert body["id"] == f"chatcmpl-{read['id']}"
            assert body["choices"][0]["logprobs"] == {"content": [{"logprob": -0.1}]}
        assert read["custom_id"] == f"id-{text}"
        texts[int(number)] = text
    assert list(texts) == sorted(texts)
    return texts


def test_failed_and_missing_lines_come_from_the_retry(store: Store) -> None:
    write_job(store, "job", {1: "a", 2: "!no"}, {}, {5: "!no", 6: "f"}, age=1)
    write_job(store, "retry", {1: "B", 2: "C"}, {3: "!still", 4: "E"}, age=2, of="job", origins=(2, 3, 4, 5))
    assert merged(store, "job") == {1: "a", 2: "B", 3: "C", 4: "!still", 5: "E", 6: "f"}


def test_without_retries_the_bytes_are_the_jobs_own(store: Store) -> None:
    write_job(store, "job", {1: "a", 2: "!no"}, age=1)
    rows = list(merged_lines(store, stored_spec(store, "job")))
    assert b"".join(rows) == store.get(JobKeys("job").part(0))


def test_a_success_goes_before_a_failure_and_the_latest_before_others(store: Store) -> None:
    write_job(store, "job", dict.fromkeys(range(1, 7), "!0"), age=1)
    origins = (1, 2, 3)
    write_job(store, "z-old", {1: "old", 2: "!old", 3: "old"}, age=2, of="job", origins=origins)
    write_job(store, "a-new", {1: "!new", 2: "!new", 3: "new"}, age=3, of="job", origins=origins)
    assert merged(store, "job") == {1: "old", 2: "!new", 3: "new", 4: "!0", 5: "!0", 6: "!0"}


def test_a_retry_of_a_retry_is_followed(store: Store) -> None:
    write_job(store, "job", {1: "a", 2: "!0", 3: "!0", 4: "!0"}, age=1)
    write_job(store, "child", {1: "!1", 2: "C", 3: "!1"}, age=2, of="job", origins=(2, 3, 4))
    write_job(store, "grandchild", {1: "B", 2: "!2"}, age=3, of="child", origins=(1, 3))
    assert merged(store, "job") == {1: "a", 2: "B", 3: "C", 4: "!2"}
    assert merged(store, "child") == {1: "B", 2: "C", 3: "!2"}


def test_missing_parts_of_the_retry_leave_what_the_job_has(store: Store) -> None:
    write_job(store, "job", {1: "!0", 2: "!0"}, {}, age=1)
    write_job(store, "retry", {}, {2: "B", 3: "C"}, {}, age=2, of="job", origins=(1, 2, 3, 4))
    assert merged(store, "job") == {1: "!0", 2: "B", 3: "C"}


def test_a_mark_without_a_job_means_nothing(store: Store) -> None:
    write_job(store, "job", {1: "!0"}, age=1)
    store.put(f"{JobKeys('job').retries}/broke-off", b"")
    assert family_of(store, stored_spec(store, "job")).retries == ()
    assert merged(store, "job") == {1: "!0"}


def test_retries_must_have_ended_as_well(store: Store) -> None:
    write_job(store, "job", {1: "!0", 2: "!0"}, age=1)
    write_job(store, "retry", {1: "A"}, {}, age=2, of="job", origins=(1, 2))
    store.delete([JobKeys("retry").manifest])
    with pytest.raises(UnfinishedError, match="job retry, a retry of job, has not finished"):
        merged(store, "job")
    assert merged(store, "job", partial=True) == {1: "A", 2: "!0"}


def test_the_counts_say_what_came_from_retries(store: Store, tmp_path: Path) -> None:
    write_job(store, "job", {1: "a", 2: "!0"}, {}, {5: "!0"}, age=1)
    write_job(store, "retry", {1: "B", 2: "!1"}, age=2, of="job", origins=(2, 5))
    out, errors = tmp_path / "out", tmp_path / "errors"
    written = write_results(store, "job", output=out, errors=errors, partial=False, merge=True)
    assert written == Written(succeeded=2, failed=1, missing=3, retried=2)
    assert [json.loads(row)["id"] for row in out.read_text().splitlines()] == ["job-1", "job-2"]
    assert [json.loads(row)["id"] for row in errors.read_text().splitlines()] == ["job-5"]


@pytest.mark.parametrize(
    ("key", "data", "message"),
    [
        (JobKeys("retry").origin, encode_origin(1), "has no line 2"),
        (JobKeys("retry").origin, encode_origin(1) + b"123", "ends within an entry"),
        (JobKeys("retry").part(0), b'{"id":"retry","response":null}\n', "damaged"),
        (JobKeys("retry").part(0), b'{"id":"retry-1","response":{"status_code":1}}\n', "damaged"),
        (JobKeys("job").part(0), b"not json\n", "damaged"),
    ],
)
def test_damage_is_an_error(store: Store, key: str, data: bytes, message: str) -> None:
    write_job(store, "job", {1: "!0", 2: "!0"}, age=1)
    write_job(store, "retry", {1: "A", 2: "B"}, age=2, of="job", origins=(1, 2))
    store.put(key, data)
    with pytest.raises(StoreError, match=message):
        merged(store, "job")


def test_origins_that_cross_chunks_come_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.storage._CHUNK", 13)
    numbers = [1, 7, 2**40, 2**63]
    store.put(JobKeys("retry").origin, b"".join(map(encode_origin, numbers)))
    assert list(read_origins(store, JobKeys("retry"))) == numbers


def test_memory_does_not_grow_with_the_lines(store: Store) -> None:
    def peak(shards: int) -> int:
        """Of merging a job of which every second line was tried again."""
        job, retry = f"job-{shards}", f"retry-{shards}"
        parts = [
            {n: "!0" if n % 2 else "x" * 2000 for n in range(s * 50, s * 50 + 50)} for s in range(shards)
        ]
        failed = [n for part in parts for n in part if n % 2]
        answers = [
            {n + 1: "y" * 2000 for n in range(s, min(s + 50, len(failed)))} for s in range(0, len(failed), 50)
        ]
        write_job(store, job, *parts, age=1)
        write_job(store, retry, *answers, age=2, of=job, origins=tuple(failed))
        tracemalloc.start()
        assert sum(1 for _ in merged_lines(store, stored_spec(store, job))) == 50 * shards
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(80) < 2 * peak(4)

"""Names that can not escape, and places that never change."""

import pytest

from jobs.errors import JobsError
from jobs.records import JobKeys, ShardRef, checked_model_name, new_job_id
from jobs.shard_index import ENTRY_BYTES


def test_new_ids_are_valid_and_distinct() -> None:
    ids = {new_job_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(JobKeys(job_id).root == f"jobs/{job_id}" for job_id in ids)


@pytest.mark.parametrize("job_id", ["", "../x", "a/b", "A", "a b", "-a", "a" * 64, "a\n", "é", "a:b", "*"])
def test_an_id_that_could_escape_its_prefix_is_refused(job_id: str) -> None:
    with pytest.raises(JobsError, match="not a job id"):
        JobKeys(job_id)
    with pytest.raises((JobsError, ValueError)):
        ShardRef.parse(f"{job_id}/1")


@pytest.mark.parametrize("name", ["", "a/b", "a b", ".hidden", "a" * 129, "a\n"])
def test_a_model_name_that_could_not_be_a_queues_is_refused(name: str) -> None:
    with pytest.raises(JobsError, match="not a model name"):
        checked_model_name(name)


def test_a_shards_name_reads_back() -> None:
    ref = ShardRef("job-1", 12)
    assert ShardRef.parse(str(ref)) == ref


def test_the_places_of_a_job() -> None:
    keys = JobKeys("j")
    assert keys.part(7) == "jobs/j/output/part-00007.jsonl"
    assert keys.part(123456) == "jobs/j/output/part-123456.jsonl"
    assert keys.receipt(7) == "jobs/j/receipts/part-00007.json"
    assert ENTRY_BYTES == 96, "written into stores: it can not change"

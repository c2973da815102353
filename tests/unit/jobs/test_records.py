"""Names that can not escape, and places that never change."""

import msgspec
import pytest

from jobs.dialogue import Sampling
from jobs.errors import JobsError
from jobs.records import JobKeys, JobSpec, ShardRef, checked_model_name, new_job_id
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


def test_a_job_of_an_earlier_version_is_readable() -> None:
    """The object as version 0.1 wrote it, before sampling had penalties."""
    written = (
        b'{"id":"job-1","model":"m","created_at":1.5,"source":"a.jsonl","system":null,"prompt_template":null,'
        b'"sampling":{"max_tokens":7,"temperature":0.5,"stop":["A"]},"priority":"normal","lines":3,'
        b'"rejected":1,"shards":1,"input_bytes":9,"input_sha256":"ab"}'
    )
    spec = msgspec.json.decode(written, type=JobSpec)
    assert spec.sampling == Sampling(max_tokens=7, temperature=0.5, stop=("A",))
    assert spec.sampling.repetition_penalty is None
    since = b',"deadline":null,"retry_of":null,"reuse_of":null}'
    assert msgspec.json.encode(spec) == written[:-1] + since

"""Threads of a worker begin at the same moment: what each reads first must not end the process.

msgspec builds what it knows of a class at the first decode, and whoever comes in between finds it half built
and reads through a null pointer. A fleet met this twice in some thousand starts of a worker; here the threads
are made to take turns as often as Python can.
"""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

RACE = """
import sys, threading
import msgspec
import worker.process
from jobs import records, shard_index
from worker import manifest, shard_input

class Store:
    url = "memory"
    def get(self, key):
        return spec if key.endswith("job.json") else receipt
    def get_range(self, key, offset, length):
        return reject

spec = msgspec.json.encode(records.JobSpec(
    id="j", model="m", created_at=1.0, source="s", lines=1, rejected=0, shards=1, input_bytes=1,
    input_sha256=""))
receipt = msgspec.json.encode(records.Receipt(
    shard=0, lines=1, succeeded=1, failed=0, sha256="", bytes=1, prompt_tokens=1, completion_tokens=1,
    device_seconds=1.0, worker=None, epoch=1))
reject = msgspec.json.encode(records.Reject(line=1, custom_id=None, code="c", message="m"))
keys = records.JobKeys("j")
shard = records.Shard(offset=0, length=1, first_line=1, lines=1, rejects_offset=0, rejects_length=1)
reads = {
    "spec": lambda: shard_input._job_spec.__wrapped__(Store(), keys.spec),
    "receipt": lambda: manifest.known_receipt(Store(), keys, 0),
    "rejects": lambda: shard_index.read_rejects(Store(), keys, shard),
}
sys.setswitchinterval(1e-6)
read = reads[sys.argv[1]]
together = threading.Barrier(8)
def begin():
    together.wait()
    read()
threads = [threading.Thread(target=begin) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("what", ["spec", "receipt", "rejects"])
def test_a_first_decode_in_several_threads_at_once(what: str) -> None:
    command = [sys.executable, "-c", RACE, what]
    ends = [subprocess.run(command, check=False).returncode for _ in range(12)]
    assert set(ends) == {0}, f"{sum(end != 0 for end in ends)} of {len(ends)} processes died: {ends}"

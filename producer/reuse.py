"""Finds an earlier job with the same content, model and parameters, whose finished lines may be taken over.

Owns the index: for every job an empty object `reuse/<fingerprint>/<job>`, written after its `job.json`. Jobs
of one fingerprint have the same lines in the same shards. Never reads parts: a worker takes over what it
finds.
"""

import hashlib
from functools import partial
from itertools import islice

import msgspec

from jobs.records import JobKeys, JobSpec
from jobs.settings import Settings
from jobs.storage import Store

#: Jobs that are looked at: who submits the same file every day needs no look at all of them.
_CONSIDERED = 16


def fingerprint(spec: JobSpec, settings: Settings) -> str:
    """What two jobs must have in common for a line of the one to be a line of the other."""
    common = {
        "input_sha256": spec.input_sha256,
        "model": spec.model,
        "system": spec.system,
        "prompt_template": spec.prompt_template,
        "sampling": spec.sampling,
        "shard_lines": settings.shard_lines,
        "shard_bytes": settings.shard_bytes,
        "max_line_bytes": settings.max_line_bytes,
    }
    return hashlib.sha256(msgspec.json.encode(common, order="sorted")).hexdigest()


def index_key(content: str, job_id: str) -> str:
    """The object that says that the job has this fingerprint."""
    return f"reuse/{content}/{job_id}"


def earlier_job(store: Store, content: str) -> str | None:
    """Of the fingerprint's latest jobs the one with the most parts, of equals the newest; None without any.

    An index object whose job is not in the store is left of a submission that broke off.
    """
    prefix = index_key(content, "")
    newest_first = sorted((key.removeprefix(prefix) for key in store.list(prefix)), reverse=True)
    stored = (job_id for job_id in newest_first if store.size(JobKeys(job_id).spec) is not None)
    return max(islice(stored, _CONSIDERED), key=partial(_parts, store), default=None)


def _parts(store: Store, job_id: str) -> int:
    return sum(1 for _ in store.list(f"{JobKeys(job_id).root}/output/"))

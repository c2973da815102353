"""What can go wrong for a user, each with a code and with what to do about it."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from jobs.records import Reject

#: What to do about the errors of `jobs`, which do not know who reads them.
ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "ledger_unavailable": "check that Redis runs and that LONGHAUL_REDIS_URL names it",
        "store_unavailable": "check LONGHAUL_STORE_URL and the store's address and credentials",
        "object_missing": "check the name, and that LONGHAUL_STORE_URL is the job's own store",
        "unknown_job": "`producer list` shows the jobs",
        "invalid_settings": "correct the environment or .env",
    }
)


class ProducerError(Exception):
    """Base of the package's errors: one line of what is wrong, one of what to do."""

    code = "producer_error"

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what)
        self.advice = advice


class InputError(ProducerError):
    """The input can not be read, or there is nothing in it."""

    code = "invalid_input"


class RefusedError(ProducerError):
    """A strict submission found lines that are unusable; nothing was created."""

    code = "unusable_lines"

    def __init__(self, what: str, advice: str, unusable: Sequence[Reject], total: int) -> None:
        super().__init__(what, advice)
        #: The first of them, and the number of all.
        self.unusable, self.total = unusable, total


class ModelError(ProducerError):
    """No model was named and none can be inferred, or its folder is unusable."""

    code = "no_model"


class OptionError(ProducerError):
    """An option's value makes no sense."""

    code = "invalid_option"


class UnconfirmedError(ProducerError):
    """The job is whole in the store, but Redis did not say whether it took it."""

    code = "unconfirmed"


class UnfinishedError(ProducerError):
    """Results were asked for before there are all of them."""

    code = "unfinished"


class LocalError(ProducerError):
    """Something that `--local` runs on this machine did not start or has died."""

    code = "local_run_failed"

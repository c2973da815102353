"""What can go wrong in the contract, each with a code that outputs, logs and exit messages carry."""


class JobsError(Exception):
    """Base of the package's errors: the message is one line and says what to do."""

    code = "jobs_error"


class LineError(JobsError):
    """One input line is unusable; the job goes on without it."""

    code = "invalid_request"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class StoreError(JobsError):
    """The object store can not be reached or refuses a read or a write."""

    code = "store_unavailable"


class MissingObjectError(StoreError):
    """An object that the job needs is not in the store."""

    code = "object_missing"


class LedgerError(JobsError):
    """Redis can not be reached or answers what it should not."""

    code = "ledger_unavailable"


class UnknownJobError(JobsError):
    """No job of this id is in the ledger."""

    code = "unknown_job"


class HintError(JobsError):
    """A message of the queue names no shard."""

    code = "invalid_hint"


class LeaseLostError(JobsError):
    """A write came with an epoch that is no longer the shard's: another worker owns it, or nobody does."""

    code = "lease_lost"


class SettingsError(JobsError):
    """A setting is missing or contradicts another."""

    code = "invalid_settings"

"""What can go wrong in a worker, each with a code that logs and exit messages carry."""


class WorkerError(Exception):
    """Base of the package's errors: the message is one line and says what to do."""

    code = "worker_error"


class DeviceGroupError(WorkerError):
    """LONGHAUL_DEVICE_GROUPS can not be read, or asks for what can not be."""

    code = "invalid_device_groups"


class EngineStartError(WorkerError):
    """The engine can not run this model on these devices; starting it again would not help."""

    code = "engine_start"


class EngineDiedError(WorkerError):
    """The engine's process ended with requests unanswered; it is started again."""

    code = "engine_died"


class RequestRefusedError(WorkerError):
    """The engine refused one request; the others go on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class HandedBackError(WorkerError):
    """The worker is draining: the shard goes back to the ledger with what is checkpointed."""

    code = "handed_back"

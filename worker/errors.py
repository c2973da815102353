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


class HandedBackError(WorkerError):
    """The worker is draining: the shard goes back to the ledger with what is checkpointed."""

    code = "handed_back"


class MetricsPortError(WorkerError):
    """The metrics can not be served where the settings say."""

    code = "metrics_port"

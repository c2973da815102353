"""Which model a job is for, where the user does not say. Owns that choice alone."""

from collections.abc import Sequence

from jobs.ledger import WorkerInfo
from jobs.records import checked_model_name
from jobs.settings import Settings
from producer.errors import ModelError


def chosen_model(asked: str | None, settings: Settings, workers: Sequence[WorkerInfo]) -> str:
    """The model asked for, else that of the settings, else the only one that living workers serve."""
    if asked is not None:
        return checked_model_name(asked)
    if settings.served_name is not None:
        return checked_model_name(settings.served_name)
    served = sorted({worker.model for worker in workers})
    if len(served) == 1:
        return served[0]
    if served:
        raise ModelError(f"no model named, and workers serve {', '.join(served)}", "choose one with --model")
    raise ModelError("no model named, and no worker serves one", "name it with --model, or start a worker")


def is_served(model: str, workers: Sequence[WorkerInfo]) -> bool:
    """Whether a living worker serves it."""
    return any(worker.model == model for worker in workers)

"""What can go wrong in an evaluation besides the engine's own errors."""

from model.errors import ModelError


class DataError(ModelError):
    """A file of questions is absent or malformed; the message names it and the line."""

    code = "invalid_data"


class AnswersError(ModelError):
    """The output folder holds another run's answers, is in use, is damaged or can not be written."""

    code = "answers_unusable"


class TaskError(ModelError):
    """The task can not be scored with this checkpoint or these settings."""

    code = "task_unsupported"

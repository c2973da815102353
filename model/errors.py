"""What can go wrong in the engine, each with a code that outputs, logs and exit messages carry."""


class ModelError(Exception):
    """Base of the package's errors: the message is one line and says what to do."""

    code = "model_error"


class ConfigError(ModelError):
    """An engine setting is out of range, contradicts another or does not fit the model or the device."""

    code = "invalid_settings"


class CheckpointError(ModelError):
    """A model folder is incomplete or damaged: no config, a truncated file, a missing tensor."""

    code = "invalid_checkpoint"


class UnsupportedModelError(ModelError):
    """The checkpoint is sound, and describes a model that the engine can not run."""

    code = "unsupported_model"


class RankError(ModelError):
    """A rank of the tensor-parallel group died or can not be reached: the engine is over."""

    code = "engine_error"


class NpuCallError(ModelError):
    """An operation of an NPU is called as its documentation forbids: a mistake in the engine, not in use."""

    code = "npu_call"


class RequestError(ModelError):
    """One request is refused; the engine goes on with the others."""

    code = "invalid_request"


class InvalidParams(RequestError):  # noqa: N818 - a public name, and it reads well in an except clause
    """The sampling parameters are out of range or contradict each other."""


class InvalidPrompt(RequestError):  # noqa: N818
    """The prompt is empty or holds a token id outside the vocabulary."""


class PromptTooLong(RequestError):  # noqa: N818
    """Prompt and answer together are longer than the context."""

    code = "context_length_exceeded"


class InvalidMessages(RequestError):  # noqa: N818
    """A message list can not become a prompt: an unknown role, no text, or refused by the template."""


class TokenizerError(CheckpointError):
    """The tokenizer's files are absent or damaged, or the checkpoint has no chat template."""

    code = "invalid_tokenizer"


class ConvertError(ModelError):
    """A conversion can not start or end: the target is there already or in use, or can not be written."""

    code = "convert_failed"

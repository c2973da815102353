"""The engine: exact, batched generation of the InternLM family.

It knows nothing of jobs, Celery, Redis or storage.

The public names load on first use, so that `import model.chat` and `import model.request` bring in no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.config import EngineConfig
    from model.engine import Engine, EngineStats
    from model.llm import LLM
    from model.request import Completion, Request, SamplingParams, TokenLogprob

_HOMES = {
    "LLM": "model.llm",
    "Completion": "model.request",
    "Engine": "model.engine",
    "EngineConfig": "model.config",
    "EngineStats": "model.engine",
    "Request": "model.request",
    "SamplingParams": "model.request",
    "TokenLogprob": "model.request",
}

__all__ = [
    "LLM",
    "Completion",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "Request",
    "SamplingParams",
    "TokenLogprob",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module the first time it is asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

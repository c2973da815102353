"""LLM: all prompts in, all completions out. The whole of the engine for scripts, notebooks and tests."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from model.chat import Message
from model.config import EngineConfig
from model.engine import Engine
from model.errors import InvalidParams, InvalidPrompt
from model.request import Completion, Request, SamplingParams

#: Text, token ids, or the messages of a conversation.
Prompt = str | Sequence[int] | Sequence[Message]


class LLM:
    """A model that is ready to generate. Use it as a context manager, or call `close`."""

    def __init__(self, path: str | Path, **options: Any) -> None:
        """Load the model in folder `path`; `options` are the fields of EngineConfig. Raises ModelError."""
        self.engine = Engine(EngineConfig(path=Path(path), **options))

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """Completions in the order of the prompts, which share `params` or have one each.

        A prompt whose params ask for n answers has n completions, one after another.

        Raises RequestError for the first prompt that the engine refuses, and then generates nothing.
        """
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else params
        if len(each) != len(prompts):
            raise InvalidParams(
                f"{len(prompts)} prompts and {len(each)} params: give one for all, or one for each"
            )
        ids = [str(number) for number in range(len(prompts))]
        finished: dict[tuple[str, int], Completion] = {}
        try:
            for request_id, prompt, own in zip(ids, prompts, each, strict=True):
                tokens = tuple(self._encode(prompt))
                self.engine.add(Request(id=request_id, prompt_token_ids=tokens, params=own))
            while self.engine.has_unfinished:
                finished.update(((one.request_id, one.index), one) for one in self.engine.step())
        except BaseException:
            for request_id in ids:
                self.engine.abort(request_id)
            raise
        return [
            finished[request_id, index]
            for request_id, own in zip(ids, each, strict=True)
            for index in range(own.n)
        ]

    def _encode(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str) and all(isinstance(token, int) for token in prompt):
            return prompt  # type: ignore[return-value]
        if self.engine.chat is None:
            raise InvalidPrompt(
                "text and messages need a tokenizer, which the model folder lacks; use token ids"
            )
        if isinstance(prompt, str):
            return self.engine.chat.tokenizer.encode(prompt)
        return self.engine.chat.encode(prompt)  # type: ignore[arg-type]

    def close(self) -> None:
        """End the engine's processes."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""A running engine and how its model is spoken to: dialogues in, requests out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from model.chat import Chat, Message
from model.config import EngineConfig
from model.engine import Engine
from model.errors import InvalidMessages, PromptTooLong
from model.request import Completion, Request, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Talker:
    """What the ways to chat share."""

    engine: Engine
    chat: Chat
    #: System message of dialogues that have none.
    system: str | None
    #: Continue the text of a single message, without any template.
    raw: bool

    def request(self, request_id: str, messages: Sequence[Message], params: SamplingParams) -> Request:
        """A request whose answer is at most as long as the context allows.

        Raises InvalidMessages, TokenizerError for a model without a template, and PromptTooLong.
        """
        prompt = self._encode(messages)
        room = self.engine.max_model_len - len(prompt)
        if room < 1:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens, and the context of {self.engine.max_model_len} "
                "leaves no room for an answer"
            )
        most = min(params.max_tokens, room)
        return Request(
            id=request_id,
            prompt_token_ids=tuple(prompt),
            params=replace(params, max_tokens=most, min_tokens=min(params.min_tokens, most)),
        )

    def _encode(self, messages: Sequence[Message]) -> Sequence[int]:
        if self.raw:
            if len(messages) != 1:
                raise InvalidMessages("--no-chat continues single texts, and this is a dialogue")
            return self.chat.tokenizer.encode(messages[0]["content"])
        if self.system is not None and all(message.get("role") != "system" for message in messages):
            messages = [{"role": "system", "content": self.system}, *messages]
        return self.chat.encode(messages)


@contextmanager
def talker(config: EngineConfig, *, system: str | None, template: str | None, raw: bool) -> Iterator[Talker]:
    """Load the model, and end its processes at the end. Raises ModelError."""
    chat = Chat.load(config.path, template=template)
    if not raw:
        chat.render([{"role": "user", "content": ""}])  # says at once where there is no template
    engine = Engine(config)
    try:
        yield Talker(engine=engine, chat=chat, system=system, raw=raw)
    finally:
        engine.close()


def as_record(completion: Completion, seconds: float) -> Mapping[str, Any]:
    """An answer for programs."""
    return {
        "answer": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "cached_tokens": completion.cached_tokens,
        "completion_tokens": len(completion.token_ids),
        "seconds": round(seconds, 3),
    }

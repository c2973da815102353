"""Message lists to prompts: the chat templates, their encoding and the tokens that end an answer.

Owns that text inside a message never becomes a control token: the template alone writes those.
Imports no torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.errors import InvalidMessages, TokenizerError
from model.guard import Guard
from model.template import CHATML, INTERNLM, INTERNLM_EARLY, Template
from model.tokenizer import Tokenizer, read_json

Message = Mapping[str, str]

ROLES = frozenset({"system", "user", "assistant", "tool", "developer", "environment"})
#: Tokens that end a turn in the family's formats, whatever generation_config.json says.
_TURN_ENDS = ("<|im_end|>", "[UNUSED_TOKEN_145]", "<eoa>")
#: Built-in formats by name, for `Chat.load(..., template=)`.
BUILT_IN = {"chatml": CHATML, "internlm": INTERNLM, "internlm-early": INTERNLM_EARLY}


class Chat:
    """A checkpoint's way to hold a conversation."""

    def __init__(self, tokenizer: Tokenizer, template: str | None, stop_token_ids: Iterable[int]) -> None:
        self.tokenizer = tokenizer
        self.stop_token_ids = frozenset(stop_token_ids)
        self._template = None if template is None else Template(template, tokenizer.named)
        self._guard = Guard(tokenizer.control_tokens)

    @classmethod
    def load(cls, path: Path, *, template: str | None = None) -> "Chat":
        """Read the checkpoint in folder `path`.

        The template is the checkpoint's own; where it has none, ChatML or InternLM's, by the marks in its
        vocabulary. `template` names a built-in one to use instead: chatml, internlm, or internlm-early for
        the first InternLM chat models, whose questions end in <eoh>. A base model without any loads too: its
        `encode` raises TokenizerError.
        """
        folder = Path(path)
        tokenizer = Tokenizer.load(folder)
        if template is not None and template not in BUILT_IN:
            raise InvalidMessages(f"chat template {template!r} is unknown; known are {', '.join(BUILT_IN)}")
        source = BUILT_IN[template] if template else _own_template(folder) or _family_template(tokenizer)
        return cls(tokenizer, source, _stops(folder, tokenizer))

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's ids, up to the point where the assistant's answer starts; BOS at most once.

        The ids are those that the checkpoint's own tokenizer gives for the rendered template, but that
        control tokens written out in a message stay text. Raises InvalidMessages, and TokenizerError where
        there is no template.
        """
        mark, guarded = self._guard.apply(_checked(messages))
        ids = self.tokenizer.encode_markup(self._rendered(guarded), erase=mark)
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if self.tokenizer.adds_bos and bos is not None and ids[:1] != [bos] else ids

    def token_text(self, token_id: int) -> str:
        """Return what one token stands for, control tokens by their names."""
        return self.tokenizer.decode([token_id], skip_control=False)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt as text, for a person to read."""
        return self._rendered(_checked(messages))

    def _rendered(self, messages: Sequence[Message]) -> str:
        if self._template is None:
            raise TokenizerError(
                "the checkpoint has no chat template: send plain prompts, or name a template"
            )
        return self._template.render(messages)


def _checked(messages: Sequence[Message]) -> Sequence[Message]:
    if not messages or not isinstance(messages, list | tuple):
        raise InvalidMessages("messages must be a list with at least one message")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise InvalidMessages(f"message {number} must be an object with role and content")
        if not all(isinstance(value, str) for value in message.values()):
            raise InvalidMessages(f"message {number} holds something other than text")
        if message["role"] not in ROLES:
            raise InvalidMessages(f"message {number} has unknown role {message['role']!r}")
    return messages


def _own_template(folder: Path) -> str | None:
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text("utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found: Any = read_json(folder / name).get("chat_template")
        if isinstance(found, list):
            named = {entry.get("name"): entry.get("template") for entry in found}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return None


def _family_template(tokenizer: Tokenizer) -> str | None:
    control = tokenizer.control_tokens
    if "<|im_start|>" in control:
        return CHATML
    if "[UNUSED_TOKEN_146]" in control:
        return CHATML.replace("<|im_start|>", "[UNUSED_TOKEN_146]").replace(
            "<|im_end|>", "[UNUSED_TOKEN_145]"
        )
    return INTERNLM if "<eoa>" in control else None


def _stops(folder: Path, tokenizer: Tokenizer) -> set[int]:
    """The ids of generation_config.json, else of config.json, with the family's ends of turn."""
    listed: Any = None
    for name in ("generation_config.json", "config.json"):
        listed = listed if listed is not None else read_json(folder / name).get("eos_token_id")
    stops = set(listed if isinstance(listed, list) else [listed])
    stops |= {tokenizer.control_tokens.get(text) for text in _TURN_ENDS} | {tokenizer.eos_token_id}
    return {stop for stop in stops if isinstance(stop, int)}

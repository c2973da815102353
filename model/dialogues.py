"""Files of dialogues, one in a line, as people write them for `model chat` and `model benchmark`.

A line is a list of {"role", "content"}, or an object with "messages" or with "prompt", which is one user
message. Jobs have a format of their own, with ids and sampling. Imports no torch.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.chat import Message
from model.errors import InvalidMessages


def read_dialogues(path: Path, limit: int | None = None) -> list[Sequence[Message]]:
    """The first `limit` dialogues of a file, all by default; empty lines are passed over.

    Raises InvalidMessages naming the line, and for a file that can not be read.
    """
    found: list[Sequence[Message]] = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if limit is not None and len(found) == limit:
                    break
                if line.strip():
                    found.append(_dialogue(line, f"{path}:{number}"))
    except OSError as error:
        raise InvalidMessages(f"can not read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidMessages(f"{path} is not UTF-8 text") from None
    if not found:
        raise InvalidMessages(f"{path} holds no dialogue")
    return found


def user_message(text: str) -> Sequence[Message]:
    """The dialogue that a single prompt is."""
    return [{"role": "user", "content": text}]


def _dialogue(line: str, where: str) -> Sequence[Message]:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise InvalidMessages(f"{where} is not JSON: {error}") from None
    if isinstance(value, dict):
        prompt = value.get("prompt")
        value = user_message(prompt) if isinstance(prompt, str) else value.get("messages")
    if not isinstance(value, list) or not value or not all(_is_message(message) for message in value):
        raise InvalidMessages(
            f'{where} is no dialogue: write [{{"role": "user", "content": "…"}}] or {{"prompt": "…"}}'
        )
    return value


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))

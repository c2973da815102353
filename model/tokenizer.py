"""Text to token ids and back, for a checkpoint's `tokenizer.json` or `tokenizer.model`.

Owns which token ids are *control* tokens, and that plain text never becomes one of them. Knows nothing of
chat templates (`chat.py`) or of streaming (`detokenizer.py`), and imports neither torch nor transformers.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from model.errors import InvalidPrompt, TokenizerError
from model.vocabulary import ControlToken, Vocabulary, load_fast, load_sentencepiece

#: The family's chat marks: control tokens even where a checkpoint's files do not say "special".
FAMILY_CONTROL = (
    "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|action_start|>", "<|action_end|>",
    "<|interpreter|>", "<|plugin|>", "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]", "<eoh>", "<eoa>",
)  # fmt: skip
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """One checkpoint's tokenizer.

    `vocab_size` counts the tokenizer's own entries: a model's embedding may be padded beyond it.
    `control_tokens` maps each control token's text to its id; several texts may share an id (`<|im_end|>`,
    `[UNUSED_TOKEN_145]`). `named` holds the texts that templates may print: bos_token, eos_token, and so on.
    """

    def __init__(self, vocabulary: Vocabulary, settings: Mapping[str, Any]) -> None:
        self._vocabulary = vocabulary
        self.vocab_size = vocabulary.size
        self.control_tokens: Mapping[str, int] = {
            text: token.id for text, token in vocabulary.control.items()
        }
        self.named = {key: _text(settings[key]) for key in _NAMED if settings.get(key) is not None}
        self.bos_token_id = self._named_id("bos_token", settings.get("bos_token_id"))
        self.eos_token_id = self._named_id("eos_token", settings.get("eos_token_id"))
        declared = settings.get("add_bos_token")
        self.adds_bos = self.bos_token_id is not None and (
            vocabulary.adds_bos if declared is None else bool(declared)
        )
        self._control_ids = frozenset(self.control_tokens.values())
        self._marks = _pattern(vocabulary.control)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a folder's tokenizer: `tokenizer.json`, or else sentencepiece's `tokenizer.model`."""
        folder = Path(path)
        settings = _settings(folder)
        special = {**dict.fromkeys(FAMILY_CONTROL), **_special(settings)}
        if (file := folder / "tokenizer.json").is_file():
            return cls(load_fast(file, special), settings)
        if (file := folder / "tokenizer.model").is_file():
            return cls(load_sentencepiece(file, special), settings)
        raise TokenizerError(f"{folder} holds neither tokenizer.json nor tokenizer.model")

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        """Encode plain text: what looks like a control token in it stays text.

        BOS is put first where `add_bos` and the checkpoint's tokenizer adds one.
        """
        ids = self._vocabulary.encode(_valid(text), first=True)
        return (
            [self.bos_token_id, *ids] if add_bos and self.adds_bos and self.bos_token_id is not None else ids
        )

    def encode_markup(self, text: str, *, erase: str = "") -> list[int]:
        """Encode trusted text, in which a control token's text is that token. No BOS is added.

        `erase` is a mark to be dropped from the text between control tokens: whoever composes the text breaks
        with it what must not be taken for one.
        """
        ids: list[int] = []
        end = 0
        for match in self._marks.finditer(_valid(text)):
            ids += self._plain(text[end : match.start()], erase, first=end == 0)
            ids.append(self.control_tokens[match[match.lastindex or 0]])
            end = match.end()
        return ids + self._plain(text[end:], erase, first=end == 0)

    def decode(self, token_ids: Sequence[int], *, skip_control: bool = True) -> str:
        """Decode; control tokens are dropped, or printed as their text where `skip_control` is false.

        Ids beyond the tokenizer's vocabulary (a padded embedding can yield them) have no text.
        """
        known = [i for i in token_ids if 0 <= i < self.vocab_size]
        if skip_control:
            return self._vocabulary.decode([i for i in known if i not in self._control_ids])
        runs = groupby(known, key=self._control_ids.__contains__)
        return "".join(
            "".join(map(self._vocabulary.text, run)) if control else self._vocabulary.decode(list(run))
            for control, run in runs
        )

    def is_control(self, token_id: int) -> bool:
        """Whether `token_id` is a control token."""
        return token_id in self._control_ids

    def is_byte(self, token_id: int) -> bool:
        """Whether `token_id` stands for one raw byte, whose text depends on the bytes around it."""
        return self._vocabulary.is_byte(token_id)

    def _plain(self, text: str, erase: str, *, first: bool) -> list[int]:
        text = text.replace(erase, "") if erase else text
        return self._vocabulary.encode(text, first=first) if text else []

    def _named_id(self, name: str, fallback: object) -> int | None:
        if (text := self.named.get(name)) is not None and text in self.control_tokens:
            return self.control_tokens[text]
        first = fallback[0] if isinstance(fallback, list) and fallback else fallback
        return first if isinstance(first, int) and 0 <= first < self.vocab_size else None


def _valid(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"text holds an unpaired surrogate at character {error.start}: it is not valid Unicode"
        raise InvalidPrompt(message) from error
    return text


def _pattern(control: Mapping[str, ControlToken]) -> re.Pattern[str]:
    """Longest first, with the white space that the token swallows on either side."""
    blank = {False: "", True: r"\s*"}
    parts = (
        f"{blank[token.lstrip]}({re.escape(text)}){blank[token.rstrip]}"
        for text, token in sorted(control.items(), key=lambda item: -len(item[0]))
    )
    return re.compile("|".join(parts) or r"(?!)")


def _settings(folder: Path) -> dict[str, Any]:
    """Merge the files that speak about special tokens; the tokenizer's own win over the model's."""
    merged: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json"):
        merged |= {key: value for key, value in read_json(folder / name).items() if value is not None}
    return merged


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one. Raises TokenizerError where it is damaged."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{file} does not hold a JSON object")
    return value


def _special(settings: Mapping[str, Any]) -> dict[str, int | None]:
    """Texts that the checkpoint's settings call special, with their ids where they say them."""
    texts: dict[str, int | None] = {_text(settings[key]): None for key in _NAMED if settings.get(key)}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = settings.get(key) or []
        texts |= dict.fromkeys(map(_text, listed.values() if isinstance(listed, dict) else listed))
    return texts | dict(_decoder_entries(settings))


def _decoder_entries(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for token_id, entry in (settings.get("added_tokens_decoder") or {}).items():
        if entry.get("special"):
            yield entry["content"], int(token_id)


def _text(token: object) -> str:
    """A special token is written as its text, or as an object with `content`."""
    return str(token["content"]) if isinstance(token, dict) else str(token)

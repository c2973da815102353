"""The two kinds of vocabulary files behind one small interface: `tokenizers` and `sentencepiece`.

Owns how each library is kept from turning plain text into control tokens. Knows nothing of settings files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from model import sentencepiece_file as spm
from model.errors import TokenizerError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
#: User-defined pieces shaped like this are marks; others (full-width letters in InternLM2) are ordinary text.
_MARK = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlToken:
    """A control token's id, and whether it swallows the white space before or after it."""

    id: int
    lstrip: bool = False
    rstrip: bool = False


class Vocabulary(Protocol):
    """What `Tokenizer` needs of either library."""

    @property
    def size(self) -> int:
        """Number of ids, control tokens included."""

    @property
    def control(self) -> Mapping[str, ControlToken]:
        """Control tokens by text."""

    @property
    def adds_bos(self) -> bool:
        """Whether the files say that a text starts with BOS."""

    def encode(self, text: str, *, first: bool) -> list[int]:
        """Encode plain text, never to a control token; `first` where it opens the whole text."""

    def decode(self, token_ids: list[int]) -> str:
        """Decode ids that hold no control token."""

    def text(self, token_id: int) -> str:
        """Return the text of a control token."""

    def is_byte(self, token_id: int) -> bool:
        """Whether the id is a byte-fallback token."""


class FastVocabulary:
    """`tokenizer.json`."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        added = backend.get_added_tokens_decoder()
        self.size = max(max(backend.get_vocab().values(), default=-1), max(added, default=-1)) + 1
        self.control = {
            token.content: ControlToken(id=i, lstrip=token.lstrip, rstrip=token.rstrip)
            for i, token in added.items()
            if token.special
        }
        prefix = backend.encode("", add_special_tokens=True).ids
        self.adds_bos = bool(prefix)
        backend.encode_special_tokens = True
        self._backend = backend
        self._later = _without_prefix_space(backend)
        self._names = {token.id: text for text, token in self.control.items()}

    def encode(self, text: str, *, first: bool) -> list[int]:
        """Encode with the recognition of special tokens off."""
        backend = self._backend if first else self._later
        return list(backend.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: list[int]) -> str:
        """Decode as the library does."""
        return str(self._backend.decode(token_ids, skip_special_tokens=False))

    def text(self, token_id: int) -> str:
        """Return a control token's text."""
        return self._names[token_id]

    def is_byte(self, token_id: int) -> bool:
        """Whether the token is spelled <0xNN>."""
        token = self._backend.id_to_token(token_id)
        return token is not None and _BYTE.fullmatch(token) is not None


def load_fast(file: Path, special: Mapping[str, int | None]) -> FastVocabulary:
    """Read `tokenizer.json`; those of `special` that it knows are control tokens."""
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower one
        raise TokenizerError(f"{file} can not be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for text, token_id in special.items():
        flags = added.get(text)
        if flags is None and token_id is not None and backend.token_to_id(text) == token_id:
            flags = tokenizers.AddedToken(text, normalized=False)
        if flags is not None and not flags.special:
            flags.special = True
            backend.add_special_tokens([flags])
    return FastVocabulary(backend)


def _without_prefix_space(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return the tokenizer for text that follows a control token.

    Metaspace's scheme `first` puts a space before the first word of the whole text alone, and a piece encoded
    by itself would pass for the whole.
    """
    pre = backend.pre_tokenizer
    if not isinstance(pre, tokenizers.pre_tokenizers.Metaspace) or pre.prepend_scheme != "first":
        return backend
    later = tokenizers.Tokenizer.from_str(backend.to_str())
    later.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
        replacement=pre.replacement, prepend_scheme="never", split=pre.split
    )
    later.encode_special_tokens = True
    return later


class SentencePieceVocabulary:
    """`tokenizer.model`, with its marks made control pieces, which sentencepiece never finds in text."""

    def __init__(self, model: bytes, control: Mapping[str, ControlToken]) -> None:
        sentencepiece.set_min_log_level(2)  # it warns of InternLM's piece for NUL, each time
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size = self._processor.vocab_size()
        self.control = control
        self.adds_bos = True
        self._names = {control[text].id: text for text in reversed(list(control))}

    def encode(self, text: str, *, first: bool) -> list[int]:  # noqa: ARG002 - as the original code: no difference
        """Encode with the patched model."""
        return list(self._processor.encode(text))

    def decode(self, token_ids: list[int]) -> str:
        """Decode as the library does."""
        text: str = self._processor.decode(token_ids)
        return text

    def text(self, token_id: int) -> str:
        """Return a control token's text."""
        return self._names[token_id]

    def is_byte(self, token_id: int) -> bool:
        """Whether the piece is of type BYTE."""
        return bool(self._processor.is_byte(token_id))


def load_sentencepiece(file: Path, special: Mapping[str, int | None]) -> SentencePieceVocabulary:
    """Read `tokenizer.model`; its marks and those of `special` that it knows are control tokens."""
    try:
        model = file.read_bytes()
        pieces = spm.pieces(model)
    except (OSError, ValueError, IndexError) as error:
        raise TokenizerError(f"{file} can not be read: {error}") from error
    renamed = {text: i for text, i in special.items() if i is not None and i < len(pieces)}
    control = {text: ControlToken(id=i) for text, i in renamed.items()}
    for i, piece in enumerate(pieces):
        if piece.kind in {spm.CONTROL, spm.UNKNOWN} or (
            piece.kind == spm.USER_DEFINED and (_MARK.fullmatch(piece.text) or piece.text in special)
        ):
            control.setdefault(piece.text, ControlToken(id=i))
    marks = {token.id for token in control.values() if pieces[token.id].kind == spm.USER_DEFINED}
    return SentencePieceVocabulary(spm.with_kind(model, marks, spm.CONTROL), control)

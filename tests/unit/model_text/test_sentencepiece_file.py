"""The reader and writer of sentencepiece's format against the library itself."""

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from model import sentencepiece_file as spm


def test_pieces_are_those_that_the_library_reads(raw_internlm2: Path) -> None:
    model = (raw_internlm2 / "tokenizer.model").read_bytes()
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = spm.pieces(model)
    assert [piece.text for piece in pieces] == [library.id_to_piece(i) for i in range(library.vocab_size())]
    assert [piece.score for piece in pieces] == [library.get_score(i) for i in range(library.vocab_size())]
    assert [piece.kind == spm.BYTE for piece in pieces] == [library.is_byte(i) for i in range(len(pieces))]


@pytest.fixture(scope="session")
def pair(
    raw_internlm2: Path,
) -> tuple[sentencepiece.SentencePieceProcessor, sentencepiece.SentencePieceProcessor]:
    """The library on a trained model, and on one that was written from its pieces alone."""
    model = (raw_internlm2 / "tokenizer.model").read_bytes()
    rebuilt = spm.build(spm.pieces(model), dummy_prefix=False)
    return tuple(sentencepiece.SentencePieceProcessor(model_proto=proto) for proto in (model, rebuilt))  # type: ignore[return-value]


@given(text=st.text())
def test_a_rebuilt_model_encodes_the_same(
    pair: tuple[sentencepiece.SentencePieceProcessor, sentencepiece.SentencePieceProcessor], text: str
) -> None:
    original, rebuilt = pair
    assert rebuilt.encode(text) == original.encode(text)
    assert rebuilt.decode(rebuilt.encode(text)) == text


def test_special_ids_of_a_rebuilt_model(pair: tuple[sentencepiece.SentencePieceProcessor, ...]) -> None:
    for library in pair:
        assert (library.unk_id(), library.bos_id(), library.eos_id(), library.pad_id()) == (0, 1, 2, -1)


@pytest.mark.parametrize("data", [b"", b"\x0a", b"\x0a\xff\x01a", b"\x0f", b"not a model"])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        spm.pieces(data)

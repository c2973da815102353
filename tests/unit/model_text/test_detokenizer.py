"""Text that comes in pieces joins to what decoding at once gives."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from model.chat import Chat
from model.detokenizer import Detokenizer
from model.tokenizer import Tokenizer
from tests.unit.model_text.test_tokenizer import texts

LLAMA = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "▁a", "a", "▁▁", "é", "天"]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Llama's kind: byte fallback, and a decoder that drops the text's first space."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={t: i for i, t in enumerate(LLAMA)}, merges=[], byte_fallback=True)
    )
    decoders = tokenizers.decoders
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>"])
    folder = tmp_path_factory.mktemp("llama")
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def all_tokenizers(
    smollm2: Path, raw_internlm2: Path, raw_internlm: Path, llama: Tokenizer
) -> list[Tokenizer]:
    return [llama, *(Tokenizer.load(folder) for folder in (smollm2, raw_internlm2, raw_internlm))]


def pieces_of(tokenizer: Tokenizer, batches: list[list[int]]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    pieces = [*map(detokenizer.push, batches), detokenizer.finish()]
    assert detokenizer.text == "".join(pieces)
    return pieces


@given(batches=st.lists(st.lists(st.integers(0, 50_000), max_size=3), max_size=30))
def test_random_ids_join_to_the_whole(all_tokenizers: list[Tokenizer], batches: list[list[int]]) -> None:
    for tokenizer in all_tokenizers:
        # Small vocabularies: half the ids within them, and byte tokens among those.
        scaled = [[i % (tokenizer.vocab_size + 3) for i in batch] for batch in batches]
        whole = tokenizer.decode([i for batch in scaled for i in batch])
        assert "".join(pieces_of(tokenizer, scaled)) == whole


@given(text=texts.map(lambda text: text[:30]))
def test_no_piece_ends_inside_a_character(all_tokenizers: list[Tokenizer], text: str) -> None:
    for tokenizer in all_tokenizers[1:]:
        pieces = pieces_of(tokenizer, [[i] for i in tokenizer.encode(text)])
        assert "".join(pieces) == text
        assert "\ufffd" in text or all("\ufffd" not in piece for piece in pieces)


def test_text_comes_as_soon_as_it_is_settled(smollm2_chat: Chat) -> None:
    tokenizer = smollm2_chat.tokenizer
    pieces = pieces_of(tokenizer, [[i] for i in tokenizer.encode("The quick 🤗 fox")])
    assert [piece for piece in pieces if piece] == ["The", " quick", " 🤗", " fox"]


def test_leading_spaces_follow_the_whole_text(llama: Tokenizer) -> None:
    space, word, two = LLAMA.index("▁"), LLAMA.index("▁a"), LLAMA.index("▁▁")
    assert pieces_of(llama, [[1], [word], [1], [word], [space], [two]]) == ["", "a", "", " a", " ", "  ", ""]


def test_an_incomplete_character_is_replaced_at_the_end(smollm2_chat: Chat) -> None:
    ids = smollm2_chat.tokenizer.encode("🤗")
    detokenizer = Detokenizer(smollm2_chat.tokenizer)
    assert detokenizer.push(ids[:-1]) == ""
    assert detokenizer.finish() == smollm2_chat.tokenizer.decode(ids[:-1]) == "\ufffd"


def test_the_cost_of_a_token_does_not_grow(smollm2_chat: Chat) -> None:
    """The library decodes a small constant of ids for each one of a long answer, of text or of noise."""
    tokenizer = smollm2_chat.tokenizer
    for text in ("The quick fox. " * 400, "\ufffd" * 2000):
        ids = tokenizer.encode(text)
        if "\ufffd" in text:
            ids = [tokenizer.encode("🤗")[0]] * 2000
        counting = _Counting(tokenizer)
        pieces_of(counting, [[i] for i in ids])  # type: ignore[arg-type]
        assert counting.decoded < 32 * len(ids)


class _Counting:
    """Counts the ids decoded through it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size, self.is_control, self.is_byte = (
            tokenizer.vocab_size,
            tokenizer.is_control,
            tokenizer.is_byte,
        )
        self.decoded = 0

    def decode(self, ids: list[int]) -> str:
        self.decoded += len(ids)
        return self._tokenizer.decode(ids)

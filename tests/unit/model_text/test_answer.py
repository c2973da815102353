"""When an answer ends, and where its text is cut, wherever tokens begin."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.answer import Answer
from model.chat import Chat
from model.request import FinishReason, SamplingParams
from model.tokenizer import Tokenizer

#: Few characters, so that stop strings meet them; of one to four bytes in UTF-8.
LETTERS = "ab é天🤗\n"
#: Texts whose pieces become tokens each by itself, so that tokens begin anywhere.
pieces = st.lists(st.text(LETTERS, max_size=6), max_size=12)
stop_strings = st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=3)


@pytest.fixture(scope="session")
def all_tokenizers(smollm2: Path, raw_internlm2: Path, raw_internlm: Path) -> list[Tokenizer]:
    return [Tokenizer.load(folder) for folder in (smollm2, raw_internlm2, raw_internlm)]


def encoded(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [token for text in texts for token in tokenizer.encode(text, add_bos=False)]


def answered(tokenizer: Tokenizer, ids: list[int], **options: object) -> tuple[FinishReason | None, int, str]:
    """How the answer ended, after how many tokens, and its text."""
    params = SamplingParams(**{"max_tokens": max(1, len(ids)), "ignore_eos": True, **options})  # type: ignore[arg-type]
    answer = Answer(params, frozenset(), tokenizer)
    for count, token in enumerate(ids, 1):
        if reason := answer.accept(token, count):
            return reason, count, answer.text(ids[:count])
    return None, len(ids), answer.text(ids)


def whole(text: str) -> bool:
    """Whether no character is cut in its middle."""
    return not text.endswith("\ufffd")


@given(texts=pieces, stops=stop_strings)
def test_the_text_ends_where_the_first_stop_string_begins(
    all_tokenizers: list[Tokenizer], texts: list[str], stops: list[str]
) -> None:
    for tokenizer in all_tokenizers:
        ids = encoded(tokenizer, texts)
        full = tokenizer.decode(ids)
        reason, count, text = answered(tokenizer, ids, stop=tuple(stops))
        if not any(stop in full for stop in stops):
            assert (reason, text) == ("length" if ids else None, full)
            continue
        seen = tokenizer.decode(ids[:count])
        assert reason == "stop"
        assert text == seen[: min(cut for stop in stops if (cut := seen.find(stop)) >= 0)]
        assert full.startswith(text)
        if len(stops) == 1:
            assert text == full[: full.find(stops[0])]


@given(texts=pieces, stops=stop_strings)
def test_no_token_is_generated_after_the_one_that_completes_a_stop_string(
    smollm2_chat: Chat, texts: list[str], stops: list[str]
) -> None:
    tokenizer = smollm2_chat.tokenizer
    ids = encoded(tokenizer, texts)
    reason, count, _ = answered(tokenizer, ids, stop=tuple(stops))
    earlier = [text for end in range(count) if whole(text := tokenizer.decode(ids[:end]))]
    assert not any(stop in text for text in earlier for stop in stops)
    assert (reason == "stop") == any(stop in tokenizer.decode(ids[:count]) for stop in stops)


@given(texts=pieces, stop=st.text(LETTERS, min_size=1, max_size=4), data=st.data())
def test_a_stop_string_that_is_complete_before_min_tokens_is_passed_by(
    smollm2_chat: Chat, texts: list[str], stop: str, data: st.DataObject
) -> None:
    tokenizer = smollm2_chat.tokenizer
    ids = encoded(tokenizer, texts)
    min_tokens = data.draw(st.integers(0, len(ids)))
    full = tokenizer.decode(ids)
    passed = max(len(text) for end in range(min_tokens + 1) if whole(text := tokenizer.decode(ids[:end])))
    cuts = [at for at in range(len(full)) if full.startswith(stop, at) and at + len(stop) > passed]
    reason, count, text = answered(tokenizer, ids, stop=(stop,), min_tokens=min_tokens)
    if cuts:
        assert (reason, text) == ("stop", full[: cuts[0]])
        assert count > min_tokens
    else:
        assert (reason, text) == ("length" if ids else None, full)


def test_a_stop_token_ends_the_answer_without_being_text(smollm2_chat: Chat) -> None:
    tokenizer = smollm2_chat.tokenizer
    ids = encoded(tokenizer, ["One", " two"])
    params = SamplingParams(max_tokens=9, stop_token_ids=(ids[-1],))
    answer = Answer(params, frozenset({7}), tokenizer)
    assert answer.stop_token_ids == {7, ids[-1]}
    assert [answer.accept(token, count) for count, token in enumerate(ids, 1)] == [None, "stop"]
    assert answer.text(ids) == "One"
    assert Answer(SamplingParams(ignore_eos=True), frozenset({7}), tokenizer).stop_token_ids == frozenset()


def test_a_stop_string_made_of_bytes_is_found_when_a_stop_token_follows(raw_internlm2: Path) -> None:
    """Bytes may still change their text until another kind of token comes: here none does."""
    tokenizer = Tokenizer.load(raw_internlm2)
    ids = encoded(tokenizer, ["a🤗"])
    assert tokenizer.is_byte(ids[-1])
    answer = Answer(SamplingParams(stop=("🤗",), stop_token_ids=(2,)), frozenset(), tokenizer)
    reasons = [answer.accept(token, count) for count, token in enumerate([*ids, 2], 1)]
    assert reasons == [*[None] * len(ids), "stop"]
    assert answer.text([*ids, 2]) == "a"


def test_without_a_tokenizer_there_is_no_text() -> None:
    answer = Answer(SamplingParams(max_tokens=2), frozenset({5}), None)
    assert [answer.accept(4, 1), answer.accept(4, 2), answer.text([4, 4])] == [None, "length", ""]
    assert answer.accept(5, 1) == "stop"

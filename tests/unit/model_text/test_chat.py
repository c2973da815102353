"""Templates, stops, and that a message can not forge a control token."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from model.chat import Chat
from model.errors import InvalidMessages, TokenizerError
from model.guard import Guard, unused_mark
from tests.unit.model_text.test_tokenizer import marked

roles = st.sampled_from(["system", "user", "assistant", "tool"])
#: Text without anything that opens a mark.
harmless = st.text().filter(lambda text: not set(text) & set("<[>]|"))


def conversations(content: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, str]]]:
    message = st.fixed_dictionaries({"role": roles, "content": content})
    return st.lists(message, min_size=1, max_size=4)


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


@given(messages=conversations(harmless))
def test_ids_are_those_of_transformers(
    smollm2_chat: Chat, smollm2_peer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> None:
    theirs = smollm2_peer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert smollm2_chat.encode(messages) == theirs


@pytest.mark.parametrize("content", ["\nhi", "\n\n", " hi ", "", "天气", "a < b, c[0] |> d", "<|im", "|>"])
def test_text_at_the_templates_edge_merges_as_in_the_original(
    smollm2_chat: Chat, smollm2_peer: PreTrainedTokenizerBase, content: str
) -> None:
    messages = [*user(content), {"role": "assistant", "content": content}, *user(content)]
    theirs = smollm2_peer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert smollm2_chat.encode(messages) == theirs


@pytest.fixture(scope="session")
def all_chats(smollm2_chat: Chat, raw_internlm2: Path, raw_internlm: Path) -> list[Chat]:
    return [smollm2_chat, Chat.load(raw_internlm2), Chat.load(raw_internlm)]


@given(messages=conversations(marked))
def test_a_message_adds_no_control_token(all_chats: list[Chat], messages: list[dict[str, str]]) -> None:
    for chat in all_chats:
        # InternLM's template knows no tool.
        known = [{**message, "role": message["role"].replace("tool", "user")} for message in messages]
        is_control = chat.tokenizer.is_control
        expected = list(filter(is_control, chat.encode([{**message, "content": "x"} for message in known])))
        ids = chat.encode(known)
        assert list(filter(is_control, ids)) == expected
        assert all(message["content"].strip() in chat.tokenizer.decode(ids) for message in known)


@pytest.fixture(scope="session")
def joining_chat(train: Callable[..., Path]) -> Chat:
    """A template that puts messages side by side, and trims them."""
    template = "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{% endfor %}<eoa>"
    return Chat.load(train(["[UNUSED_TOKEN_145]", "<eoa>"], chat_template=template))


@given(messages=conversations(marked))
def test_two_messages_make_no_control_token_together(
    joining_chat: Chat, messages: list[dict[str, str]]
) -> None:
    tokenizer = joining_chat.tokenizer
    ids = joining_chat.encode(messages)
    assert list(filter(tokenizer.is_control, ids)) == [1, tokenizer.control_tokens["<eoa>"]]


@pytest.mark.parametrize("halves", [("<eo", "a>"), ("x <", "  eoa> y"), ("[UNUSED_TOKEN_14 ", "5]")])
def test_halves_of_a_control_token_stay_halves(joining_chat: Chat, halves: tuple[str, str]) -> None:
    ids = joining_chat.encode([*user(halves[0]), *user(halves[1])])
    text = "".join(half.strip() for half in halves)
    assert joining_chat.tokenizer.decode(ids, skip_control=False) == f"<s>{text}<eoa>"
    assert len(list(filter(joining_chat.tokenizer.is_control, ids))) == 2


@pytest.mark.parametrize(
    ("template", "content"), [("{{ c }}a>", "<eo"), ("<eo{{ c }}", "a>"), ("<eo{{ c }}", " a>")]
)
def test_a_message_completes_no_control_token_of_the_template(
    train: Callable[..., Path], template: str, content: str
) -> None:
    chat = Chat.load(train(["<eoa>"], chat_template=template.replace("c", "messages[0].content | trim")))
    assert chat.tokenizer.decode(chat.encode(user(content))) == "<eoa>"


def test_the_mark_is_a_character_that_the_messages_lack() -> None:
    first = unused_mark([""])
    mark, guarded = Guard(["<s>", "<s><s>"]).apply([{"role": "user", "content": f"<s><s>{first}"}])
    assert mark != first
    assert guarded == [{"role": "user", "content": f"<{mark}s><{mark}s>{first}"}]


def test_a_conversation_of_internlm(raw_internlm: Path) -> None:
    """Expected texts: build_inputs of InternLM's modelling code, in its last and its first version."""
    turns = [{"role": "assistant", "content": "yo"}, *user("bye")]
    chat = Chat.load(raw_internlm)
    system = {"role": "system", "content": "S"}
    expected = "<s><|System|>:S\n<|User|>:hi\n<|Bot|>:yo<eoa>\n<|User|>:bye\n<|Bot|>:"
    assert chat.render([system, *user("hi"), *turns]) == expected
    early = Chat.load(raw_internlm, template="internlm-early")
    expected = "<s><|User|>:hi<eoh>\n<|Bot|>:yo<eoa>\n<|User|>:bye<eoh>\n<|Bot|>:"
    assert early.render([*user("hi"), *turns]) == expected
    assert early.encode([*user("hi"), *turns]) == early.tokenizer.encode_markup(expected)
    with pytest.raises(InvalidMessages, match="early InternLM"):
        early.encode([system, *user("hi")])


def test_chatml_under_the_names_of_raw_sentencepiece(raw_internlm2: Path) -> None:
    chat = Chat.load(raw_internlm2)
    start, end = (chat.tokenizer.control_tokens[f"[UNUSED_TOKEN_14{n}]"] for n in (6, 5))
    ids = chat.encode(user("fox [UNUSED_TOKEN_145]"))
    assert list(filter(chat.tokenizer.is_control, ids)) == [1, start, end, start]
    assert chat.stop_token_ids == {2, end}


@pytest.mark.parametrize(("template", "count"), [("{{ bos_token }}x", 1), ("x", 1)])
def test_bos_comes_once_whether_the_template_has_it_or_not(
    train: Callable[..., Path], template: str, count: int
) -> None:
    chat = Chat.load(train(["<eoa>"], chat_template=template))
    assert chat.encode(user("hi")).count(1) == count
    assert chat.encode(user("hi"))[0] == 1


def test_a_template_in_a_file_of_its_own_comes_first(train: Callable[..., Path]) -> None:
    folder = train(["<eoa>"], chat_template="from the config")
    (folder / "chat_template.jinja").write_text("{% generation %}from the file{% endgeneration %}")
    assert Chat.load(folder).render(user("hi")) == "from the file"
    several = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "the default"}]
    assert Chat.load(train(["<eoa>"], chat_template=several)).render(user("hi")) == "the default"


def test_stops_are_the_generation_configs_and_the_familys(train: Callable[..., Path]) -> None:
    folder = train(["<eoa>"])
    eoa = Chat.load(folder).tokenizer.control_tokens["<eoa>"]
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert Chat.load(folder).stop_token_ids == {2, 9, eoa}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert Chat.load(folder).stop_token_ids == {2, 7, eoa}


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hi",
        [{"role": "user"}],
        [{"role": "root", "content": "hi"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": None}],
        ["hi"],
    ],
)
def test_what_is_no_conversation_is_refused(smollm2_chat: Chat, messages: list[dict[str, str]]) -> None:
    with pytest.raises(InvalidMessages, match="message"):
        smollm2_chat.encode(messages)


def test_a_template_can_not_leave_the_sandbox(train: Callable[..., Path]) -> None:
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InvalidMessages, match="refuses"):
        Chat.load(train(["<eoa>"], chat_template=escape)).encode(user("hi"))


def test_a_damaged_template_is_a_clear_error(train: Callable[..., Path]) -> None:
    with pytest.raises(TokenizerError, match="template is damaged"):
        Chat.load(train(["<eoa>"], chat_template="{% if %}"))


def test_a_base_model_loads_and_refuses_messages(train: Callable[..., Path]) -> None:
    chat = Chat.load(train([]))
    with pytest.raises(TokenizerError, match="no chat template"):
        chat.encode(user("hi"))

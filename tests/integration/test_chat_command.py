"""`model chat` as people use it: at a terminal, from a pipe, with questions given, and with what is wrong."""

import errno
import fcntl
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model.llm import LLM
from model.request import Request, SamplingParams
from model.stream import Stream
from tests.tiny_checkpoint import CONTEXT, make_tiny_checkpoint

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "TERM": "dumb",
    "COLUMNS": "200",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
}
PATIENCE = 120


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("chat") / "tiny")


def command(*arguments: object, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model.cli", "chat", *map(str, arguments)],
        input=given, text=True, capture_output=True, check=False, env=ENVIRONMENT, timeout=PATIENCE,
    )  # fmt: skip


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *arguments: object) -> None:
        self.descriptor, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "model.cli", *map(str, arguments)],
            stdin=terminal, stdout=terminal, stderr=terminal, env=ENVIRONMENT, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - so that Ctrl-C comes here
        )  # fmt: skip
        os.close(terminal)
        self.seen, self.read = "", 0

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Read on until the pattern shows; what was shown up to its end."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.compile(pattern).search(self.seen, self.read)):
            assert self._more(deadline), f"{pattern!r} never showed in {self.seen!r}"
        shown = self.seen[self.read : match.end()]
        self.read = match.end()
        return shown

    def press_until(self, key: str, pattern: str) -> str:
        """Press a key, and again while nothing comes of it, until the pattern shows.

        Python's input() overlooks a signal that comes between its prompt and its wait for a key.
        """
        for _ in range(PATIENCE):
            self.type(key)
            ready, _, _ = select.select([self.descriptor], [], [], 1.0)
            if ready:
                break
        return self.wait_for(pattern)

    def wait(self) -> int:
        deadline = time.monotonic() + PATIENCE
        while self._more(deadline):
            pass
        return self.process.wait(PATIENCE)

    def _more(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.descriptor], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more came after {self.seen!r}"
        try:
            data = os.read(self.descriptor, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # Linux: the other side is closed
                raise
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.descriptor)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*arguments: object) -> Terminal:
        started.append(Terminal(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_at_a_terminal(tiny: Path, terminal: Callable[..., Terminal]) -> None:
    screen = terminal("chat", tiny, "--max-tokens", 8, "--ignore-eos")
    screen.wait_for("tiny: Ctrl-C ends an answer.*\n")
    screen.wait_for("> $")
    screen.type("hello\n")
    screen.wait_for(r"\n[^\n]*\n8 tokens, [\d.]+ tokens/s\r\n> $")
    screen.type("/reset\n")
    screen.wait_for("a new dialogue\r\n> $")
    screen.type("\n")
    screen.wait_for("> $")
    screen.press_until("\x03", "Ctrl-C ends an answer.*\n> $")  # with nothing to end
    screen.type("\x04")
    assert screen.wait() == 0
    assert "\x1b[3" not in screen.seen, "a dumb terminal gets no colours"


@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_ends_the_answer_and_the_dialogue_goes_on(
    tiny: Path, terminal: Callable[..., Terminal], ranks: int
) -> None:
    endless = ["--max-tokens", 100_000, "--max-model-len", 100_000, "--ignore-eos", "--threads", 1]
    screen = terminal("chat", tiny, *endless, "--tp", ranks)
    screen.wait_for("> $")
    screen.type("hello\n")
    screen.wait_for(r"hello\r\n(.|\n){40}")  # the answer has begun
    screen.type("\x03")
    shown = screen.wait_for(r"\n(\d+) tokens, [\d.]+ tokens/s\r\n> $")
    tokens = int(re.findall(r"(\d+) tokens,", shown)[-1])
    assert 40 <= tokens < 50_000
    screen.type("again\n")
    screen.wait_for(r"again\r\n(.|\n){40}")
    screen.type("\x03")
    screen.wait_for("tokens/s\r\n> $")
    screen.type("/exit\n")
    assert screen.wait() == 0


def test_lines_from_a_pipe_are_one_dialogue(tiny: Path) -> None:
    arguments = [tiny, "--max-tokens", 6, "--json", "--ignore-eos", "--system", "Be brief."]
    done = command(*arguments, given="one\n\ntwo\n3\n/reset\none\n/exit\nnever\n")
    assert done.returncode == 0, done.stderr
    first, second, third, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["completion_tokens"] == 6
    assert first["finish_reason"] == "length"
    assert second["prompt_tokens"] > first["prompt_tokens"] + first["completion_tokens"]
    assert third["prompt_tokens"] > second["prompt_tokens"] + second["completion_tokens"]
    assert {**last, "seconds": 0, "cached_tokens": 0} == {**first, "seconds": 0, "cached_tokens": 0}
    plain = command(*[argument for argument in arguments if argument != "--json"], given="one\n")
    assert plain.stdout == first["answer"] + "\n"
    assert "\x1b" not in plain.stdout + plain.stderr


def test_a_dialogue_that_fills_the_context_can_be_reset(tiny: Path) -> None:
    done = command(tiny, "--json", given=f"{'x' * CONTEXT}\nhello\n")
    assert done.returncode == 0
    assert "error[context_length_exceeded]: " in done.stderr
    assert "/reset begins a new dialogue" in done.stderr
    (answer,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert answer["prompt_tokens"] + answer["completion_tokens"] <= CONTEXT


def test_questions_are_answered_in_order_as_the_library_answers_them(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "dialogues.jsonl"
    lines: list[object] = [
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
        {"messages": [{"role": "user", "content": "d"}]},
        {"prompt": "e"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    done = command(
        tiny, "--input-text", "first", "--input-text", "x" * CONTEXT, "--input-file", file,
        "--max-tokens", 9, "--json",
    )  # fmt: skip
    assert done.returncode == 1, "one question is too long"
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["index"] for answer in answers] == [0, 1, 2, 3, 4]
    assert answers[1]["error"]["code"] == "context_length_exceeded"
    assert "error[context_length_exceeded]: question 1: " in done.stderr
    prompts = [[{"role": "user", "content": "first"}], lines[0], lines[1]["messages"],  # type: ignore[call-overload]
               [{"role": "user", "content": "e"}]]  # fmt: skip
    with LLM(tiny) as llm:
        expected = llm.generate(prompts, SamplingParams(max_tokens=9, temperature=0))
    assert [answers[i]["answer"] for i in (0, 2, 3, 4)] == [completion.text for completion in expected]


def test_the_screen_of_run_pa(tiny: Path) -> None:
    done = command(tiny, "--input-text", "hello", "--max-tokens", 5, "--ignore-eos", "--attention", "flash")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Question\[0\]: hello\nAnswer\[0\]: ", done.stdout)
    assert re.search(
        r"Generate\[0\] token num: 5 \(length; \d+ in the prompt; [\d.]+ tokens/s\)\n\n$", done.stdout
    )
    assert re.fullmatch(r"1 answers, 5 tokens in [\d.]+ s: [\d.]+ tokens/s\n", done.stderr)


def test_raw_text_is_continued_without_a_template(tiny: Path) -> None:
    done = command(tiny, "--no-chat", "--input-text", "abc", "--max-tokens", 4, "--json")
    assert json.loads(done.stdout)["prompt_tokens"] == 3
    base = make_tiny_checkpoint(tiny.parent / "base")
    (base / "tokenizer_config.json").write_text("{}")
    tokenizer = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(
        tokenizer.replace("<|im_start|>", "<|x|>").replace("<|im_end|>", "<|y|>")
    )
    refused = command(base, "--input-text", "abc")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error[invalid_tokenizer]: the checkpoint has no chat template")
    assert (
        command(base, "--chat-template", "internlm", "--input-text", "abc", "--max-tokens", 2).returncode == 0
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--top-p", "2"], 1, "error[invalid_request]: top_p must be"),
        (["--input-file", "absent.jsonl"], 1, "error[invalid_request]: can not read absent.jsonl"),
        (["--no-chat", "--system", "x"], 1, "error[invalid_request]: --no-chat has neither"),
        (["--max-tokens", "0"], 2, "--max-tokens"),
        (["--attention", "linear"], 2, "--attention"),
        (["--attention", "flash", "--prefix-caching"], 1, "error[invalid_settings]: "),
        (["--kv-cache", "much"], 2, "--kv-cache"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tiny: Path, arguments: list[str], status: int, message: str) -> None:
    done = command(tiny, *arguments)
    assert done.returncode == status
    assert message in done.stderr
    if status == 1:
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ('{"text": "x"}', "is no dialogue"),
        ("[]", "is no dialogue"),
        ('[{"role": "user"}]', "is no dialogue"),
        ('[{"role": "user", "content": 3}]', "is no dialogue"),
    ],
)
def test_a_bad_line_is_named(tiny: Path, tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line + "\n")
    done = command(tiny, "--input-file", file)
    assert done.returncode == 1
    assert f"{file}:2 {message}" in done.stderr


def test_a_stream_joins_to_the_answer_and_never_shows_a_stop_string(tiny: Path) -> None:
    with LLM(tiny) as llm:
        prompt = tuple(range(10, 20))
        whole = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
        (expected,) = llm.generate([prompt], whole)
        stop = expected.text[20:24]
        for params in (whole, SamplingParams(max_tokens=60, temperature=0, ignore_eos=True, stop=(stop,))):
            stream = Stream(llm.engine, Request(id="a", prompt_token_ids=prompt, params=params))
            shown = ""
            for piece in stream:
                shown += piece
                assert expected.text.startswith(shown)
                assert not params.stop or stop not in shown
            assert stream.completion is not None
            assert shown == stream.completion.text
            assert stream.abort() == ""
        assert len(shown) <= 20
        stream = Stream(llm.engine, Request(id="b", prompt_token_ids=prompt, params=whole))
        pieces = iter(stream)
        shown = "".join(next(pieces) for _ in range(30))
        shown += stream.abort()
        assert stream.completion is not None
        assert stream.completion.finish_reason == "abort"
        assert shown == stream.completion.text
        assert not llm.engine.has_unfinished


@pytest.mark.slow
def test_the_real_small_model_answers(smollm2: Path) -> None:
    done = command(smollm2, "--dtype", "float32", "--input-text", "What is the capital of France?", "--json")
    assert "Paris" in json.loads(done.stdout)["answer"]

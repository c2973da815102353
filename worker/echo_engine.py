"""An engine without a model: each answer is its prompt. For trying a fleet, and for measuring all around it.

Speaks the engine's protocol, so that everything else is the real thing. A token is a byte of UTF-8, a step
gives each of `max_num_seqs` sequences one token and takes `echo_step_seconds`; where that is 0 an answer is
done at once. Run by `worker.engine_process` as `python -m worker.echo_engine FD OPTIONS`.
"""

import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from worker.inbox import Inbox
from worker.protocol import (
    PROGRESS_SECONDS,
    EngineOptions,
    Finished,
    FromEngine,
    Generate,
    Progress,
    Ready,
    ToEngine,
    send,
)

#: Longest prompt plus answer, in bytes.
MAX_MODEL_LEN = 1 << 24
_MAX_NUM_SEQS = 256


class EchoTemplate:
    """Turns of a dialogue to the bytes of the last user message, and back."""

    def encode(self, turns: Sequence[Mapping[str, str]]) -> list[int]:
        """The prompt's tokens; a space where the message is empty, since a prompt has at least one."""
        text = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
        return list(text.encode() or b" ")

    def token_text(self, token_id: int) -> str:
        """What a token stands for."""
        return bytes([token_id]).decode("utf-8", "replace")


@dataclass(slots=True)
class _Running:
    """A request and the tokens that it has still to get."""

    message: Generate
    left: int
    seconds: float = 0.0


class _Echo:
    """The loop: requests in, modelled steps, answers out."""

    def __init__(self, connection: socket.socket, options: EngineOptions) -> None:
        self._connection = connection
        self._inbox = Inbox(connection)
        self._step_seconds = options.echo_step_seconds
        self._max_num_seqs = options.max_num_seqs or _MAX_NUM_SEQS
        self._requests: dict[str, _Running] = {}
        self._steps = 0
        self._clock = 0.0
        self._told_at = 0.0

    def run(self) -> None:
        """Until the worker is gone."""
        while (messages := self._inbox.take(block=not self._requests)) is not None:
            if messages:
                self._take_in(messages)
                continue
            answers = self._step()
            now = time.monotonic()
            if now - self._told_at >= PROGRESS_SECONDS:
                self._told_at = now
                answers.append(self._progress())
            if answers:
                send(self._connection, answers)

    def _take_in(self, messages: list[ToEngine]) -> None:
        for message in messages:
            if isinstance(message, Generate):
                tokens = min(len(message.prompt_token_ids), message.params.max_tokens)
                self._requests[message.id] = _Running(message, tokens)
            else:
                for request_id in message.ids:
                    self._requests.pop(request_id, None)

    def _step(self) -> list[FromEngine]:
        self._steps += 1
        if not self._step_seconds:
            finished = list(self._requests.values())
        else:
            time.sleep(self._step_seconds)
            batch = [
                each for each, _ in zip(self._requests.values(), range(self._max_num_seqs), strict=False)
            ]
            share = self._step_seconds / len(batch)
            self._clock += share
            for each in batch:
                each.left -= 1
                each.seconds += share
            finished = [each for each in batch if each.left <= 0]
        for each in finished:
            del self._requests[each.message.id]
        return [_answer(each) for each in finished]

    def _progress(self) -> Progress:
        running = min(len(self._requests), self._max_num_seqs)
        return Progress(self._steps, self._clock, running, len(self._requests) - running, 0, 0, None)


def _answer(running: _Running) -> Finished:
    message = running.message
    prompt = message.prompt_token_ids
    answer = bytes(prompt[: message.params.max_tokens])
    return Finished(
        id=message.id,
        text=answer.decode("utf-8", "replace"),
        finish_reason="stop" if len(answer) == len(prompt) else "length",
        prompt_tokens=len(prompt),
        cached_tokens=0,
        completion_tokens=len(answer),
        logprobs=None,
        engine_seconds=running.seconds,
    )


def main(descriptor: int, options: EngineOptions) -> int:
    """Serve until the worker goes away."""
    connection = socket.socket(fileno=descriptor)
    try:
        send(connection, [Ready(MAX_MODEL_LEN, {"engine": "echo", "python": sys.version.split()[0]})])
        _Echo(connection, options).run()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the worker is gone, and with it everyone who would read the answers
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=EngineOptions)))

"""The engine's own process: takes requests from its worker, steps the engine, sends answers back.

Owns the loop around `model.Engine`. It ends when the worker does, knows no job, and reads no setting: all
comes in `EngineOptions`. Run by `worker.engine_host` as `python -m worker.engine_main FD OPTIONS`.
"""

import os
import socket
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from model.errors import ModelError, RankError, RequestError
from model.request import Completion, Request
from worker.inbox import Inbox
from worker.protocol import (
    PROGRESS_SECONDS,
    Abort,
    EngineOptions,
    Failed,
    Finished,
    FromEngine,
    Generate,
    Progress,
    Ready,
    Refused,
    send,
)

if TYPE_CHECKING:
    from model import Engine


def main(descriptor: int, options: EngineOptions) -> int:
    """Serve until the worker goes away. Exit status 1 after a failure, which was reported."""
    if options.cpus:
        os.sched_setaffinity(0, options.cpus)
    connection = socket.socket(fileno=descriptor)
    try:
        engine = _build(options)
    except ModelError as error:
        send(connection, [Failed(error.code, str(error))])
        return 1
    inbox = Inbox(connection)
    try:
        send(connection, [Ready(engine.max_model_len, _versions())])
        _Loop(engine, connection, inbox).run()
    except RankError as error:
        send(connection, [Failed(error.code, str(error))])
        return 1
    except (BrokenPipeError, ConnectionResetError):
        return 0  # the worker is gone, and with it everyone who would read the answers
    finally:
        engine.close()
    return 0


def _build(options: EngineOptions) -> "Engine":
    from model import Engine, EngineConfig  # noqa: PLC0415 - loads torch, so only once the process is pinned

    given = {name: value for name, value in msgspec.structs.asdict(options).items() if value is not None}
    for name in ("cpus", "echo_step_seconds"):
        del given[name]
    return Engine(EngineConfig(**given))


def _versions() -> dict[str, str]:
    import torch  # noqa: PLC0415 - as above

    return {"torch": str(torch.__version__), "python": sys.version.split()[0]}


class _Loop:
    """Requests in, steps, answers out; and the share of engine time that falls to each request."""

    def __init__(self, engine: "Engine", connection: socket.socket, inbox: Inbox) -> None:
        from model.devices import load_device  # noqa: PLC0415 - loads torch, which the engine has done by now

        self._engine = engine
        self._device = load_device(engine.config.device)
        self._connection = connection
        self._inbox = inbox
        #: Engine seconds divided by the requests in it, added up; a request pays from its start to its end.
        self._clock = 0.0
        self._entered: dict[str, float] = {}
        self._told_at = 0.0

    def run(self) -> None:
        while self._take_in():
            started = time.monotonic()
            completions = self._engine.step()
            ended = time.monotonic()
            self._clock += (ended - started) / max(1, len(self._entered))
            answers: list[FromEngine] = [self._finished(completion) for completion in completions]
            if ended - self._told_at >= PROGRESS_SECONDS:
                self._told_at = ended
                answers.append(self._progress())
            if answers:
                send(self._connection, answers)

    def _take_in(self) -> bool:
        """Handle every waiting message, blocking while there is nothing to generate; False at the end."""
        while (messages := self._inbox.take(block=not self._engine.has_unfinished)) is not None:
            if not messages:
                return True
            for message in messages:
                if isinstance(message, Generate):
                    self._add(message)
                else:
                    self._abort(message)
        return False

    def _progress(self) -> Progress:
        stats = self._engine.stats()
        return Progress(
            steps=stats.steps,
            clock=self._clock,
            running=stats.running,
            waiting=stats.waiting,
            kv_blocks_used=stats.used_blocks,
            kv_blocks_total=stats.total_blocks,
            device_memory=self._device.used_bytes(),
        )

    def _add(self, message: Generate) -> None:
        request = Request(id=message.id, prompt_token_ids=message.prompt_token_ids, params=message.params)
        try:
            self._engine.add(request)
        except RequestError as error:
            send(self._connection, [Refused(message.id, error.code, str(error))])
        else:
            self._entered[message.id] = self._clock

    def _abort(self, message: Abort) -> None:
        for request_id in message.ids:
            if self._entered.pop(request_id, None) is not None:
                self._engine.abort(request_id)

    def _finished(self, completion: Completion) -> Finished:
        return Finished(
            id=completion.request_id,
            text=completion.text,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            cached_tokens=completion.cached_tokens,
            completion_tokens=len(completion.token_ids),
            logprobs=completion.logprobs,
            engine_seconds=self._clock - self._entered.pop(completion.request_id, self._clock),
        )


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=EngineOptions)))

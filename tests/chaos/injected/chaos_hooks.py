"""Faults inside a process of ours, at the calls where they matter, with no hook in the code under test.

Wraps what a module defines once it has been loaded and before anyone else has it: the public methods of the
ledger and the store in a worker, the messages of the protocol in an engine. Each call is written down in
`$CHAOS_FOLDER/events.jsonl`. A process takes the next line of `points.<role>` there,
such as `ledger.commit:before:2:kill`, and does that at its second call; then, if it lives, the next.

Knows nothing of the harness but this folder.
"""

import fcntl
import functools
import importlib
import importlib.util
import inspect
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

#: Which programs of ours get faults, by what `python -m` names.
ROLES = {
    "worker.process": "worker",
    "worker.echo_engine": "engine",
    "worker.engine_main": "engine",
}
#: An engine dies, or hangs, where it would have answered a prompt that says so.
ABORTS, HANGS = b"<abort>", b"<hang>"
#: A worker dies of an answer that says so.
KILLS_WORKERS = b"<kill the worker>"

#: Calls within calls are not counted: only what the worker itself asked for.
_nested = threading.local()


class Point(NamedTuple):
    """Where a fault happens, and which."""

    name: str
    #: before, after, or within: of an answer only half is sent.
    when: str
    #: At the how-manieth call after the process took the point.
    calls: int
    #: kill, stop (until SIGCONT), fail (the call's own error, instead of the call or of its answer).
    action: str

    @classmethod
    def parse(cls, text: str) -> "Point":
        name, when, calls, action = text.strip().split(":")
        return cls(name, when, int(calls), action)

    def __str__(self) -> str:
        return ":".join(map(str, self))


class Injection:
    """What one process does and suffers."""

    def __init__(self, folder: str, role: str) -> None:
        self._role = role
        self._points = os.path.join(folder, f"points.{role}")  # noqa: PTH118 - pathlib costs every start
        self._events = os.open(
            os.path.join(folder, "events.jsonl"),  # noqa: PTH118
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
            0o600,
        )
        self._lock = threading.Lock()
        self._point: Point | None = None
        self._seen = 0

    def tell(self, name: str, when: str, **more: Any) -> None:
        """Write an event down, in one write: several processes share the file."""
        event = {"at": time.monotonic(), "pid": os.getpid(), "role": self._role, "name": name, "when": when}
        os.write(self._events, json.dumps(event | more).encode() + b"\n")

    def reach(self, name: str, when: str, calls: int = 1) -> bool:
        """A call begins or has ended: suffer what is due. True if the call is to fail."""
        with self._lock:
            if self._point is None:
                self._take()
            point = self._point
            if point is None or (point.name, point.when) != (name, when):
                return False
            self._seen += calls
            if self._seen < point.calls:
                return False
            self.tell("fired", when, point=str(point))
            if point.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            self._point = None  # the next is taken at the next call: this may have been the last
        if point.action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        return point.action == "fail"

    def _take(self) -> None:
        """The next line of the list, which no other process gets."""
        try:
            file = open(self._points, "r+")  # noqa: SIM115, PTH123
        except FileNotFoundError:
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            first, *rest = file.readlines() or [""]
            if not first:
                return
            file.seek(0)
            file.truncate()
            file.writelines(rest)
        self._point, self._seen = Point.parse(first), 0
        self.tell("armed", self._point.when, point=str(self._point))


def public_methods(of: type) -> dict[str, Callable[..., Any]]:
    """A class's own methods that others call, by name; what makes an instance is none."""
    return {name: each for name, each in vars(of).items() if inspect.isfunction(each) and name[0] != "_"}


def wrap_methods(injection: Injection, of: type, group: str, error: type[Exception]) -> None:
    """Every public method of a class becomes a place where faults happen."""
    for name, method in public_methods(of).items():
        setattr(of, name, wrapped(injection, f"{group}.{name}", method, error))


def wrapped(
    injection: Injection, name: str, call: Callable[..., Any], error: type[Exception]
) -> Callable[..., Any]:
    """The call with faults before and after it."""

    @contextmanager
    def around(args: tuple[Any, ...], kwargs: dict[str, Any], result: list[Any]) -> Iterator[None]:
        if getattr(_nested, "inside", False):
            yield
            return
        arguments = [brief(each) for each in (*args[1:], *kwargs.values())]
        injection.tell(name, "before", args=arguments)
        if injection.reach(name, "before"):
            raise error("made to fail before the call")
        try:
            yield
        except BaseException as failure:
            injection.tell(name, "failed", args=arguments, error=type(failure).__name__)
            raise
        injection.tell(name, "after", args=arguments, result=brief(result[0] if result else None))
        if injection.reach(name, "after"):
            raise error("made to fail after the call: its answer is lost")

    @functools.wraps(call)
    def plain(*args: Any, **kwargs: Any) -> Any:
        result: list[Any] = []
        with around(args, kwargs, result), inside():
            result.append(call(*args, **kwargs))
        return result[0]

    @functools.wraps(call)
    def generating(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with around(args, kwargs, []):
            items = call(*args, **kwargs)
            while True:
                with inside():
                    item = next(items, _nested)
                if item is _nested:
                    return
                yield item

    @functools.wraps(call)
    def managing(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with around(args, kwargs, []), ExitStack() as stack:
            with inside():
                value = stack.enter_context(call(*args, **kwargs))
            yield value
            with inside():
                stack.close()

    if inspect.isgeneratorfunction(call):
        return generating
    return contextmanager(managing) if inspect.isgeneratorfunction(inspect.unwrap(call)) else plain


@contextmanager
def inside() -> Iterator[None]:
    """What is called here is called by a call, not by the worker."""
    before = getattr(_nested, "inside", False)
    _nested.inside = True
    try:
        yield
    finally:
        _nested.inside = before


def brief(value: Any) -> Any:
    """What an event says of an argument or a result: ids, numbers and counts, no contents."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, Mapping):
        return sorted(str(key) for key in value)
    if isinstance(value, Sequence):
        return [brief(each) for each in value]
    if hasattr(value, "ref") and hasattr(value, "epoch"):
        return {"ref": str(value.ref), "epoch": value.epoch, "owner": value.owner}
    if hasattr(value, "job") and hasattr(value, "shard"):
        return str(value)
    return type(value).__name__


def wrap_protocol(injection: Injection, protocol: ModuleType) -> None:
    """In an engine: what it is asked, and what it answers."""
    send, receive = protocol.send, protocol.receive_for_engine
    fatal: dict[str, bytes] = {}

    def receiving(stream: Any) -> Any:
        messages = receive(stream)
        asked = [each for each in messages or () if isinstance(each, protocol.Generate)]
        for each in asked:
            fatal.update((each.id, word) for word in (ABORTS, HANGS) if word in text_of(each))
        if asked:
            injection.tell("engine.ask", "after", ids=[each.id for each in asked])
            injection.reach("engine.ask", "after", len(asked))
        return messages

    def sending(connection: Any, messages: Sequence[Any]) -> None:
        answered = [each.id for each in messages if isinstance(each, protocol.Finished)]
        for word in [fatal[each] for each in answered if each in fatal]:
            injection.tell("fired", "before", point=f"engine.answer:before:1:{word.decode()}")
            os.abort() if word == ABORTS else os.kill(os.getpid(), signal.SIGSTOP)
        if not answered:
            send(connection, messages)
            return
        injection.reach("engine.answer", "before", len(answered))
        injection.tell("engine.answer", "before", ids=answered)
        if injection.reach("engine.answer", "within", len(answered)):
            connection = Half(connection)
        send(connection, messages)
        injection.reach("engine.answer", "after", len(answered))

    protocol.send, protocol.receive_for_engine = sending, receiving  # type: ignore[attr-defined]


def wrap_answers(injection: Injection, protocol: ModuleType) -> None:
    """In a worker: some answers are deadly."""
    receive = protocol.receive_from_engine

    def receiving(stream: Any) -> Any:
        messages = receive(stream)
        for each in messages or ():
            if isinstance(each, protocol.Finished) and KILLS_WORKERS.decode() in each.text:
                injection.tell("fired", "before", point=f"answer:before:1:{KILLS_WORKERS.decode()}")
                os.kill(os.getpid(), signal.SIGKILL)
        return messages

    protocol.receive_from_engine = receiving  # type: ignore[attr-defined]


def text_of(message: Any) -> bytes:
    """The prompt, where its tokens are bytes."""
    tokens = message.prompt_token_ids
    return bytes(tokens) if all(0 <= token < 256 for token in tokens) else b""


class Half:
    """A connection whose process dies while it sends."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def sendall(self, data: bytes) -> None:
        self._connection.sendall(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)


class Finder(MetaPathFinder):
    """Finds modules as ever, and tells a listener when one of some has been loaded."""

    def __init__(self, names: set[str], loaded: Callable[[ModuleType], None]) -> None:
        self._names = names
        self._loaded = loaded

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        del path, target
        if fullname not in self._names:
            return None
        self._names.discard(fullname)  # so that the others find it
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = Listening(spec.loader, self._loaded)
        return spec


class Listening(Loader):
    """A module's own loader, and a word when it is done."""

    def __init__(self, loader: Loader, loaded: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._loaded = loaded

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._loaded(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # `python -m` asks a loader for its code


def install(environment: Mapping[str, str]) -> None:
    """Prepare the faults of this process, if it is one that gets them."""
    words = dict(zip(sys.orig_argv, sys.orig_argv[1:], strict=False))
    role = ROLES.get(words.get("-m", ""), "rebuild" if "rebuild" in sys.orig_argv else "")
    constants = dict(item.split("=") for item in environment.get("CHAOS_CONSTANTS", "").split())
    injection = Injection(environment["CHAOS_FOLDER"], role) if role else None
    modules = {name.rpartition(".")[0] for name in constants}

    def loaded(module: ModuleType) -> None:
        for name, value in constants.items():
            home, _, attribute = name.rpartition(".")
            if home == module.__name__:
                before = getattr(module, attribute)
                setattr(module, attribute, type(before)(value))
        if injection is None:
            return
        if role == "engine" and module.__name__ == "worker.protocol":
            wrap_protocol(injection, module)
        if role == "worker" and module.__name__ == "worker.protocol":
            wrap_answers(injection, module)
        if role in ("worker", "rebuild"):
            wrap_services(injection, module)

    sys.meta_path.insert(0, Finder({*modules, *SERVICES, "worker.protocol"}, loaded))


#: Modules whose calls go to a service.
SERVICES = ("jobs.ledger", "jobs.storage", "jobs.broker")


def wrap_services(injection: Injection, module: ModuleType) -> None:
    """In a worker or a rebuild: what it asks of the ledger, the store and the broker."""
    errors = importlib.import_module("jobs.errors")
    match module.__name__:
        case "jobs.ledger":
            wrap_methods(injection, module.Ledger, "ledger", errors.LedgerError)
        case "jobs.storage":
            wrap_methods(injection, module.Store, "store", errors.StoreError)
        case "jobs.broker":
            publish = wrapped(injection, "broker.publish", module.publish, errors.LedgerError)
            module.publish = publish  # type: ignore[attr-defined]

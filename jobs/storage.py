"""Object storage: inputs, parts, receipts and manifests, on a local folder or an S3 service.

Owns how bytes get in and out, whole or in ranges, and which of obstore's errors mean what. Never knows what
the bytes say. Keys are relative to the store's URL.
"""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import obstore
from obstore import exceptions as failures
from obstore.store import LocalStore, S3Store

from jobs.errors import MissingObjectError, SettingsError, StoreError
from jobs.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config

_CHUNK = 8 * 1024 * 1024
#: A request's whole time: a chunk on a slow line, and an object of a few bytes.
_REQUEST_SECONDS, _PROBE_SECONDS = 60.0, 4.0
#: obstore raises OS errors for local folders, its own for services, and ValueError for keys like `../x`.
_FAILURES = (failures.BaseError, OSError, ValueError)


class Sink(Protocol):
    """What a streamed upload is written to."""

    def write(self, data: bytes, /) -> object:
        """Add bytes at the end."""


class Store:
    """One place in object storage. Safe to share between threads."""

    def __init__(self, backend: "ObjectStore", url: str, quick: "ObjectStore | None" = None) -> None:
        """`quick` reaches the same place and gives up sooner: for the probe."""
        self.url = url
        self._backend = backend
        self._quick = quick or backend

    @classmethod
    def open(cls, settings: Settings) -> "Store":
        """The store of `LONGHAUL_STORE_URL`; nothing is contacted yet."""
        url = settings.store_url
        backend = _backend(url, settings, seconds=_REQUEST_SECONDS)
        return cls(backend, url, _backend(url, settings, seconds=_PROBE_SECONDS))

    def probe(self) -> None:
        """Write, refuse to write twice, and delete a small object; `StoreError` says what does not work."""
        key = f".probe/{secrets.token_hex(8)}"
        quick = Store(self._quick, self.url)
        if not quick.create(key, b"longhaul") or quick.create(key, b"longhaul"):
            raise StoreError(f"store {self.url} ignores conditional writes: parts could be written twice")
        quick.delete([key])

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole, in place of what was there."""
        with self._translated(key):
            obstore.put(self._backend, key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object whole unless it exists; False if it did."""
        with self._translated(key):
            try:
                obstore.put(self._backend, key, data, mode="create")
            except failures.AlreadyExistsError:
                return False
        return True

    def get(self, key: str) -> bytes:
        """The whole object; `MissingObjectError` if there is none."""
        with self._translated(key):
            return bytes(obstore.get(self._backend, key).bytes())

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; `StoreError` if the object ends before."""
        if length == 0:
            return b""
        with self._translated(key):
            data = bytes(obstore.get_range(self._backend, key, start=offset, length=length))
        if len(data) != length:
            raise StoreError(f"{self.url}: {key} ends before byte {offset + length}")
        return data

    def size(self, key: str) -> int | None:
        """Bytes in the object, None if it does not exist."""
        try:
            with self._translated(key):
                return int(obstore.head(self._backend, key)["size"])
        except MissingObjectError:
            return None

    def stream(self, key: str) -> Iterator[bytes]:
        """The object in chunks of some MiB, each a request of its own, so that none can time out half-way."""
        size = self.size(key)
        if size is None:
            raise MissingObjectError(f"{self.url} holds no {key}")
        for offset in range(0, size, _CHUNK):
            yield self.get_range(key, offset, min(_CHUNK, size - offset))

    @contextmanager
    def writer(self, key: str) -> Iterator[Sink]:
        """A streamed upload in bounded memory. If the block raises, no object appears."""
        with self._translated(key):
            sink = obstore.open_writer(self._backend, key, buffer_size=_CHUNK)
        try:
            yield _TranslatingSink(self, key, sink)
        except BaseException:
            self._discard(key)
            raise
        with self._translated(key):
            sink.close()

    def list(self, prefix: str) -> Iterator[str]:
        """Keys under a prefix, in no order that could be relied on."""
        with self._translated(prefix):
            for page in obstore.list(self._backend, prefix=prefix):
                yield from (str(entry["path"]) for entry in page)

    def folders(self, prefix: str) -> Iterator[str]:
        """The names directly under a prefix that have something below them."""
        with self._translated(prefix):
            found = obstore.list_with_delimiter(self._backend, prefix=prefix)
        yield from (str(each).rstrip("/").rpartition("/")[2] for each in found["common_prefixes"])

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are no error."""
        for key in keys:
            try:
                with self._translated(key):
                    obstore.delete(self._backend, key)
            except MissingObjectError:
                continue

    def _discard(self, key: str) -> None:
        """Remove what an unfinished upload leaves in a folder; services expire theirs by a lifecycle rule."""
        if isinstance(self._backend, LocalStore) and self._backend.prefix is not None:
            target = self._backend.prefix / key
            for staged in target.parent.glob(f"{target.name}#*"):
                staged.unlink(missing_ok=True)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except (failures.NotFoundError, FileNotFoundError) as error:
            raise MissingObjectError(f"{self.url} holds no {key}") from error
        except _FAILURES as error:
            raise StoreError(f"store {self.url} fails at {key}: {_reason(error)}") from error


class _TranslatingSink:
    """A writer whose failures are `StoreError`s."""

    def __init__(self, store: Store, key: str, sink: Sink) -> None:
        self._store, self._key, self._sink = store, key, sink

    def write(self, data: bytes, /) -> object:
        with self._store._translated(self._key):
            return self._sink.write(data)


def read_url(url: str, settings: Settings) -> Iterator[bytes]:
    """Stream the object that a URL names, with the settings' credentials."""
    folder, _, name = url.rpartition("/")
    if not name or folder.endswith(("/", ":")):
        raise MissingObjectError(f"{url} names no object")
    return Store(_backend(folder, settings, seconds=_REQUEST_SECONDS, mkdir=False), folder).stream(name)


def _backend(url: str, settings: Settings, *, seconds: float, mkdir: bool = True) -> "ObjectStore":
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        try:
            return LocalStore(Path(rest).resolve(), mkdir=mkdir)
        except _FAILURES as error:
            raise StoreError(f"store {url} can not be opened: {_reason(error)}") from error
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        return S3Store(
            bucket,
            prefix=prefix or None,
            client_options=_client(settings, seconds),
            retry_config=_retries(),
            config=_s3_options(settings),
        )
    raise SettingsError(f"store URL {url!r}: give file:///folder or s3://bucket/prefix")


def _s3_options(settings: Settings) -> "S3Config":
    options: S3Config = {"region": settings.s3_region}
    if settings.s3_endpoint:
        options["endpoint"] = settings.s3_endpoint
    if settings.s3_access_key_id and settings.s3_secret_access_key:
        options["access_key_id"] = settings.s3_access_key_id.get_secret_value()
        options["secret_access_key"] = settings.s3_secret_access_key.get_secret_value()
    return options


def _client(settings: Settings, seconds: float) -> "ClientConfig":
    endpoint = settings.s3_endpoint or ""
    return {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=3),
        "timeout": timedelta(seconds=seconds),
    }


def _retries() -> "RetryConfig":
    """Short: a caller that can wait longer (a worker at a commit) retries on its own and says so."""
    return {
        "max_retries": 4,
        "retry_timeout": timedelta(seconds=8),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }


def _reason(error: Exception) -> str:
    """The innermost cause in one line; obstore's messages go on with a dump of their structure."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if line[:1].isdigit() or "caused by" in line.lower()]
    return (lines[0] if lines else type(error).__name__)[:300] + (f" ({causes[-1][:200]})" if causes else "")

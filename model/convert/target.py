"""The folder a conversion makes: written beside, marked, and renamed into place whole.

Owns the record `conversion.json`, by which a finished target is known again, and the lock on an unfinished
one. Imports no torch, so that finding the work already done is quick.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.errors import ConvertError

_RECORD = "conversion.json"
#: Bytes of a sample, and how many there are of a large file: all of it up to 4 MiB.
_SAMPLE, _SAMPLES = 64 * 1024, 64


def describe(path: Path, **parameters: object) -> dict[str, Any]:
    """Return what decides a conversion's result: its parameters, and what the source's files hold."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    prints = {file.name: [file.stat().st_size, _fingerprint(file)] for file in files}
    return {"format": 2, "parameters": parameters, "source": prints}


def _fingerprint(path: Path) -> str:
    """A hash of the file's content, of evenly spaced samples where it is large.

    No time stamp is in it: a package that is installed anew brings the same model with other times, and
    weights that differ at all differ everywhere.
    """
    size, digest = path.stat().st_size, hashlib.sha256()
    step = max(_SAMPLE, size // _SAMPLES)
    with path.open("rb") as file:
        for offset in (*range(0, size, step), max(0, size - _SAMPLE)):
            file.seek(offset)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def finished(target: Path, description: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the summary of the conversion that made `target`, if it was this one and every file is whole."""
    try:
        record = json.loads((target / _RECORD).read_text("utf-8"))
        whole = all((target / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record["summary"] if whole and record.get("description") == description else None


@contextmanager
def written(target: Path, *, force: bool) -> Iterator[Path]:
    """Give a new folder to write into, and rename it to `target` at the end; on an error nothing is left.

    Raises ConvertError where the target is no model folder, is one and `force` is false, or is being written
    by another process.
    """
    _require_replaceable(target, force=force)
    partial = target.with_name(f".{target.name}.partial")
    lock = _locked(partial, target)
    try:
        for leftover in partial.iterdir():
            leftover.unlink()
        yield partial
        try:
            _replace(partial, target)
        except OSError as error:
            raise ConvertError(f"{target} can not be put into place: {error.strerror}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def seal(folder: Path, description: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Write the record that makes the folder a finished conversion."""
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    record = {"description": description, "summary": summary, "files": files}
    (folder / _RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")


def _require_replaceable(target: Path, *, force: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / "config.json").is_file():
        raise ConvertError(f"{target} is not a model folder: choose another place")
    if not force:
        raise ConvertError(
            f"{target} holds another model: choose another place, or give --force to replace it"
        )


def _locked(partial: Path, target: Path) -> int:
    """Lock the folder itself: the lock dies with the process, so what a killed one left can be taken over."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConvertError(f"{target.parent} can not be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before may have renamed it away since it was opened.
        if partial.stat().st_ino == os.fstat(lock).st_ino:
            return lock
    except OSError:
        pass
    os.close(lock)
    raise ConvertError(f"another process is converting into {target}: wait for it")


def _replace(partial: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    if target.is_dir() and any(target.iterdir()):
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)

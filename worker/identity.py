"""Which model this is: a hash of its checkpoint that two folders share only if they answer alike.

Owns what goes into the hash: every small file whole, and of large files of weights their size, their first
and their last MiB (a safetensors file begins with the names, shapes and places of its tensors). Reading all
of 40 GB would make every start wait for the disk.
"""

import hashlib
from pathlib import Path

_WHOLE = 32 * 1024 * 1024
_EDGE = 1024 * 1024
#: What makes no answer: notes for people, and caches.
_IGNORED = (".md", ".txt", ".gitattributes", ".lock")


def model_hash(checkpoint: Path) -> str:
    """`sha256:` and 64 hexadecimal digits. `OSError` if a file can not be read."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint.iterdir()):
        if not path.is_file() or path.suffix in _IGNORED or path.name.startswith("."):
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
            else:
                digest.update(file.read(_EDGE))
                file.seek(size - _EDGE)
                digest.update(file.read())
    return f"sha256:{digest.hexdigest()}"

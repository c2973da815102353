"""The small real model for tests: SmolLM2-135M-Instruct in InternLM2 layout, made once, the demo's own."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".longhaul" / "models" / "smollm2-135m"


def small_model() -> Path:
    """The checkpoint's folder; several test processes may ask at once, one converts.

    Another model in its place is an older version's, and replaced.
    """
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with (FOLDER.parent / ".tests-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _convert().returncode:
            _convert("--force").check_returncode()
    return FOLDER


def _convert(*options: str) -> subprocess.CompletedProcess[bytes]:
    command = [Path(sys.executable).with_name("model"), "convert", "smollm2", FOLDER, "--layout", "internlm2"]
    return subprocess.run(
        [*command, *options], check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )

"""What memory is in use, as the system counts it."""

import subprocess
import sys

from model.memory import resident_memory

MIB = 1024 * 1024
HOLD = "import sys; held = bytearray(64 * 1024 * 1024); print(len(held), flush=True); sys.stdin.read()"


def test_what_a_child_holds_is_counted_until_it_ends() -> None:
    before = resident_memory()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        during = resident_memory()
    assert 64 * MIB <= during - before <= 128 * MIB
    assert resident_memory() - before < 32 * MIB

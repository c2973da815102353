"""The table of docs/devices.md: each operation on each chip, how far it is checked. From the checks' data.

`python -m tests.npu.table` prints it, in the environment of a simulated NPU (tests/npu/environment.py).
"""

import sys

import torch

from model.devices.npu_chips import CHIPS, torch_npu
from tests.npu.catalogue import CALLS, WRONG

#: No call of its own here: the engine makes it on two ranks (check_ranks.py), and check_misuse.py wrong ones.
ON_RANKS = "npu_mm_all_reduce_base"
ON_RANKS_WRONG = 5


def render() -> str:
    """A row for each operation on each chip that has it. Needs torch_npu."""
    torch_npu()
    lines = [
        "| operation | chip | schema | Meta | numerics against reference | refused misuse |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    names = {name for chip in CHIPS for name in chip.operations}
    for name in sorted(names, key=lambda name: name.strip("_")):
        space = "atb" if name.startswith("_") else "npu"
        real = torch._C._dispatch_has_kernel_for_dispatch_key(f"{space}::{name}", "PrivateUse1")
        meta = torch._C._dispatch_has_kernel_for_dispatch_key(f"{space}::{name}", "Meta")
        for chip in CHIPS:
            if name not in chip.operations:
                continue
            dtypes = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in chip.dtypes))
            numerics = dtypes if name in CALLS else "the tokens of two ranks" if name == ON_RANKS else "no"
            refused = ON_RANKS_WRONG if name == ON_RANKS else len(WRONG[name])
            cells = (f"`{name}`", chip.name, real, "yes" if meta else "there is none", numerics, refused)
            lines.append("| " + " | ".join(map(str, cells)).replace("True", "yes") + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(render() + "\n")

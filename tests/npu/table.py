"""The table of docs/devices.md: each operation on each chip, how far it is checked. From the checks' data.

`python -m tests.npu.table` prints it, in the environment of a simulated NPU (tests/npu/environment.py).
"""

import sys

import torch

from model.devices.npu_chips import CHIPS, torch_npu
from tests.npu.calls import CALLS, WRONG

#: Checked on two ranks, by the engine (check_ranks.py) and by its own wrong calls.
ON_RANKS = {"npu_mm_all_reduce_base": 5}


def render() -> str:
    """Rows sorted by operation. Needs torch_npu."""
    torch_npu()
    head = "| operation | " + " | ".join(f"{chip.name} ({chip.card})" for chip in CHIPS)
    lines = [
        head + " | schema | Meta | numerics against reference | refused misuse |",
        "|---" * (len(CHIPS) + 5) + "|",
    ]
    for name in sorted(
        {name for chip in CHIPS for name in chip.operations}, key=lambda name: name.strip("_")
    ):
        chips = ["yes" if name in chip.operations else "torch instead" for chip in CHIPS]
        space = "atb" if name.startswith("_") else "npu"
        has_meta = torch._C._dispatch_has_kernel_for_dispatch_key(f"{space}::{name}", "Meta")
        dtypes = sorted(
            {
                str(one).removeprefix("torch.")
                for chip in CHIPS
                if name in chip.operations
                for one in chip.dtypes
            }
        )
        numerics = ", ".join(dtypes) if name in CALLS or name in ON_RANKS else "none"
        refused = len(WRONG.get(name, ())) or ON_RANKS.get(name, 0)
        cells = [
            f"`{name}`",
            *chips,
            "real",
            "real" if has_meta else "none exists",
            numerics,
            f"{refused} kinds",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(render() + "\n")

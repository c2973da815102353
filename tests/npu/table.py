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
#: What stands where there is no result to compare by itself.
ELSEWHERE = {
    ON_RANKS: "the tokens of two ranks",
    "_npu_fused_infer_attention_score_get_max_workspace": "none: scratch memory",
}


def render() -> str:
    """A row for each operation on each chip that has it. Needs torch_npu."""
    torch_npu()
    lines = [
        "| operation | chip | schema | Meta | numerics against reference | refused misuse |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    names = {name for chip in CHIPS for name in chip.operations}
    for name in sorted(names, key=lambda name: name.strip("_")):
        space = namespace(name)
        real = torch._C._dispatch_has_kernel_for_dispatch_key(f"{space}::{name}", "PrivateUse1")
        meta = torch._C._dispatch_has_kernel_for_dispatch_key(f"{space}::{name}", "Meta")
        for chip in CHIPS:
            if name not in chip.operations:
                continue
            dtypes = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in chip.dtypes))
            numerics = ELSEWHERE.get(name, dtypes if name in CALLS else "no")
            refused = ON_RANKS_WRONG if name == ON_RANKS else refusals(name)
            cells = (f"`{name}`", chip.name, real, "yes" if meta else "there is none", numerics, refused)
            lines.append("| " + " | ".join(map(str, cells)).replace("True", "yes") + " |")
    return "\n".join(lines)


def namespace(operation: str) -> str:
    """Where torch has the operation."""
    return "npu" if hasattr(torch.ops.npu, operation) else "atb"


def refusals(operation: str) -> int:
    """Kinds of wrong calls of any of its forms."""
    return sum(len(cases) for name, cases in WRONG.items() if name.split()[0] == operation)


if __name__ == "__main__":
    sys.stdout.write(render() + "\n")

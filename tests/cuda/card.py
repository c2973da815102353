"""A stand-in for the GPU: Triton's interpreter runs the kernels on CPU tensors, and a recording runs anew.

Import it before anything that imports triton. Where a GPU is at hand nothing is replaced.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

REAL = torch.cuda.is_available()
WHERE = torch.device("cuda" if REAL else "cpu")
if not REAL:
    os.environ["TRITON_INTERPRET"] = "1"

#: Enough for the keys of sequences alone to be split, few enough for the interpreter.
PROCESSORS = 2


class Recorder:
    """Runs again what it was given, over the same tensors: what a graph does, without one."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        result = run()
        return lambda: result.copy_(run()), result


#: (owner, name, value), as `setattr` or one that is undone after a test.
Replace = Callable[[Any, str, Any], None]


def simulate(replace: Replace) -> None:
    """Have the device take host memory for a GPU's, and the interpreter compute in bfloat16 as GPUs do."""
    from model.devices import cuda, cuda_card  # noqa: PLC0415 - after the environment is set

    replace(cuda, "BACKEND", "gloo")
    replace(cuda_card, "choose", lambda _rank: WHERE)
    replace(cuda_card, "spare_bytes", lambda: 2**26)
    replace(torch.cuda, "mem_get_info", lambda: (2**26, 2**27))
    replace(cuda_card, "multiplies_bfloat16", lambda: True)
    replace(cuda_card, "processors", lambda: PROCESSORS)
    replace(cuda_card, "Recorder", Recorder)
    _correct_bfloat16(replace)


def _correct_bfloat16(replace: Replace) -> None:
    """Triton 3.9's interpreter cuts float32 off where GPUs round, and multiplies matrices of bit patterns."""
    from triton import language as tl  # noqa: PLC0415
    from triton.runtime import interpreter  # noqa: PLC0415

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def converted(values: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, rounding)
        rounded = torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.uint16)
        return rounded.numpy()

    def multiplied(builder: Any, left: Any, right: Any, *others: Any) -> Any:
        if left.dtype.scalar == tl.bfloat16:
            left, right = (
                interpreter.TensorHandle(
                    (part.data.astype(np.uint32) << np.uint32(16)).view(np.float32), tl.float32
                )
                for part in (left, right)
            )
        return dot(builder, left, right, *others)

    replace(interpreter, "_convert_float", converted)
    replace(interpreter.InterpreterBuilder, "create_dot", multiplied)

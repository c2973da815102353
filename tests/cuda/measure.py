"""How far a kernel's result is from the formula's, kept for the table at the end."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.cuda import card

#: Within one rounding of the dtype, and of the sums before it.
TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).split(".")[1])

#: (name, value) to the report.
Record = Callable[[str, object], None]


def there(tensor: Tensor) -> Tensor:
    """The tensor at the card."""
    return tensor.to(card.WHERE)


def check(record: Record, kernel: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare with what float64 gives; the error counts relative to values above one."""
    actual = found.double().cpu()
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    error = float(((actual - expected).abs() / expected.abs().clamp(min=1)).max()) if len(actual) else 0.0
    record("error", (kernel, str(found.dtype).removeprefix("torch."), error))
    assert error <= tolerance, f"{kernel}: {error} > {tolerance}"

"""Wrong calls are refused: by the wrapper what nothing else catches, by the schema and Meta the rest."""

import pytest
import torch
from torch import Tensor

from model.devices import npu
from model.devices.npu_chips import CHIPS, is_available, this_chip, torch_npu
from model.errors import NpuCallError
from tests.npu.calls import Change
from tests.npu.catalogue import CALLS, WRONG

WHERE = npu.place(0)
DTYPE = this_chip().dtypes[0]
REFUSED = [
    pytest.param(name, change, text, id=f"{name}: {what}")
    for name, cases in WRONG.items()
    if is_available(name.split()[0])
    for what, change, text in cases
]
FOREIGN = sorted({name for chip in CHIPS for name in chip.operations} - this_chip().operations)
ON_A2 = this_chip().name == "910B"


def placed(value: object, on_host: bool) -> object:
    """A tensor on the device; what is not contiguous stays so."""
    if not isinstance(value, Tensor) or on_host:
        return value
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=WHERE)
    return made.copy_(value.to(WHERE))


@pytest.mark.parametrize(("name", "change", "text"), REFUSED)
def test_a_wrong_call_is_refused(name: str, change: Change, text: str) -> None:
    call = CALLS[name]
    changed = change(call.arguments(DTYPE))
    given = {key: placed(value, key in call.on_host) for key, value in changed.items()}
    with pytest.raises(NpuCallError, match=text.replace("|", r"\|")):
        call.wrapper(**given)


@pytest.mark.parametrize("name", [name for name in CALLS if name.split()[0] in FOREIGN])
def test_another_chips_operation_is_refused(name: str) -> None:
    call = CALLS[name]
    given = {key: placed(value, False) for key, value in call.arguments(torch.float16).items()}
    with pytest.raises(NpuCallError, match="not an operation of"):
        call.wrapper(**given)


@pytest.mark.parametrize(
    "name", [name for name, call in CALLS.items() if call.on_host and is_available(name)]
)
def test_lengths_on_the_device_are_refused(name: str) -> None:
    call = CALLS[name]
    given = {key: placed(value, False) for key, value in call.arguments(DTYPE).items()}
    with pytest.raises(NpuCallError, match="not on the host"):
        call.wrapper(**given)


def fused(**changes: object) -> object:
    """torch_npu's own function on meta tensors, past the wrapper."""
    query = torch.empty(10, 8, 128, dtype=torch.float16, device="meta")
    key = torch.empty(16, 128, 256, dtype=torch.float16, device="meta")
    options = {
        "num_heads": 8,
        "num_key_value_heads": 2,
        "input_layout": "TND",
        "scale": 0.1,
        "block_table": torch.empty(2, 8, dtype=torch.int32, device="meta"),
        "block_size": 128,
        "actual_seq_lengths": [4, 10],
        "actual_seq_lengths_kv": [100, 200],
    }
    return torch_npu().npu_fused_infer_attention_score(query, key, key, **{**options, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"num_kv_heads": 2},
        {"input_layout": "XYZ"},
        {"scale": "x"},
        {"actual_seq_lengths": [1.5]},
        {"num_heads": 0},
    ],
)
def test_schema_and_meta_refuse_these(changes: dict[str, object]) -> None:
    with pytest.raises((RuntimeError, ValueError, KeyError, TypeError)):
        fused(**changes)


def test_schema_and_meta_let_these_pass() -> None:
    """Why the wrapper looks: where this fails, torch_npu has become stricter."""
    fused()
    fused(block_table=torch.empty(2, 8, dtype=torch.int64, device="meta"))
    fused(block_size=0)
    fused(actual_seq_lengths=torch.tensor([4, 10]))


@pytest.mark.skipif(not ON_A2, reason="an operation of the 910B")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"world": 3}, "3 ranks"),
        ({"communicator": ""}, "no name"),
        ({"x": torch.ones(2, 5)}, "times"),
        ({"x": torch.ones(0, 4)}, "empty"),
        ({"weight": torch.ones(4, 6, dtype=torch.float64)}, "several dtypes"),
    ],
)
def test_matmul_and_all_reduce_refuses(change: dict[str, object], text: str) -> None:
    from model.devices import npu_ops  # noqa: PLC0415

    given = {"x": torch.ones(2, 4), "weight": torch.ones(4, 6), "bias": None, "communicator": "x", "world": 2}
    for key, value in (given | change).items():
        if isinstance(value, Tensor):
            own = value.to(DTYPE) if value.dtype == torch.float32 else value
            given[key] = own.to(WHERE)
        else:
            given[key] = value
    with pytest.raises(NpuCallError, match=text):
        npu_ops.matmul_all_reduce(**given)

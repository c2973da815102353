"""Every wrapper against torch_npu's real schema and Meta kernel, and its formula; the table of the docs."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from model.devices import npu, npu_ops
from model.devices.npu_chips import CHIPS, is_available, this_chip, torch_npu
from tests.npu import emulation, table
from tests.npu.calls import Call
from tests.npu.catalogue import CALLS, WRONG
from tests.npu.environment import ROOT

WHERE = npu.place(0)
OWN = [name for name in CALLS if is_available(name.split()[0])]
TOLERANCES = {torch.float16: 2**-9, torch.bfloat16: 2**-6}


def given_to(call: Call, arguments: dict[str, object]) -> dict[str, object]:
    """The tensors on the simulated device, but those that belong on the host."""
    return {
        name: value.to(WHERE) if isinstance(value, Tensor) and name not in call.on_host else value
        for name, value in arguments.items()
    }


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("dtype", this_chip().dtypes)
def test_a_right_call_gives_what_its_formula_gives(name: str, dtype: torch.dtype) -> None:
    call = CALLS[name]
    arguments = call.arguments(dtype)
    expected = call.expected(arguments)
    given = given_to(call, arguments)
    with torch.inference_mode():
        found = call.wrapper(**given)
    if call.changes:
        found = [given[changed] for changed in call.changes]
    pairs = (
        zip([expected], [found], strict=True)
        if isinstance(found, Tensor)
        else zip(expected, found, strict=True)
    )
    for number, (wanted, got) in enumerate(pairs):
        assert got.device == WHERE
        assert got.dtype == (call.dtypes[number] if call.dtypes else dtype)
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(got.cpu().double(), wanted.double(), rtol=tolerance, atol=2 * tolerance)


def test_every_operation_of_the_chip_has_a_right_call_and_wrong_ones() -> None:
    operations = this_chip().operations - {"npu_mm_all_reduce_base"}
    assert {name.split()[0] for name in OWN} == operations
    assert operations <= WRONG.keys()


@pytest.mark.parametrize("operation", sorted(this_chip().operations))
def test_torch_npu_has_every_operation_of_the_chip(operation: str) -> None:
    space = table.namespace(operation)
    assert hasattr(torch_npu(), operation)
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{space}::{operation}", "PrivateUse1")


def test_the_emulation_checks_shapes_by_the_real_meta_kernel() -> None:
    """A reference of another shape would be seen."""
    func = torch.ops.npu.npu_rms_norm.default
    x = torch.ones(2, 4, dtype=torch.float16)
    with pytest.raises(AssertionError, match="Meta"):
        emulation.checked(func, lambda *_: (x[:1], x), (x, x[0], 1e-5), {})


def test_the_emulation_refuses_mixed_devices() -> None:
    with pytest.raises(emulation.MixedDevices):
        torch.ones(2).to(WHERE) + torch.ones(2)


def test_the_table_in_the_docs_is_this_one() -> None:
    text = (ROOT / "docs" / "devices.md").read_text()
    assert table.render() in text


def test_the_package_needs_no_torch_npu_to_be_imported() -> None:
    code = "import sys, model.devices.npu, model.devices.npu_ops; assert 'torch_npu' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_wrapper_knows_the_chip() -> None:
    assert this_chip() in CHIPS
    assert npu_ops.FRACTAL_NZ == 29

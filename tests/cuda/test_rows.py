"""The kernels that take a token at a time, against plain formulas."""

import pytest
import torch

from model.devices import cuda
from tests.cuda.measure import TOLERANCES, Record, check, each_dtype, there


@each_dtype
@pytest.mark.parametrize(("tokens", "columns"), [(1, 1), (3, 100), (7, 128), (2, 6144)])
def test_norms(record_property: Record, dtype: torch.dtype, tokens: int, columns: int) -> None:
    torch.manual_seed(columns)
    residual, delta = (torch.randn(tokens, columns).to(dtype) for _ in range(2))
    weight = torch.randn(columns).to(dtype)
    found = cuda.norm(there(residual), there(weight), 1e-5)
    check(record_property, "norm", found, normed(residual, weight), 2 * TOLERANCES[dtype])
    total = residual + delta
    there_residual = there(residual.clone())
    found = cuda.add_norm(there_residual, there(delta), there(weight), 1e-5)
    assert there_residual.cpu().equal(total)
    check(record_property, "add_norm", found, normed(total, weight), 2 * TOLERANCES[dtype])


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


@each_dtype
@pytest.mark.parametrize(("tokens", "columns"), [(1, 1), (3, 100), (2, 320), (1, 2500)])
def test_the_gate(record_property: Record, dtype: torch.dtype, tokens: int, columns: int) -> None:
    torch.manual_seed(columns)
    gate_up = (torch.randn(tokens, 2 * columns) * 10).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    expected = gate / (1 + (-gate).exp()) * up
    check(record_property, "gate", cuda.gate(there(gate_up)), expected, 2 * TOLERANCES[dtype])


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
def test_the_gate_at_its_ends() -> None:
    gates = torch.tensor([-1e38, -3e38, -200.0, -88.0, 0.0, 88.0, 3e38, torch.nan])
    found = cuda.gate(there(torch.stack((gates, torch.ones(8)), 0).reshape(1, 16))).flatten().cpu()
    assert found[:5].abs().max() < 1e-30
    assert found[5:7].equal(gates[5:7])
    assert found[7].isnan()


@each_dtype
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (5, 24), (10, 64), (3, 128)])
def test_rotary_turns_the_halves_among_other_heads(
    record_property: Record, dtype: torch.dtype, heads: int, head_dim: int
) -> None:
    torch.manual_seed(heads)
    before = torch.randn(4, heads + 2, head_dim).to(dtype)
    merged = there(before.clone())
    angles = torch.randn(4, head_dim // 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    first, second = before[:, :heads].double().chunk(2, -1)
    turned = torch.complex(first, second) * torch.complex(cos.double(), sin.double())[:, None]
    cuda.rotate(merged[:, :heads], there(cos), there(sin))
    expected = torch.cat((turned.real, turned.imag), -1)
    check(record_property, "rotate", merged[:, :heads], expected, 2 * TOLERANCES[dtype])
    assert merged[:, heads:].cpu().equal(before[:, heads:])


def test_no_tokens_are_no_work() -> None:
    for kind in TOLERANCES:
        nothing = there(torch.empty(0, 8, dtype=kind))
        assert cuda.norm(nothing, there(torch.ones(8, dtype=kind)), 1e-5).shape == (0, 8)
        assert cuda.gate(nothing).shape == (0, 4)


def test_rows_that_lie_apart_are_refused() -> None:
    apart = there(torch.randn(4, 64))[:, ::2]
    with pytest.raises(ValueError, match="contiguous"):
        cuda.gate(apart)
    with pytest.raises(ValueError, match="contiguous"):
        cuda.norm(apart, there(torch.ones(32)), 1e-5)
    with pytest.raises(ValueError, match="side by side"):
        cuda.rotate(apart[:, None], there(torch.ones(4, 16)), there(torch.ones(4, 16)))

"""Two ranks on two simulated chips: what NPUs alone do there. The tests of all devices look at the tokens."""

import pytest

from model import LLM, SamplingParams
from model.devices import npu
from model.devices.npu_chips import this_chip
from model.errors import ConfigError
from tests.golden import reference
from tests.npu import emulation

GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)
OPTIONS = {
    "device": "npu",
    "dtype": "float32",
    "max_model_len": 256,
    "kv_cache_bytes": 2**26,
    "num_threads": 1,
}


@pytest.mark.skipif(this_chip().name != "910B", reason="an operation of the 910B")
def test_matmul_and_all_reduce_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 16 tokens on, so that decoding goes the other way."""
    monkeypatch.setenv("NPU_MATMUL_ALL_REDUCE", "16")
    golden = reference.load("v2_gqa")
    options = {**OPTIONS, "max_step_tokens": 40, "max_num_seqs": 8, "tensor_parallel_size": 2}
    before = emulation.current[0].calls.copy()
    with LLM(golden.folder, **options) as llm:
        found = [list(one.token_ids) for one in llm.generate(golden.prompts, GREEDY)]
    assert found == golden.tokens
    used = emulation.current[0].calls - before
    assert 0 < used["npu::npu_mm_all_reduce_base"] < used["npu::npu_rms_norm"] * 4


@pytest.mark.skipif(this_chip().name != "910B", reason="the 910B has graphs")
def test_graphs_on_both_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sums over the ranks in them."""
    monkeypatch.setenv("NPU_DECODE_GRAPHS", "1")
    golden = reference.load("v2_gqa")
    options = {**OPTIONS, "max_step_tokens": 40, "max_num_seqs": 8, "tensor_parallel_size": 2}
    before = emulation.current[0].graphs.replays
    with LLM(golden.folder, **options) as llm:
        found = [list(one.token_ids) for one in llm.generate(golden.prompts, GREEDY)]
    assert found == golden.tokens
    assert emulation.current[0].graphs.replays > before


def test_more_ranks_than_chips() -> None:
    with pytest.raises(ConfigError, match="rank 2 has no NPU: 2 visible"):
        npu.place(2)

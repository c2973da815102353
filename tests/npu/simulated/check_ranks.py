"""Two ranks on two simulated chips: the process group of the device, and the tokens of one rank."""

import pytest

from model import LLM, SamplingParams
from model.errors import ConfigError
from tests.golden import reference

GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)
OPTIONS = {"device": "npu", "dtype": "float32", "max_model_len": 256, "kv_cache_bytes": 2**26, "num_threads": 1}


@pytest.mark.parametrize("attention", ["paged", "flash"])
@pytest.mark.parametrize(
    "name", ["v2_gqa", *(pytest.param(name, marks=pytest.mark.shared) for name in ("v1_bias", "v3_dyn"))]
)
def test_tokens_on_two_ranks(name: str, attention: str) -> None:
    golden = reference.load(name)
    options = {**OPTIONS, "max_step_tokens": 40, "max_num_seqs": 8}
    with LLM(golden.folder, attention=attention, tensor_parallel_size=2, **options) as llm:
        found = [list(one.token_ids) for one in llm.generate(golden.prompts, GREEDY)]
    assert found == golden.tokens


def test_more_ranks_than_chips() -> None:
    golden = reference.load("v2_gqa")
    with pytest.raises(ConfigError, match="rank 2 has no NPU: 2 visible"):
        from model.devices import npu  # noqa: PLC0415

        npu.place(2)
    assert golden.folder.exists()

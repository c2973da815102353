"""The dtypes that the chip computes in: the CPU engine's tokens, up to choices that hang on the rounding."""

import pytest

from model import LLM, SamplingParams
from model.devices import npu_attention
from model.devices.npu_chips import this_chip
from tests.golden import reference

#: A float32 gap between two tokens' log-probabilities under which the rounding of 16 bits may decide.
CLOSE = {"float16": 0.02, "bfloat16": 0.15}
#: As the chip attends, and as it does without NNAL.
WAYS = {"910B": ["fused"], "310P": ["atb", "public"]}[this_chip().name]
DTYPES = [str(dtype).removeprefix("torch.") for dtype in this_chip().dtypes]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["paged", "flash"])
@pytest.mark.parametrize("way", WAYS)
def test_tokens_differ_only_where_two_are_as_likely(
    dtype: str, attention: str, way: npu_attention.Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npu_attention, "way", lambda: way)
    golden = reference.load("v2_gqa")
    params = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True, logprobs=5)
    with LLM(golden.folder, max_model_len=256, num_threads=1) as llm:
        expected = llm.generate(golden.prompts, params)
    options = {"max_model_len": 256, "kv_cache_bytes": 2**26, "max_step_tokens": 192}
    with LLM(golden.folder, device="npu", dtype=dtype, attention=attention, **options) as llm:
        found = llm.generate(golden.prompts, params)
    for one, other in zip(found, expected, strict=True):
        pairs = zip(one.token_ids, other.token_ids, other.logprobs or (), strict=True)
        differing = next(((token, record) for token, wanted, record in pairs if token != wanted), None)
        if differing:
            token, record = differing
            assert dict(record.top)[token] > record.logprob - CLOSE[dtype]

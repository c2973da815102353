"""Which operations the engine calls on this chip: the chip's own and no others, each where it is due.

What it answers is checked by the tests of all devices (tests/devices.py), which run here as well.
"""

from pathlib import Path

import pytest

from model import LLM, SamplingParams
from model.devices import npu_attention, npu_chips, npu_int8
from model.devices.npu_chips import is_available, this_chip
from tests.npu import emulation
from tests.npu.tiny import tiny_checkpoint

#: Several ranks call it (check_ranks.py).
ON_RANKS = {"npu_mm_all_reduce_base"}
#: Multiply by int8 weights (check_int8.py).
INT8 = {name for names in npu_int8.OPERATIONS.values() for name in names}
#: Are there for when the installed torch_npu lacks what is better, or for graphs (check_graphs.py).
SPARE = {
    "910B": {
        "npu_apply_rotary_pos_emb",
        "npu_format_cast",
        "_npu_fused_infer_attention_score_get_max_workspace",
    },
    "310P": {"npu_incre_flash_attention", "npu_prompt_flash_attention"},
}


def test_the_engine_uses_what_the_chip_has(tmp_path: Path) -> None:
    """Each operation of the chip's list."""
    chip = this_chip()
    assert all(map(is_available, chip.operations))
    assert used_by_the_engine(tmp_path) == chip.operations - ON_RANKS - INT8 - SPARE[chip.name]


@pytest.mark.skipif(this_chip().name != "310P", reason="the 910B's are no part of NNAL")
def test_without_nnal_the_public_operations_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says once what they can not do."""
    installed = is_available

    def without(name: str) -> bool:
        return not name.startswith("_") and installed(name)

    monkeypatch.setattr(npu_attention, "is_available", without)
    npu_chips.log_fallback.cache_clear()
    used = used_by_the_engine(tmp_path)
    assert {"npu_incre_flash_attention", "npu_prompt_flash_attention"} <= used
    assert not any(name.startswith("_") for name in used)
    messages = [record.message for record in caplog.records if "past" in record.message]
    (message,) = messages
    assert message.endswith("through plain torch on 310P: NNAL's operations are not installed")


def used_by_the_engine(tmp_path: Path) -> set[str]:
    """For prompts alone, prompts with a past and decoding."""
    folder = tiny_checkpoint(tmp_path / "tiny")
    params = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
    prompts = [[7] * 150 + [8, 9], [5, 6], [7] * 150 + [9]]
    before = emulation.current[0].calls.copy()
    options = {"max_num_seqs": 4, "max_step_tokens": 160, "num_threads": 1}
    with LLM(folder, device="npu", random_weights=True, **options) as llm:
        for some in (prompts[1:2], prompts, prompts):
            completions = llm.generate(some, params)
    assert completions[0].cached_tokens == 128
    return {name.partition("::")[2] for name in emulation.current[0].calls - before}


@pytest.mark.parametrize("attention", ["paged", "flash"])
def test_whole_prompts_are_read_as_they_come(tmp_path: Path, attention: str) -> None:
    """On the 910B, over contiguous caches: their first step needs no block table."""
    folder = tiny_checkpoint(tmp_path / "tiny")
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
    seen: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        own = emulation.REFERENCES["npu::npu_fused_infer_attention_score"]

        def watched(*given: object, **options: object) -> object:
            seen.append(options.get("block_table") is None)
            return own(*given, **options)

        patch.setitem(emulation.REFERENCES, "npu::npu_fused_infer_attention_score", watched)
        options = {"attention": attention, "max_num_seqs": 2, "max_model_len": 200}
        with LLM(folder, device="npu", random_weights=True, **options) as llm:
            llm.generate([[5, 6, 7]], params)
    if this_chip().name == "910B":
        assert seen == [attention == "flash"] * 2

"""The whole family against the original modelling code: same logits and tokens, however it is run."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import golden_table
from model import LLM, EngineConfig, SamplingParams
from model.batch import Batch
from model.config import DeviceName, ModelConfig
from model.kv_cache import BlockPool
from model.runner import Runner
from model.scheduler import Scheduler, Sequence
from tests import devices
from tests.golden import reference

GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)
THOROUGH = pytest.mark.thorough


@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize(
    ("chunk", "block_size"),
    [(512, 32), *(pytest.param(*sizes, marks=THOROUGH) for sizes in ((7, 8), (64, 1), (1, 4)))],
)
def test_prefill_logits_equal_the_original(
    name: str, chunk: int, block_size: int, device: DeviceName
) -> None:
    golden = reference.load(name)
    config = EngineConfig(path=golden.folder, **devices.options(device, block_size=block_size))
    runner = Runner(config, ModelConfig.load(golden.folder), rank=0)
    runner.allocate_cache(256, config.block_size)
    for number, prompt in enumerate(golden.prompts):
        logits = prefill_logits(runner, prompt, chunk)
        expected = torch.from_numpy(golden.prefill_logits(number))
        torch.testing.assert_close(logits[-len(expected) :].cpu(), expected, rtol=0, atol=1e-4)


def prefill_logits(runner: Runner, prompt: list[int], chunk: int) -> torch.Tensor:
    """Logits of every position of a prompt that runs in chunks, [tokens, vocabulary]."""
    size = runner.config.block_size
    scheduler = Scheduler(BlockPool(256), block_size=size, max_num_seqs=1, max_step_tokens=chunk)
    sequence = Sequence(id="prompt", tokens=prompt, prompt_len=len(prompt))
    scheduler.add(sequence)
    parts = []
    while sequence.num_pending:
        chunks = scheduler.schedule()
        planned = Batch.of(chunks, size)
        everything = np.arange(len(planned.token_ids), dtype=np.int32)
        parts.append(runner.lead(Batch(**{**vars(planned), "logit_rows": everything})))
        sequence.num_computed += chunks[0].num_tokens
    return torch.cat(parts)


@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize(
    ("max_step_tokens", "block_size", "max_num_seqs"),
    [
        pytest.param(*sizes, marks=() if sizes == (29, 5, 4) else THOROUGH)
        for sizes in itertools.product((4, 29, 512), (1, 5, 32), (1, 4))
    ],
)
def test_greedy_tokens_equal_the_original(
    name: str, max_step_tokens: int, block_size: int, max_num_seqs: int, device: DeviceName
) -> None:
    golden = reference.load(name)
    sizes = {"block_size": block_size, "max_step_tokens": max_step_tokens, "max_num_seqs": max_num_seqs}
    with LLM(golden.folder, max_model_len=256, **devices.options(device, **sizes)) as llm:
        completions = llm.generate(golden.prompts, GREEDY)
    for completion, tokens, count in zip(completions, golden.tokens, golden.comparable, strict=True):
        assert list(completion.token_ids)[:count] == tokens[:count]


@pytest.mark.parametrize("name", reference.NAMES)
@pytest.mark.parametrize("block_size", [1, 8, 32])
def test_logits_equal_the_original_after_prefix_hits(name: str, block_size: int) -> None:
    """The table's own measure, in one of its settings."""
    golden = reference.load(name)
    setting = golden_table.Setting(block_size=block_size, prefix_caching=True)
    row = golden_table.measure(golden, 1, [setting])
    assert row.wrong == []
    assert 0 < row.error < 1e-4
    assert row.compared == row.equal == 2 * len(setting.chunks) * len(golden.prompts)


def test_the_table_tells_what_is_not_the_originals(capsys: pytest.CaptureFixture[str]) -> None:
    """Answers that are another's are named, and the command fails."""
    golden = reference.load("v2_gqa")
    wrong = dict(golden.answers)
    wrong["p0_gen_ids"] = golden.answers["p1_gen_ids"]
    wrong["p1_prefill_logits"] = golden.prefill_logits(1) + np.float32(2e-4)
    row = golden_table.measure(reference.Golden(golden.folder, wrong), 1, golden_table.FEW)
    assert row.compared - row.equal == 2 * len(golden_table.FEW)
    assert row.error == pytest.approx(2e-4, abs=1e-4)
    assert len(row.wrong) == 3 * len(golden_table.FEW)
    assert capsys.readouterr().out == ""


@pytest.mark.thorough
@pytest.mark.parametrize("name", reference.NAMES)
def test_preempted_sequences_continue_as_if_nothing_had_been(name: str, device: DeviceName) -> None:
    """A cache that holds little more than the longest request: most sequences are preempted at least once."""
    golden = reference.load(name)
    numbers = [number for number, prompt in enumerate(golden.prompts) if len(prompt) <= 40] * 3
    with LLM(
        golden.folder,
        device=device,
        block_size=4,
        max_model_len=64,
        kv_cache_bytes=golden.cache_bytes(64 + 16),
        prefix_caching=False,
        num_threads=1,
    ) as llm:
        completions = llm.generate([golden.prompts[number] for number in numbers], GREEDY)
        assert llm.engine.stats().preemptions > 0
        assert llm.engine.stats().used_blocks == 0
    for number, completion in zip(numbers, completions, strict=True):
        count = golden.comparable[number]
        assert list(completion.token_ids)[:count] == golden.tokens[number][:count]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "option"), [("v2_dyn", "dynamic:2.0"), ("v2_linear", "linear:4")])
def test_rope_scaling_from_an_option_is_that_of_a_config(name: str, option: str, tmp_path: Path) -> None:
    """A copy whose config.json has no scaling answers otherwise, and with the option as the original."""
    golden = reference.load(name)
    config = json.loads((golden.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_scaling": None}))
    for weights in golden.folder.glob("*.safetensors"):
        (tmp_path / weights.name).symlink_to(weights)
    options = {"max_model_len": 256, "num_threads": 1}
    with LLM(tmp_path, **options) as llm:
        assert [list(one.token_ids) for one in llm.generate(golden.prompts, GREEDY)] != golden.tokens
    with LLM(tmp_path, rope_scaling=option, **options) as llm:
        assert [list(one.token_ids) for one in llm.generate(golden.prompts, GREEDY)] == golden.tokens
    with LLM(golden.folder, rope_scaling="default", **options) as llm:
        assert [list(one.token_ids) for one in llm.generate(golden.prompts, GREEDY)] != golden.tokens

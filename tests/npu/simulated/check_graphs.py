"""Decode steps by captured graphs give the same tokens; when there are none, and what fits in one.

What a graph does in the emulation is said in tests/npu/graphs.py. Other chips than the 910B have no graphs.
"""

import logging

import pytest

from model import LLM, SamplingParams
from model.devices import DecodeLimits, RecordsDecode, npu, npu_graphs
from model.devices.ladder import rung
from model.devices.npu_chips import this_chip
from tests.golden import reference
from tests.npu import emulation

WHERE = npu.place(0)
GRAPHS = emulation.current[0].graphs
GREEDY = SamplingParams(max_tokens=reference.GENERATED, temperature=0, ignore_eos=True)
OPTIONS = {"device": "npu", "dtype": "float32", "max_model_len": 256, "num_threads": 1}
ON_A2 = this_chip().name == "910B"
only_on_a2 = pytest.mark.skipif(not ON_A2, reason="the 910B has graphs")


@pytest.fixture(autouse=True)
def asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_DECODE_GRAPHS", "1")


def decoded(sizes: list[int], **options: object) -> tuple[int, int]:
    """Graphs and replays while the golden prompts are answered, a second time too."""
    golden = reference.load("v2_gqa")
    graphs, replays = GRAPHS.captures, GRAPHS.replays
    with LLM(golden.folder, **(OPTIONS | options)) as llm:
        for size in sizes:
            found = [list(one.token_ids) for one in llm.generate(golden.prompts[:size], GREEDY)]
            assert found == golden.tokens[:size]
    return GRAPHS.captures - graphs, GRAPHS.replays - replays


@only_on_a2
def test_all_decode_steps_but_the_first_of_a_size_are_replayed() -> None:
    """4, 3 and 1 sequences: 3 fill up to 4. A prompt's last chunk may bring its own step."""
    graphs, replays = decoded([4, 3, 1], max_num_seqs=4, max_step_tokens=512)
    assert graphs == 2
    assert replays == 3 * (reference.GENERATED - 1) - graphs


@only_on_a2
@pytest.mark.parametrize("name", reference.NAMES)
def test_tokens_equal_the_original(name: str) -> None:
    """Chunks of prompts between the replays, and prompts that are found entirely, whose last token is not."""
    golden = reference.load(name)
    before = GRAPHS.replays
    with LLM(golden.folder, max_step_tokens=29, max_num_seqs=8, **OPTIONS) as llm:
        for _ in range(2):
            completions = llm.generate([*golden.prompts, golden.prompts[-1][:128]], GREEDY)
            for completion, tokens, count in zip(completions, golden.tokens, golden.comparable, strict=False):
                assert list(completion.token_ids)[:count] == tokens[:count]
    assert GRAPHS.replays > before


@only_on_a2
@pytest.mark.parametrize("block_size", [256, 384, 512])
def test_longer_pages(block_size: int) -> None:
    assert decoded([4], max_num_seqs=4, block_size=block_size)[1] > 0


@only_on_a2
@pytest.mark.parametrize("options", [{"attention": "flash"}, {"prefix_caching": False}])
def test_without_a_block_to_spare_only_full_sizes_are_recorded(options: dict[str, object]) -> None:
    """3 sequences would need a place for a fourth row."""
    assert decoded([3], max_num_seqs=4, max_step_tokens=512, **options) == (0, 0)
    graphs, replays = decoded([4], max_num_seqs=4, max_step_tokens=512, **options)
    assert (graphs, replays) == (1, reference.GENERATED - 2)


@only_on_a2
def test_there_are_no_more_graphs_than_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden has 3 layers."""
    monkeypatch.setattr(npu_graphs, "_EVENTS", 6)
    assert decoded([4, 2, 1], max_num_seqs=4, max_step_tokens=512)[0] == 2


@only_on_a2
def test_the_emulation_sees_what_would_hang_or_race() -> None:
    """That these tests can fail: a replay without its event, and one whose lengths are changed meanwhile."""
    with LLM(reference.load("v2_gqa").folder, **OPTIONS) as llm, pytest.MonkeyPatch.context() as patch:
        patch.setattr(npu_graphs._Attention, "update", lambda *_: None)
        with pytest.raises(AssertionError, match="nobody records"):
            llm.generate([[5, 6]], GREEDY)
    with LLM(reference.load("v2_gqa").folder, **OPTIONS) as llm, pytest.MonkeyPatch.context() as patch:
        patch.setattr(npu_graphs._npu().Stream, "synchronize", lambda *_: None)
        with pytest.raises(AssertionError, match="may still be running"):
            llm.generate([[5, 6]], GREEDY)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"NPU_DECODE_GRAPHS": "0"}, ""),
        ({"ASCEND_LAUNCH_BLOCKING": "1"}, "ASCEND_LAUNCH_BLOCKING=1 forbids" if ON_A2 else "no graphs here"),
    ],
)
def test_when_there_are_none(
    variables: dict[str, str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert isinstance(npu, RecordsDecode)
    with caplog.at_level(logging.WARNING):
        step = npu.record_decode(lambda step: step.token_ids, DecodeLimits(4, 2, 128), WHERE)
    assert step is None
    assert [reason in record.message for record in caplog.records] == ([True] if reason else [])


@pytest.mark.skipif(ON_A2, reason="of the others")
def test_other_chips_decode_without() -> None:
    assert decoded([4, 1], max_num_seqs=4) == (0, 0)


def test_the_ladder_is_short() -> None:
    """Of 256 sequences at once: 13 graphs, of 78 layers at most."""
    assert len({rung(rows, 256) for rows in range(1, 257)}) == 13
    assert npu_graphs._EVENTS // 13 == 78

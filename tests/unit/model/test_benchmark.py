"""What `model benchmark` makes of a run: modeltest's rules and columns, searches, traces, pictures."""

import csv
import random
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.benchmark import pictures, report
from model.benchmark.measure import Run
from model.benchmark.rounds import Round, averages, of_run, step_tokens
from model.benchmark.search import Try, judge, largest
from model.benchmark.throughput import Spread, Throughput, per_request
from model.benchmark.workload import Lengths, fitting, parse_pairs, random_requests, read_trace
from model.errors import InvalidPrompt
from model.request import Completion

#: The header that MindIE's modeltest (model_test.py) writes for a performance test.
MODELTEST = [
    "Model", "Batchsize", "In_seq", "Out_seq", "Total time(s)", "Prefill all time(ms)",
    "Prefill average time(ms)", "Non-first token time(ms)", "Non-first token Throughput(Tokens/s)",
    "Throughput(Tokens/s)", "Non-first token Throughput Average(Tokens/s)",
    "E2E Throughput Average(Tokens/s)",
]  # fmt: skip


def completion(number: int, tokens: int, prompt: int = 10) -> Completion:
    return Completion(
        request_id=str(number), token_ids=(7,) * tokens, text="", finish_reason="length", logprobs=None,
        prompt_tokens=prompt, cached_tokens=number,
    )  # fmt: skip


def a_run(*, first: tuple[float, ...], ended: tuple[float, ...], tokens: int, **changes: int) -> Run:
    values = {
        "steps": 5, "prefill_steps": 2, "preemptions": 0, "peak_running": len(first),
        "peak_blocks": 3, "total_blocks": 12,
    } | changes  # fmt: skip
    completions = tuple(completion(number, tokens) for number in range(len(first)))
    return Run(completions=completions, first_token=first, ended=ended, seconds=max(ended) + 0.5, **values)


def test_a_round_has_modeltests_figures() -> None:
    run = a_run(first=(0.2, 0.4), ended=(1.9, 2.0), tokens=5)
    one = of_run(run, "m", Lengths(10, 5))
    assert one.total_seconds == 2.5
    assert one.prefill_ms == 400
    assert one.prefill_average_ms == 200, "two steps of prefill"
    assert one.decode_ms == pytest.approx(1000 * (2.0 - 0.4) / 4)
    assert one.decode_tokens_per_second == pytest.approx(2 / 0.4)
    assert one.tokens_per_second == pytest.approx(2 * 5 / 2.5)
    assert one.cache_use == 0.25
    assert one.error is None
    single = of_run(a_run(first=(0.4,), ended=(0.4,), tokens=1), "m", Lengths(10, 1))
    assert (single.decode_ms, single.decode_tokens_per_second) == (0, 0)


def a_round(batch_size: int = 2, error: str | None = None, **figures: float) -> Round:
    return Round(model="m", batch_size=batch_size, input=8, output=4, error=error, **figures)  # type: ignore[arg-type]


def test_the_csv_is_modeltests(tmp_path: Path) -> None:
    figures = {"total_seconds": 1.5, "prefill_ms": 2.0, "prefill_average_ms": 1.0, "decode_ms": 3.0}
    rounds = [
        a_round(2, **figures, decode_tokens_per_second=10.0, tokens_per_second=6.0),
        a_round(2, **figures, decode_tokens_per_second=20.0, tokens_per_second=8.0),
        a_round(4, **figures, decode_tokens_per_second=1 / 3, tokens_per_second=2.0),
        a_round(4, error="too long"),
    ]
    report.write_csv(tmp_path / "r.csv", report.performance_rows(rounds))
    with (tmp_path / "r.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == MODELTEST
    assert rows[0] == ["m", "2", "8", "4", "1.5", "2.0", "1.0", "3.0", "10.0", "6.0"]
    assert rows[1][8:] == ["20.0", "8.0", "15.0", "7.0"], "the averages of a batch size end its last row"
    assert rows[2][8:] == ["0.3333333333", "2.0"]
    assert rows[3] == ["m", "4", "8", "4", "too long", "", "", "", "", "", "0.3333333333", "2.0"]
    assert averages([a_round(error="x")]) == (0, 0)
    assert [row[-2:] for row in report.search_rows(rounds[:2])] == [[10.0, 6.0], [20.0, 8.0]]


def test_throughput_sums_up() -> None:
    run = a_run(first=(1.0, 3.0), ended=(2.0, 5.0), tokens=5)
    figures = Throughput.of(run, dropped=1)
    assert (figures.requests, figures.dropped, figures.input_tokens, figures.output_tokens) == (2, 1, 20, 10)
    assert figures.output_tokens_per_second == pytest.approx(10 / 5.5)
    assert figures.total_tokens_per_second == pytest.approx(30 / 5.5)
    assert figures.decode_ms == Spread(mean=375, p50=250, p90=500, p99=500, max=500)
    assert figures.cached_tokens == 1
    row = report.throughput_row("m", figures)
    assert len(row) == len(MODELTEST)
    assert row[:5] == ["m", 2, 10.0, 5.0, 5.5]
    assert [one["latency_seconds"] for one in per_request(run)] == [2.0, 5.0]


def test_percentiles_are_values_that_were_seen() -> None:
    spread = Spread.of([float(number) for number in range(1, 201)])
    assert (spread.p50, spread.p90, spread.p99, spread.max, spread.mean) == (100, 180, 198, 200, 100.5)
    assert Spread.of([]).p99 == 0


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 400))
def test_the_search_finds_the_largest_that_passes(low: int, width: int, last: int) -> None:
    tried: list[int] = []

    def passes(size: int) -> bool:
        tried.append(size)
        return size <= last

    high = low + width
    assert largest(low, high, passes) == (min(last, high) if last >= low else 0)
    assert len(tried) == len(set(tried)) <= width.bit_length() + 1
    assert tried[0] == (low + high) // 2


def test_what_passes() -> None:
    assert judge(a_round(decode_ms=50.0), 50).passed
    assert not judge(a_round(decode_ms=50.1), 50).passed
    assert not judge(a_round(error="out of memory"), 50).passed


def test_a_batch_of_which_a_part_waited_has_failed() -> None:
    times = {"first": (0.2, 0.4), "ended": (1.9, 2.0), "tokens": 5}
    crowded = of_run(a_run(**times, peak_running=1), "m", Lengths(10, 5))  # type: ignore[arg-type]
    assert crowded.error is not None
    assert crowded.error.startswith("only 1 of 2 sequences ran at once")
    preempted = of_run(a_run(**times, preemptions=3), "m", Lengths(10, 5))  # type: ignore[arg-type]
    assert preempted.error == "3 preemptions: raise --kv-cache"


@pytest.mark.parametrize("text", ["[[2048,2048],[1024,1]]", " [ [2048, 2048],[1024 ,1] ] "])
def test_pairs(text: str) -> None:
    assert parse_pairs(text) == [(2048, 2048), (1024, 1)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[1,2]",
        "[[1]]",
        "[[1,2,3]]",
        "[[1,2]",
        "[[0,2]]",
        "[[1,-2]]",
        "[[1,2],3]",
        "[[01,2]]",
        "[[[1,2]]]",
    ],
)
def test_what_is_no_list_of_pairs(text: str) -> None:
    with pytest.raises(ValueError, match=r"\[\["):
        parse_pairs(text)


def test_a_trace_gives_its_lengths(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n"
        "2023-11-16 18:15:50.9951690,396,0\r\n2023-11-16 18:15:51.2224670,879,55\r\n"
    )
    assert read_trace(file) == [(374, 44), (396, 1), (879, 55)]
    assert read_trace(file, 2) == [(374, 44), (396, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no columns ContextTokens"),
        ("", "no columns ContextTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,2\nx,many,2\n", r"trace\.csv:3 has no two numbers"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nx,1\n", r"trace\.csv:2 has no two numbers"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(InvalidPrompt, match=message):
        read_trace(file)
    with pytest.raises(InvalidPrompt, match="can not read"):
        read_trace(tmp_path / "absent.csv")


def test_random_prompts_have_their_lengths_and_their_seed() -> None:
    sizes = [Lengths(5, 2), Lengths(300, 7)]
    first, second = random_requests(sizes, 1000, seed=3)
    assert [len(one.prompt_token_ids) for one in (first, second)] == [5, 300]
    assert [one.params.max_tokens for one in (first, second)] == [2, 7]
    assert first.params.ignore_eos
    assert first.params.temperature == 0
    assert all(0 <= token < 1000 for token in second.prompt_token_ids)
    assert len(set(second.prompt_token_ids)) > 200
    assert [first, second] == random_requests(sizes, 1000, seed=3)
    others = [random_requests(sizes, 1000, seed)[0].prompt_token_ids for seed in (0, (0, 1), 1, 4)]
    assert len({first.prompt_token_ids, *others}) == 5


def test_requests_that_do_not_fit_are_left_out() -> None:
    requests = random_requests([Lengths(5, 5), Lengths(6, 5), Lengths(1, 9)], 100, seed=0)
    assert [one.id for one in fitting(requests, 10)] == ["request-0", "request-2"]
    with pytest.raises(InvalidPrompt, match="no request fits into the context of 9"):
        fitting(requests, 9)


@pytest.mark.parametrize(
    ("batch_size", "longest", "expected"),
    [(1, 64, 2048), (4, 1024, 4096), (64, 2048, 16384), (20000, 1, 20000)],
)
def test_a_step_takes_the_whole_batch_where_it_can(batch_size: int, longest: int, expected: int) -> None:
    assert step_tokens(batch_size, longest, 2048) == expected


def test_pictures_are_well_formed_whatever_the_figures() -> None:
    draw = random.Random(0)  # noqa: S311 - no secret
    for scale in (0.0, 1e-4, 1.0, 7e5):
        rounds = [
            a_round(size, decode_ms=scale * draw.random(), tokens_per_second=scale) for size in (1, 2, 9)
        ]
        tries = [Try(round=one, passed=True) for one in rounds] + [
            Try(round=a_round(16, error="<memory> & so on"), passed=False)
        ]
        run = a_run(first=(0.1, 0.2), ended=(0.3, scale + 1), tokens=2)
        for drawn in (
            pictures.of_rounds("a <b> & c", rounds),
            pictures.of_rounds("nothing ran", [a_round(error="x")]),
            pictures.of_searches("s", {Lengths(8, 4): tries, Lengths(1, 1): tries[-1:]}, 50.0),
            pictures.of_run("t", run),
        ):
            root = ET.fromstring(drawn)  # noqa: S314 - our own
            places = [
                float(element.get(name, 0))
                for element in root.iter()
                for name in ("x", "y", "cx", "cy", "x1", "y2", "width", "height")
            ]
            assert all(-1 <= place <= 1100 for place in places)
    assert "a &lt;b&gt; &amp; c" in pictures.of_rounds("a <b> & c", rounds)

"""What a worker exports, read as Prometheus reads it: its text format, parsed, and over HTTP."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from typing import get_args

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from jobs import dialogue
from worker.errors import MetricsPortError
from worker.metrics import LOSS_REASONS, OTHER, OUTCOMES, Ending, Metrics, Service

MODEL, GROUP = "internlm2-chat-7b", "npu:0,1,2,3"
OWN = {"model": MODEL, "group": GROUP}


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> Metrics:
    return Metrics(model=MODEL, group=GROUP, clock=clock)


def scrape(port: int) -> list[Sample]:
    """The series as they come over HTTP."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return parsed(answer.read())


def samples(metrics: Metrics) -> list[Sample]:
    """The series as they would come."""
    return parsed(prometheus_client.generate_latest(metrics.registry))


def parsed(text: bytes) -> list[Sample]:
    families = text_string_to_metric_families(text.decode())
    return [sample for family in families for sample in family.samples]


def value(found: list[Sample], name: str, **labels: str) -> float | None:
    """The value of one series; None where there is none."""
    wanted = {**OWN, **labels}
    values = [sample.value for sample in found if sample.name == name and sample.labels == wanted]
    assert len(values) <= 1
    return values[0] if values else None


def exercised(metrics: Metrics) -> Metrics:
    """Everything that can happen has happened once."""
    metrics.lines_done({"succeeded": 3, "engine_error": 1}, prompt_tokens=400, cached_tokens=100)
    metrics.shard_claimed(3.0, attempt=2)
    for how in get_args(Ending):
        metrics.shard_ended(how, 42.0)
    metrics.leases_held(2)
    metrics.service_retried("store")
    metrics.backlog(MODEL, jobs=1, lines=1000)
    metrics.engine_started()
    metrics.engine_lost("killed")
    metrics.engine_state(
        running=8, waiting=1, kv_blocks_used=30, kv_blocks_total=40, device_memory_bytes=2**35
    )
    metrics.device_seconds(useful=8.0)
    metrics.wasted(device_seconds=2.0)
    metrics.watch_consumer(lambda: 0.5)
    metrics.watch_engine(lambda: 0.02)
    return metrics


def test_every_series_names_its_model_and_group_and_nothing_of_a_job(metrics: Metrics) -> None:
    with closing(exercised(metrics).serve("127.0.0.1", 0)) as server:
        found = scrape(server.port)
    assert len({sample.name for sample in found}) > 30
    for sample in found:
        assert sample.name.startswith("longhaul_")
        assert sample.labels.items() >= OWN.items()
        assert sample.labels.keys() <= {*OWN, "outcome", "how", "service", "reason", "state", "use", "le"}


def test_names_follow_the_conventions_of_prometheus(metrics: Metrics) -> None:
    text = prometheus_client.generate_latest(exercised(metrics).registry).decode()
    units = ("seconds", "bytes", "ratio", "tokens", "lines", "jobs", "requests", "per_second", "held")
    for family in text_string_to_metric_families(text):
        assert family.documentation.endswith("."), family.name
        if family.name.endswith("_created"):
            continue  # when a series began: the client adds these
        assert family.type in {"counter", "gauge", "histogram"}
        assert (family.type == "counter") == all(sample.name.endswith("_total") for sample in family.samples)
        if family.type != "counter":
            assert family.name.endswith(units), family.name


def test_what_counts_begins_at_zero_for_every_word(metrics: Metrics) -> None:
    found = samples(metrics)
    for name, label, words in (
        ("longhaul_lines_total", "outcome", (*OUTCOMES, OTHER)),
        ("longhaul_shard_seconds_count", "how", get_args(Ending)),
        ("longhaul_service_retries_total", "service", get_args(Service)),
        ("longhaul_engine_losses_total", "reason", (*LOSS_REASONS, OTHER)),
    ):
        assert {word: value(found, name, **{label: word}) for word in words} == dict.fromkeys(words, 0.0)
    assert value(found, "longhaul_engine_starts_total") == 0


def test_what_is_not_known_is_not_there(metrics: Metrics) -> None:
    names = {sample.name for sample in samples(metrics)}
    assert names.isdisjoint(
        {
            "longhaul_device_memory_bytes",
            "longhaul_remaining_lines",
            "longhaul_active_jobs",
            "longhaul_worker_consumer_age_seconds",
            "longhaul_engine_step_age_seconds",
        }
    )


def test_the_outcomes_are_all_that_a_line_can_get() -> None:
    codes = {text for name, text in vars(dialogue).items() if name.isupper() and text == name.lower()}
    assert set(OUTCOMES) == {"succeeded", *codes}


def test_lines_and_their_tokens(metrics: Metrics) -> None:
    metrics.lines_done(
        {"succeeded": 250, "context_length_exceeded": 6},
        prompt_tokens=9000,
        cached_tokens=4000,
        completion_tokens=5000,
    )
    metrics.lines_done({"succeeded": 1}, prompt_tokens=10, cached_tokens=0, completion_tokens=20)
    found = samples(metrics)
    assert value(found, "longhaul_lines_total", outcome="succeeded") == 251
    assert value(found, "longhaul_lines_total", outcome="context_length_exceeded") == 6
    assert value(found, "longhaul_prompt_tokens_total") == 9010
    assert value(found, "longhaul_cached_tokens_total") == 4000
    assert value(found, "longhaul_generated_tokens_total") == 5020


def test_a_word_of_no_list_never_becomes_a_label(metrics: Metrics) -> None:
    metrics.lines_done({"my secret text": 2})
    metrics.engine_lost("Traceback: my secret text")
    found = samples(metrics)
    assert value(found, "longhaul_lines_total", outcome="other") == 2
    assert value(found, "longhaul_engine_losses_total", reason="other") == 1
    assert not any("secret" in word for sample in found for word in sample.labels.values())


def test_tokens_per_second_are_those_of_the_last_ten_seconds(metrics: Metrics, clock: Clock) -> None:
    name = "longhaul_generated_tokens_per_second"
    metrics.lines_done({"succeeded": 1}, completion_tokens=500)
    assert value(samples(metrics), name) == 0, "the second is not over"
    clock.now += 1
    metrics.lines_done({"succeeded": 1}, completion_tokens=300)
    assert value(samples(metrics), name) == 50
    clock.now += 9
    assert value(samples(metrics), name) == 80
    clock.now += 1
    assert value(samples(metrics), name) == 30
    clock.now += 1
    assert value(samples(metrics), name) == 0


def test_shards(metrics: Metrics) -> None:
    metrics.shard_claimed(0.0, attempt=1)
    metrics.shard_claimed(45.0, attempt=1)
    metrics.shard_claimed(1e6, attempt=3)
    metrics.shard_ended("committed", 100.0)
    metrics.shard_ended("lost", 5.0)
    metrics.leases_held(2)
    found = samples(metrics)
    bounds = {"0.1": 1, "30.0": 1, "60.0": 2, "86400.0": 2, "+Inf": 3}
    for bound, count in bounds.items():
        assert value(found, "longhaul_queue_wait_seconds_bucket", le=bound) == count
    assert value(found, "longhaul_shard_retries_total") == 1
    assert value(found, "longhaul_shard_seconds_sum", how="committed") == 100
    assert value(found, "longhaul_shard_seconds_count", how="lost") == 1
    assert value(found, "longhaul_shard_seconds_count", how="failed") == 0
    assert value(found, "longhaul_leases_held") == 2


def test_services_that_were_asked_again(metrics: Metrics) -> None:
    metrics.service_retried("ledger")
    metrics.service_retried("ledger")
    found = samples(metrics)
    assert value(found, "longhaul_service_retries_total", service="ledger") == 2
    assert value(found, "longhaul_service_retries_total", service="store") == 0


def test_an_engine_that_is_lost_takes_its_state_along(metrics: Metrics) -> None:
    metrics.engine_started()
    metrics.engine_state(
        running=8, waiting=1, kv_blocks_used=30, kv_blocks_total=40, device_memory_bytes=2**35
    )
    found = samples(metrics)
    assert value(found, "longhaul_engine_requests", state="running") == 8
    assert value(found, "longhaul_engine_requests", state="waiting") == 1
    assert value(found, "longhaul_kv_cache_used_ratio") == 0.75
    assert value(found, "longhaul_device_memory_bytes") == 2**35
    metrics.engine_lost("hung")
    found = samples(metrics)
    assert value(found, "longhaul_engine_losses_total", reason="hung") == 1
    assert value(found, "longhaul_engine_starts_total") == 1
    assert value(found, "longhaul_engine_requests", state="running") == 0
    assert value(found, "longhaul_kv_cache_used_ratio") == 0
    assert value(found, "longhaul_device_memory_bytes") is None


def test_device_time_is_useful_or_wasted(metrics: Metrics) -> None:
    metrics.device_seconds(useful=8.0)
    metrics.wasted(device_seconds=0.5)
    found = samples(metrics)
    assert value(found, "longhaul_device_seconds_total", use="useful") == 8
    assert value(found, "longhaul_device_seconds_total", use="wasted") == 0.5


def test_a_backlog_is_exported_while_it_is_fresh(metrics: Metrics, clock: Clock) -> None:
    metrics.backlog(MODEL, jobs=2, lines=5000)
    metrics.backlog("another", jobs=1, lines=7)
    clock.now += 100
    metrics.backlog(MODEL, jobs=1, lines=4000)
    found = samples(metrics)
    assert value(found, "longhaul_remaining_lines") == 4000
    assert value(found, "longhaul_active_jobs") == 1
    assert value(found, "longhaul_remaining_lines", model="another") == 7
    clock.now += 100
    found = samples(metrics)
    assert value(found, "longhaul_remaining_lines") == 4000
    assert value(found, "longhaul_remaining_lines", model="another") is None
    clock.now += 100
    assert value(samples(metrics), "longhaul_remaining_lines") is None


def test_ages_are_asked_for_at_each_scrape(metrics: Metrics) -> None:
    ages = {"consumer": 1.5, "engine": 0.25}
    metrics.watch_consumer(lambda: ages["consumer"])
    metrics.watch_engine(lambda: ages["engine"])
    with closing(metrics.serve("127.0.0.1", 0)) as server:
        assert value(scrape(server.port), "longhaul_worker_consumer_age_seconds") == 1.5
        ages.update(consumer=90.0, engine=30.0)
        assert value(scrape(server.port), "longhaul_worker_consumer_age_seconds") == 90
        assert value(scrape(server.port), "longhaul_engine_step_age_seconds") == 30


def test_threads_lose_no_count_while_prometheus_reads() -> None:
    metrics = Metrics(model=MODEL, group=GROUP)
    threads, rounds = 4, 500

    def work() -> None:
        for number in range(rounds):
            metrics.lines_done(
                {"succeeded": 2, "cancelled": 1}, prompt_tokens=3, cached_tokens=1, completion_tokens=5
            )
            metrics.shard_claimed(0.2, attempt=2)
            metrics.engine_state(
                running=1,
                waiting=0,
                kv_blocks_used=1,
                kv_blocks_total=2,
                device_memory_bytes=number if number % 2 else None,
            )
            metrics.backlog(f"model-{number % 7}", jobs=1, lines=number)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    seen = [0.0]
    with closing(metrics.serve("127.0.0.1", 0)) as server:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            now = value(scrape(server.port), "longhaul_lines_total", outcome="succeeded")
            assert now is not None
            seen.append(now)
        for worker in workers:
            worker.join()
        found = scrape(server.port)
    assert seen == sorted(seen)
    assert value(found, "longhaul_lines_total", outcome="succeeded") == 2 * threads * rounds
    assert value(found, "longhaul_lines_total", outcome="cancelled") == threads * rounds
    assert value(found, "longhaul_generated_tokens_total") == 5 * threads * rounds
    assert value(found, "longhaul_shard_retries_total") == threads * rounds
    assert value(found, "longhaul_queue_wait_seconds_count") == threads * rounds


def test_each_has_a_registry_of_its_own(metrics: Metrics) -> None:
    other = Metrics(model=MODEL, group="npu:4,5,6,7")
    other.lines_done({"succeeded": 1})
    assert value(samples(metrics), "longhaul_lines_total", outcome="succeeded") == 0
    assert value(samples(other), "longhaul_lines_total", outcome="succeeded", group="npu:4,5,6,7") == 1
    assert b"longhaul" not in prometheus_client.generate_latest()


@pytest.fixture
def taken(metrics: Metrics) -> Iterator[int]:
    with closing(metrics.serve("127.0.0.1", 0)) as server:
        yield server.port


def test_a_port_that_is_taken_is_an_error_with_advice(metrics: Metrics, taken: int) -> None:
    with pytest.raises(MetricsPortError, match=rf"127\.0\.0\.1:{taken} .*LONGHAUL_METRICS_PORT") as caught:
        metrics.serve("127.0.0.1", taken)
    assert caught.value.code == "metrics_port"


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("203.0.113.1", 9400)])
def test_a_place_that_is_none_is_an_error_with_advice(metrics: Metrics, host: str, port: int) -> None:
    with pytest.raises(MetricsPortError, match="set LONGHAUL_METRICS_HOST"):
        metrics.serve(host, port)


def test_nothing_is_left_of_a_server_that_was_closed(metrics: Metrics) -> None:
    before = set(threading.enumerate())
    server = metrics.serve("127.0.0.1", 0)
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon, "a process that ends does not wait for it"
    server.close()
    assert not thread.is_alive()
    with pytest.raises(urllib.error.URLError, match="refused"):
        scrape(server.port)
    with closing(metrics.serve("127.0.0.1", server.port)) as again:
        assert value(scrape(again.port), "longhaul_leases_held") == 0

"""What `producer submit` costs from ten thousand lines to a million: `python -m benchmarks.submit_scale`.

Runs the command as a user does, against a Valkey and a store of its own, while no worker is there, and prints
for each number of lines the time, the CPU time and the peak memory of the command, and Redis's peak memory.
A submission of one line comes first: it is the program's start, which is in none of the figures per line.

`--kind ids` gives every line an id of its own, `bad` makes every tenth line unusable; `huge` makes lines of
8 MiB and `brackets` lines of 8 MiB that are refused and need the most memory to find that out: ask for few.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.services import s3_server, valkey_server

ENGLISH = (
    "Please summarize the report below in two sentences, for a reader who has not followed the project. ",
    'The committee met on Tuesday and agreed on "most" of the points that the first draft had left open. ',
    "Costs rose by 4.5 % in the third quarter, chiefly because two suppliers changed their terms. ",
    "Nobody could say why the pump had stopped; the log ends at 03:12 without a word.\n",
    "She asked for the figures of 2019, which are in the annex, and for those of the year before. ",
)
CHINESE = (
    "请用两句话概括下面的报告，读者没有参与过这个项目。",
    "委员会周二开会，对初稿中遗留的大部分问题达成了一致。",
    "第三季度成本上升了4.5%，主要是因为两家供应商改变了条款。",
    "没有人能说清水泵为什么停了，日志在03:12戛然而止。\n",
    "她要了附件里2019年的数字，还有前一年的。",
)
HUGE = 8 * 1024 * 1024 - 64

Line = Callable[[int], bytes]


def text(number: int) -> str:
    """About two hundred bytes, of which one third are Chinese."""
    sentences, count = (CHINESE, 4) if number % 3 == 2 else (ENGLISH, 2)
    return f"{number}: " + "".join(sentences[(number // 3 + turn) % len(sentences)] for turn in range(count))


def encoded(value: object, *, escaped: bool = False) -> bytes:
    return json.dumps(value, ensure_ascii=escaped).encode()


def turns(number: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": text(number)},
    ]


def bare(number: int) -> bytes:
    return encoded(turns(number))


def named(number: int) -> bytes:
    return encoded({"custom_id": f"report-{number}", "messages": turns(number), "max_tokens": 128})


def batch(number: int) -> bytes:
    """As OpenAI's users write it: by Python's json, which escapes what is not ASCII."""
    body = {"model": "m", "messages": turns(number), "temperature": 0.5}
    request = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions"}
    return encoded({**request, "body": body}, escaped=True)


def bad(number: int) -> bytes:
    return named(number) if number % 10 else named(number).replace(b'"user"', b'"robot"')


def huge(number: int) -> bytes:
    return encoded({"custom_id": f"report-{number}", "prompt": "x" * HUGE})


def brackets(number: int) -> bytes:
    """A request that is refused for its tools, a thousand times ten thousand lists in each other."""
    depth = 900
    nested = b"[" * depth + b"]" * depth
    return b'{"custom_id":"report-%d","prompt":"x","tools":[%b]}' % (
        number,
        b",".join([nested] * (HUGE // (len(nested) + 1))),
    )


KINDS: Mapping[str, tuple[Line, ...]] = {
    "mixed": (bare, named, batch, bare, batch, named, bare),
    "ids": (named,),
    "bad": (bad,),
    "huge": (huge,),
    "brackets": (brackets,),
}


def lines(kind: str) -> Iterator[bytes]:
    """Without end, and always the same."""
    makers = KINDS[kind]
    number = 0
    while True:
        yield makers[number % len(makers)](number) + b"\n"
        number += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one submission."""

    lines: int
    megabytes: float
    seconds: float
    cpu_seconds: float
    peak_rss_mb: float
    redis_peak_mb: float

    def row(self, start: "Cost") -> dict[str, float]:
        """What is shown: both memories are peaks, and `start` is the submission of one line."""
        further = self.lines - start.lines
        return {
            "lines": self.lines,
            "MB": round(self.megabytes),
            "seconds": round(self.seconds, 2),
            "lines/s": round(self.lines / self.seconds),
            "CPU s": round(self.cpu_seconds, 2),
            "RSS MB": round(self.peak_rss_mb),
            "Redis MB": round(self.redis_peak_mb, 1),
            "µs/line": round((self.seconds - start.seconds) / further * 1e6, 2) if further else 0,
            "CPU µs": round((self.cpu_seconds - start.cpu_seconds) / further * 1e6, 2) if further else 0,
        }


def submission(source: Path, count: int, environment: Mapping[str, str], folder: Path) -> Cost:
    """Submit the file to a Valkey of its own."""
    with valkey_server(folder / "valkey") as valkey:
        process = subprocess.Popen(
            [sys.executable, "-m", "producer", "submit", source, "--model", "m"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment, "LONGHAUL_REDIS_URL": valkey.url},
        )
        started = time.perf_counter()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"producer submit ended with status {process.returncode}")
        with valkey.client() as client:
            redis_peak = int(client.info("memory")["used_memory_peak"])
    return Cost(
        lines=count,
        megabytes=source.stat().st_size / 1e6,
        seconds=seconds,
        cpu_seconds=used.ru_utime + used.ru_stime,
        peak_rss_mb=used.ru_maxrss * 1024 / 1e6,
        redis_peak_mb=redis_peak / 1e6,
    )


@contextmanager
def stored(kind: str, folder: Path) -> Iterator[Mapping[str, str]]:
    """The settings of a store of its own."""
    if kind == "file":
        yield {"LONGHAUL_STORE_URL": f"file://{folder}/store"}
        return
    with s3_server(folder / "s3") as s3:
        yield {"LONGHAUL_STORE_URL": s3.url("submit"), **s3.environment}


def costs(counts: Sequence[int], kind: str, store: str) -> Iterator[Cost]:
    """Each number of lines in turn."""
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="submit-scale-") as name:
            folder = Path(name)
            source = folder / "in.jsonl"
            with source.open("wb") as file:
                file.writelines(islice(lines(kind), count))
            with stored(store, folder) as environment:
                yield submission(source, count, environment, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kind", choices=list(KINDS), default="mixed")
    parser.add_argument("--store", choices=["file", "s3"], default="file")
    parser.add_argument("--json", action="store_true", help="print one JSON object per row")
    asked = parser.parse_args()
    start: Cost | None = None
    rows = []
    for cost in costs([1, *asked.lines], asked.kind, asked.store):
        start = start or cost
        rows.append(cost.row(start))
        if asked.json:
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    if not asked.json:
        table = Table(title=f"{asked.kind} lines, {asked.store} store", box=None)
        for heading in rows[0]:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*(f"{value:,}" for value in row.values()))
        Console().print(table)


if __name__ == "__main__":
    main()

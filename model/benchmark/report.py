"""What a benchmark leaves behind: modeltest's CSV, and a JSON document with everything."""

import csv
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from model.benchmark.rounds import Round, averages
from model.benchmark.throughput import Throughput
from model.config import EngineConfig, ModelConfig
from model.devices import load_device
from model.shapes import num_parameters

#: The header of modeltest's performance CSV; the averages stand in the last row of a batch size.
COLUMNS = (
    "Model",
    "Batchsize",
    "In_seq",
    "Out_seq",
    "Total time(s)",
    "Prefill all time(ms)",
    "Prefill average time(ms)",
    "Non-first token time(ms)",
    "Non-first token Throughput(Tokens/s)",
    "Throughput(Tokens/s)",
    "Non-first token Throughput Average(Tokens/s)",
    "E2E Throughput Average(Tokens/s)",
)
_DIGITS = 10


def performance_rows(rounds: Iterable[Round]) -> list[list[object]]:
    """Rows of a performance run: a failed round has its error in place of the figures."""
    rows: list[list[object]] = []
    for _, group in groupby(rounds, lambda one: one.batch_size):
        of_batch = list(group)
        rows += [_row(one) for one in of_batch]
        _extend(rows[-1], averages(of_batch))
    return rows


def search_rows(rounds: Sequence[Round]) -> list[list[object]]:
    """Rows of a search: each try is a run of its own, and its own average."""
    rows = [_row(one) for one in rounds]
    for row, one in zip(rows, rounds, strict=True):
        _extend(row, averages([one]))
    return rows


def throughput_row(model: str, figures: Throughput) -> list[object]:
    """A throughput run in modeltest's columns: means over the requests; prompts and answers overlap, so the
    columns of the prefill, and of a batch that only decodes, stay empty.
    """
    row: list[object] = [
        model,
        figures.peak_running,
        _rounded(figures.input_tokens / figures.requests),
        _rounded(figures.output_tokens / figures.requests),
        _rounded(figures.seconds),
        "",
        "",
        _rounded(figures.decode_ms.mean),
        "",
        _rounded(figures.output_tokens_per_second),
    ]
    return [*row, "", _rounded(figures.output_tokens_per_second)]


def _row(one: Round) -> list[object]:
    head: list[object] = [one.model, one.batch_size, one.input, one.output]
    if one.error is not None:
        return [*head, one.error]
    return [*head, *map(_rounded, one.figures)]


def _extend(row: list[object], means: tuple[float, float]) -> None:
    row += [""] * (len(COLUMNS) - len(means) - len(row))
    row += map(_rounded, means)


def _rounded(value: float) -> float:
    return round(value, _DIGITS)


def write_csv(path: Path, rows: Iterable[Sequence[object]], header: Sequence[str] = COLUMNS) -> None:
    """Write a table."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write the document, indented for people."""
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def setting(config: EngineConfig, model: ModelConfig, name: str) -> dict[str, Any]:
    """What was measured, and on what."""
    return {
        "model": name,
        "architecture": model.architecture,
        "parameters": num_parameters(model),
        "weights": "random" if config.random_weights else "checkpoint",
        "dtype": str(load_device(config.device).dtype(config.dtype, model.dtype)).removeprefix("torch."),
        "engine": asdict(config) | {"path": str(config.path)},
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cpus": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def _processor() -> str:
    """The CPU's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")

"""Which run an answer belongs to: what of checkpoint, settings and task decides it. Imports no torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from model.config import EngineConfig, read_json
from model.convert.target import describe
from model.evaluation.task import Task

#: The files of a checkpoint that decide its answers.
_FILES = ("*.safetensors", "*.json", "tokenizer.model", "chat_template.jinja")
#: Written by conversions; says when and from what, and decides nothing.
_RECORDS = ("conversion.json",)
#: The engine's settings that decide its answers; the others change its speed, memory and rounding.
_ENGINE = ("dtype", "device", "max_model_len", "rope_scaling", "random_weights")


def description(task: Task, config: EngineConfig) -> dict[str, object]:
    """What a run is, as JSON can hold it: two runs with equal descriptions can share their answers.

    Raises CheckpointError where the folder holds no model.
    """
    return {
        "task": task.name,
        **task.settings,
        "questions": _digest([asdict(question) for question in task.questions]),
        "checkpoint": _checkpoint(config.path),
        **{name: getattr(config, name) for name in _ENGINE},
    }


def short_name(run: Mapping[str, object]) -> str:
    """Eight hexadecimal digits that name the run."""
    return _digest(run)[:8]


def _checkpoint(folder: Path) -> str:
    read_json(folder / "config.json")
    files = {file for pattern in _FILES for file in folder.glob(pattern) if file.name not in _RECORDS}
    return _digest([describe(file)["source"] for file in sorted(files)])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

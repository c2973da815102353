"""Logs: one JSON object a line, with the context that was bound."""

import json
import logging
import threading

import pytest
import structlog

from jobs.settings import Settings
from jobs.telemetry import set_up_logging


def test_events_and_libraries_share_one_form(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(Settings(log_format="json"), group="cpu:0")
    with structlog.contextvars.bound_contextvars(job="j", shard=3):
        structlog.get_logger("a").info("begun", epoch=1)
        logging.getLogger("library").warning("plain %s", "text")
    thread = threading.Thread(target=structlog.get_logger("a").info, args=("elsewhere",))
    thread.start()
    thread.join()
    structlog.get_logger("a").debug("not wanted")
    first, second, third = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["event"], first["job"], first["shard"], first["epoch"]) == ("begun", "j", 3, 1)
    assert (second["event"], second["level"], second["job"]) == ("plain text", "warning", "j")
    assert [line["group"] for line in (first, second, third)] == ["cpu:0"] * 3
    assert "job" not in third
    assert first["timestamp"].endswith("Z")

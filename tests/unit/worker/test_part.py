"""A part is whole or it is not, and its receipt counts what is in it."""

import hashlib

import pytest

from jobs.dialogue import error_line
from jobs.records import Shard
from tests.output_lines import answered
from worker import part

SHARD = Shard(offset=0, length=10, first_line=5, lines=2, rejects_offset=0, rejects_length=0)


def lines() -> dict[int, bytes]:
    good = answered("j", 6, "t\u2028", "x", tokens=(3, 4))
    return {6: good, 5: error_line("j", 5, None, "invalid_json", "no\nJSON")}


def test_lines_stand_in_input_order() -> None:
    data = part.compose(SHARD, lines())
    assert data == lines()[5] + b"\n" + lines()[6] + b"\n"


def test_a_missing_line_is_an_error() -> None:
    with pytest.raises(KeyError):
        part.compose(SHARD, {5: b"{}"})


def test_the_receipt_counts_the_bytes_themselves() -> None:
    data = part.compose(SHARD, lines())
    receipt = part.receipt(3, data, device_seconds=1.5, worker="w", epoch=2)
    assert (receipt.shard, receipt.lines, receipt.succeeded, receipt.failed) == (3, 2, 1, 1)
    assert (receipt.prompt_tokens, receipt.completion_tokens, receipt.bytes) == (3, 4, len(data))
    assert receipt.sha256 == hashlib.sha256(data).hexdigest()

"""All calls, right and wrong, by the names of their operations: those of calls.py and of int8_calls.py."""

from collections.abc import Mapping

from tests.npu import calls, int8_calls
from tests.npu.calls import Call, Change

CALLS: Mapping[str, Call] = {**calls.CALLS, **int8_calls.CALLS}
WRONG: Mapping[str, list[tuple[str, Change, str]]] = {**calls.WRONG, **int8_calls.WRONG}

"""All calls, right and wrong, by the names of their operations."""

from collections.abc import Mapping

from tests.npu import calls, int8_calls, more_calls
from tests.npu.calls import Call, Change

CALLS: Mapping[str, Call] = {**calls.CALLS, **more_calls.CALLS, **int8_calls.CALLS}
WRONG: Mapping[str, list[tuple[str, Change, str]]] = {**calls.WRONG, **more_calls.WRONG, **int8_calls.WRONG}

"""Messages as Celery 5.7 writes them into a queue, for tests of who reads them."""

import base64
import json
from typing import Any

from jobs.transport import TASK

NOTHING: dict[str, object] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def message(
    arguments: object, *, headers: dict[str, object] | None = None, **changes: object
) -> dict[str, Any]:
    """A message as Celery 5.7 writes it, with changes."""
    encoded = base64.b64encode(
        arguments if isinstance(arguments, bytes) else json.dumps(arguments).encode()
    ).decode()
    return {
        "body": encoded,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": TASK,
            "id": "6f7e",
            "eta": None,
            "expires": None,
            "group": None,
            "retries": 0,
            "timelimit": [None, None],
            **(headers or {}),
        },
        "properties": {
            "correlation_id": "6f7e",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "queue:m"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "d1",
        },
        **changes,
    }


def hint(**fields: object) -> list[object]:
    return [[], fields, NOTHING]

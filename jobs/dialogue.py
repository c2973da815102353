"""One line in, one line out: the formats, their validation, the error codes.

Owns what a line means. Never reads files, knows no job and no engine.
"""

from typing import Annotated

import msgspec


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens; `None` leaves a choice to the next in line: line, job, model."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None

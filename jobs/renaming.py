"""An output line of one job as the line of another: for results that are taken over or joined.

Owns which ids an output line carries. Never changes what was answered.
"""

import msgspec

from jobs import wire
from jobs.errors import LineError

_decode = msgspec.json.Decoder(wire.Output).decode
_encode = msgspec.json.Encoder().encode


def renamed(line: bytes, job_id: str, number: int) -> bytes:
    """The output line under the ids of line `number` of `job_id`, without a newline.

    `LineError` where it is no output line.
    """
    try:
        output = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LineError("invalid_json", f"not an output line: {error}") from error
    name = f"{job_id}-{number}"
    response = output.response
    if response is not None:
        body = msgspec.structs.replace(response.body, id=f"chatcmpl-{name}")
        response = msgspec.structs.replace(response, request_id=f"req-{name}", body=body)
    return _encode(msgspec.structs.replace(output, id=name, response=response))

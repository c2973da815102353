"""Output lines as workers write them, for tests that need some and not what they say in full."""

from jobs.dialogue import Dialogue, Sampling, success_line


def answered(
    job: str,
    number: int,
    text: str,
    custom_id: str | None = None,
    *,
    tokens: tuple[int, int] = (1, 1),
    logprobs: object = None,
) -> bytes:
    """The line of an answer, without a newline; `tokens` are those of prompt and answer."""
    prompt, completion = tokens
    return success_line(
        job,
        Dialogue(number, custom_id, (), Sampling()),
        model="m",
        text=text,
        finish_reason="stop",
        prompt_tokens=prompt,
        completion_tokens=completion,
        created=0,
        logprobs=logprobs,
    )

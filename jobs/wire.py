"""The JSON of lines, in and out, as msgspec reads and writes it; each format as its shape and limits.

Owns spelling alone. What a line means, and which combinations are refused, is said in `jobs.dialogue`.
"""

from typing import Annotated, Any, Literal

import msgspec

MaxTokens = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
MinTokens = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
TopK = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
TopP = Annotated[float, msgspec.Meta(gt=0, le=1)]
MinP = Annotated[float, msgspec.Meta(ge=0, le=1)]
RepetitionPenalty = Annotated[float, msgspec.Meta(gt=0)]
#: OpenAI's limits of presence and frequency penalty.
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
StopString = Annotated[str, msgspec.Meta(min_length=1)]
StopStrings = Annotated[tuple[StopString, ...], msgspec.Meta(max_length=64)]
TokenIds = Annotated[
    tuple[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)], ...], msgspec.Meta(max_length=64)
]
TopLogprobs = Annotated[int, msgspec.Meta(ge=0, le=20)]
CustomId = Annotated[str, msgspec.Meta(max_length=512)]

#: A wish that was not made. Wishes stay text: built, 8 MiB of brackets would be 400 MiB of lists.
UNASKED = msgspec.Raw(b"null")


class Part(msgspec.Struct, frozen=True, gc=False):
    """OpenAI's content in parts; those that are no text are refused."""

    type: Literal["text"]
    text: str


class Message(msgspec.Struct, frozen=True, gc=False):
    """`developer` is OpenAI's newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[Part, ...]
    tool_calls: msgspec.Raw = UNASKED
    function_call: msgspec.Raw = UNASKED


class Body(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A chat completion request. The raw fields are those of `NEUTRAL`."""

    messages: tuple[Message, ...] | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    min_tokens: MinTokens | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: StopString | StopStrings | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    logprobs: bool | TopLogprobs | None = None
    top_logprobs: TopLogprobs | None = None
    n: msgspec.Raw = UNASKED
    best_of: msgspec.Raw = UNASKED
    stream: msgspec.Raw = UNASKED
    tools: msgspec.Raw = UNASKED
    functions: msgspec.Raw = UNASKED
    response_format: msgspec.Raw = UNASKED
    modalities: msgspec.Raw = UNASKED
    audio: msgspec.Raw = UNASKED
    web_search_options: msgspec.Raw = UNASKED
    structured_outputs: msgspec.Raw = UNASKED
    logit_bias: msgspec.Raw = UNASKED


class Line(Body, frozen=True, kw_only=True, gc=False):
    """The formats that are objects: a plain request, a prompt, or OpenAI's batch line around a body."""

    custom_id: CustomId | None = None
    prompt: str | None = None
    method: str | None = None
    url: str | None = None
    body: Body | None = None


#: Fields that would change an answer's meaning if they were ignored, and what asks for nothing beside null.
NEUTRAL: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("n", (1,)),
    ("best_of", (1,)),
    ("stream", (False,)),
    ("tools", ([],)),
    ("functions", ([],)),
    ("response_format", ({"type": "text"},)),
    ("modalities", (["text"],)),
    ("audio", ()),
    ("web_search_options", ()),
    ("structured_outputs", ()),
    ("logit_bias", ({},)),
)


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class Named(msgspec.Struct, frozen=True, gc=False):
    """Of a line that may be unusable otherwise, its `custom_id` alone."""

    custom_id: CustomId | None = None


class Answer(msgspec.Struct, frozen=True):
    """The assistant's turn."""

    role: str
    content: str


class Choice(msgspec.Struct, frozen=True):
    """The one answer of a completion."""

    index: int
    message: Answer
    logprobs: Any
    finish_reason: str


class Completion(msgspec.Struct, frozen=True):
    """OpenAI's chat.completion."""

    id: str
    object: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage


class Response(msgspec.Struct, frozen=True):
    """An HTTP response as OpenAI's batches report it."""

    status_code: int
    request_id: str
    body: Completion


class Failure(msgspec.Struct, frozen=True):
    """Why there is no response."""

    code: str
    message: str


class Output(msgspec.Struct, frozen=True):
    """One output line: a response or an error."""

    id: str
    custom_id: str | None
    response: Response | None
    error: Failure | None

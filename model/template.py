"""Chat templates as Jinja text, and their rendering in a sandbox.

Owns the formats that the family's checkpoints do not bring themselves, and what a checkpoint's own template
may use: the names and filters that transformers gives it, and nothing of Python beyond the sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model.errors import InvalidMessages, TokenizerError

#: InternLM2 and 2.5, from their tokenizer_config.json.
CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"
)

#: InternLM, from build_inputs of its last modelling code.
INTERNLM = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|System|>:' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|User|>:' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|Bot|>:' + message['content'] + '<eoa>\n' }}"
    "{% else %}{{ raise_exception('InternLM knows system, user and assistant only') }}{% endif %}"
    "{% endfor %}{{ '<|Bot|>:' }}"
)

#: InternLM's first chat models: questions end in <eoh>, and there is no system turn.
INTERNLM_EARLY = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|User|>:' + message['content'] + '<eoh>\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|Bot|>:' + message['content'] + '<eoa>\n' }}"
    "{% else %}{{ raise_exception('the early InternLM knows user and assistant only') }}{% endif %}"
    "{% endfor %}{{ '<|Bot|>:' }}"
)


class Template:
    """One template with a tokenizer's special tokens (bos_token and so on)."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], autoescape=False
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise TokenizerError(f"the checkpoint's chat template is damaged: {error}") from error
        self._special = {"bos_token": "", "eos_token": "", **special}

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Render up to the generation prompt. Raises InvalidMessages where the template refuses."""
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InvalidMessages(f"the chat template refuses these messages: {error}") from error


class _Generation(Extension):
    """`{% generation %}`: marks the assistant's words for training; here its body is printed."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, indent: int | None = None, *, ensure_ascii: bool = False, **options: Any) -> str:
    """Write JSON as transformers does: no HTML escapes."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)

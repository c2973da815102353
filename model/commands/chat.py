"""`model chat`: talk to a model, or have it answer what is given on the command line or in a file."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from model.commands import console
from model.commands.options import CheckpointArgument, EngineOptions, JsonOption, with_records
from model.commands.sampling import SamplingOptions
from model.config import EngineConfig
from model.dialogues import read_dialogues, user_message
from model.errors import InvalidParams

_MOST_AT_ONCE = EngineConfig(path=Path()).max_num_seqs


class TemplateName(StrEnum):
    """chat.BUILT_IN as choices."""

    CHATML = "chatml"
    INTERNLM = "internlm"
    INTERNLM_EARLY = "internlm-early"


@with_records
def chat(  # noqa: PLR0917 - typer passes them by name
    checkpoint: CheckpointArgument,
    engine: EngineOptions,
    sampling: SamplingOptions,
    input_text: Annotated[
        list[str] | None,
        typer.Option("--input-text", metavar="TEXT", help="Answer TEXT and end; repeatable."),
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option(
            metavar="JSONL",
            help='Answer each line and end: a list of {"role", "content"}, {"messages": …} or {"prompt": …}.',
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message of dialogues that have none.")
    ] = None,
    chat_template: Annotated[
        TemplateName | None, typer.Option(help="Instead of the checkpoint's own template.")
    ] = None,
    no_chat: Annotated[
        bool, typer.Option("--no-chat", help="Continue the text as it is: for base models.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Talk to a model.

    At a terminal the answer appears as it is generated: Ctrl-C ends the answer, /reset the dialogue, /exit or
    Ctrl-D the program. Lines from a pipe are one dialogue as well. With --input-text or --input-file all
    questions are answered at once, and printed in order; --json prints one object for each.
    """
    with console.errors(as_json):
        if no_chat and (system or chat_template):
            raise InvalidParams("--no-chat has neither a template nor a system message")
        dialogues = [user_message(text) for text in input_text or ()]
        dialogues += read_dialogues(input_file) if input_file else []
        params = sampling.params()
        # torch takes seconds to import: what is wrong with the arguments is said before.
        from model.commands.chat_batch import answer_all  # noqa: PLC0415
        from model.commands.chat_session import converse  # noqa: PLC0415
        from model.commands.talker import talker  # noqa: PLC0415

        # One who reads along waits for one answer at a time.
        config = engine.config(checkpoint, max_num_seqs=min(max(1, len(dialogues)), _MOST_AT_ONCE))
        template = None if chat_template is None else chat_template.value
        with talker(config, system=system, template=template, raw=no_chat) as talk:
            if dialogues:
                sys.exit(1 if answer_all(talk, dialogues, params, as_json=as_json) else 0)
            converse(talk, params, as_json=as_json)

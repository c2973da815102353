"""Logs: structlog, one line per event, as JSON or for a person at a terminal.

Owns the set-up and the names of the context every line carries (`group`, `job`, `shard`, `epoch`). Never logs
text of dialogues or secrets: callers pass ids, counts and error messages.
"""

import logging
import sys

import structlog

from jobs.settings import Settings


def set_up_logging(settings: Settings, **context: str) -> None:
    """Send structlog's and the libraries' events to standard error, as the settings say.

    `context` is on every line of this process, whichever thread writes it.
    """
    level = getattr(logging, settings.log_level.upper())

    def add_context(
        _logger: object, _name: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        return {**context, **event}

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_context,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    console = settings.log_format == "console"
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for chatty in ("celery", "kombu", "amqp"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))

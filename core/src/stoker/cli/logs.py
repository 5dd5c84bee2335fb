"""Logs: for people on a terminal, JSON lines otherwise."""

from __future__ import annotations

import logging
import sys

import structlog

from stoker.config import LogTable


def start_logging(table: LogTable) -> None:
    """Send everything that is logged to stderr, as `table` says."""
    as_text = table.format == "text" or (table.format == "auto" and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[table.level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=level, handlers=[_handler(shared, as_text=as_text)], force=True)


def _handler(shared: list[structlog.typing.Processor], *, as_text: bool) -> logging.Handler:
    renderers: list[structlog.typing.Processor]
    if as_text:
        renderers = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    else:
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    return handler

"""How a persistent worker fails."""

from __future__ import annotations

import signal
from pathlib import Path

from stoker.errors import Unavailable
from stoker.spi import Exit

LOG_TAIL_BYTES = 2000
"""How much of a worker's stderr an error quotes."""


class WorkerFailed(Unavailable):
    """A worker broke its protocol, or died; its process serves no further request.

    The action itself may be sound: it may be run again, by another worker or without one.
    """

    def __init__(
        self,
        worker: str,
        reason: str,
        *,
        answered: bool,
        excerpt: bytes = b"",
        exit: Exit | None = None,  # noqa: A002  # the word of spi.Process
        log_tail: str = "",
    ) -> None:
        self.worker = worker
        self.reason = reason
        self.answered = answered
        """Whether anything at all came in answer to the request that failed."""
        self.excerpt = excerpt
        """The first bytes of what it wrote to stdout, where that is to blame."""
        self.exit = exit
        """How its process ended, where that is to blame."""
        self.log_tail = log_tail
        """The end of what the process wrote to stderr."""
        tail = f"; its stderr ends with:\n{log_tail}" if log_tail else "; its stderr is empty"
        super().__init__(f"{worker} {reason}{tail}")


def read_log_tail(log: Path) -> str:
    """The end of a worker's log, as text; empty when there is none."""
    try:
        with log.open("rb") as file:
            size_bytes = file.seek(0, 2)
            file.seek(max(0, size_bytes - LOG_TAIL_BYTES))
            return file.read(LOG_TAIL_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def describe_exit(ended: Exit) -> str:
    """How a process ended, in words that go on after its name."""
    if ended.breach:
        return f"was ended: {ended.breach}"
    if ended.signal is None:
        return f"exited with status {ended.code}"
    try:
        name = signal.Signals(ended.signal).name
    except ValueError:
        name = "unknown"
    return f"was ended by signal {ended.signal} ({name})"

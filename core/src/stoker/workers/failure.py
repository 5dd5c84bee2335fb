"""How a persistent worker fails."""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

from stoker.errors import Unavailable
from stoker.spi import Exit

EXCERPT_BYTES = 1024
"""How much of a worker's stdout an error quotes."""


class FaultKind(enum.Enum):
    """What a worker's process did that it can be of no more use."""

    STOPPED = "stopped"
    """Nothing: the server ended it."""
    ABANDONED = "abandoned"
    """Nothing: its request was cancelled, and nobody may tell it so."""
    UNRECOVERED = "unrecovered"
    """It did not answer a cancel request in time."""
    AMBIGUOUS = "ambiguous"
    """It may yet answer a cancel request that it has not understood."""
    GARBAGE = "garbage"
    """What it wrote to stdout is no response, or one that is too large."""
    UNASKED = "unasked"
    """It wrote to stdout while nothing was asked."""
    UNKNOWN_ID = "unknown id"
    """It answered a request that there never was."""
    REPEATED_ID = "repeated id"
    """It answered a request again."""
    NOT_CANCELLED = "not cancelled"
    """It said of a request that it was cancelled, which it was not."""
    CLOSED_STDIN = "closed stdin"
    CLOSED_STDOUT = "closed stdout"
    LOG = "log"
    """Its log cannot be kept within its bound."""
    LOST = "lost"
    """Nobody can tell what has become of its process."""
    DIED = "died"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a worker's process can be of no more use."""

    kind: FaultKind
    reason: str
    """Words that go on after the worker's name."""
    excerpt: bytes = b""
    exit: Exit | None = None


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
        kind: FaultKind | None = None,
        excerpt: bytes = b"",
        exit: Exit | None = None,  # noqa: A002  # the word of spi.Process
        log_tail: str = "",
        unproven_protocol: str = "",
    ) -> None:
        self.worker = worker
        self.reason = reason
        self.answered = answered
        """Whether anything at all came in answer to the request that failed. Of bytes that belong
        to no request for certain, that is said of a request that was the only one in flight."""
        self.kind = kind
        """What its process did; None where it was not even asked."""
        self.excerpt = excerpt
        """The first bytes of what it wrote to stdout, where that is to blame."""
        self.exit = exit
        """How its process ended, where that is to blame."""
        self.log_tail = log_tail
        """The end of what the process wrote to stderr."""
        self.unproven_protocol = unproven_protocol
        """How it was spoken to, if it has answered nothing so far: perhaps it knows another."""
        hint = f" (it was spoken to in {unproven_protocol})" if unproven_protocol else ""
        tail = f"; its stderr ends with:\n{log_tail}" if log_tail else "; its stderr is empty"
        super().__init__(f"{worker} {reason}{hint}{tail}")


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

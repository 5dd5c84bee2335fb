"""Names of log streams on ByteStream (LOG-01).

``{instance/}logstreams/{id}`` reads a stream, and ``{instance/}logstreams/{id}/write/{token}``
writes it. Both id and token are random: knowing the name is the right to do so, and a reader's
name does not tell the writer's. No part of a name ever becomes a path (SEC-05).
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

_STREAMS, _WRITE = "logstreams", "write"
_OTHERS = frozenset({"blobs", "compressed-blobs", "uploads"})
"""With one of these, a name is that of a blob, whatever its instance or metadata are called."""

_SECRET_BYTES = 16


class StreamNames:
    """Under which names the output of a run can be read. Whoever keeps this keeps the streams."""

    __slots__ = ("__weakref__", "stderr", "stdout")

    def __init__(self, stdout: str, stderr: str) -> None:
        self.stdout = stdout
        self.stderr = stderr


class LogName(NamedTuple):
    """What a resource name says of a log stream."""

    instance_name: str
    stream: str
    """The name to read it by."""
    token: str | None
    """What gives the right to write to it; None in a name to read by."""


def parse_log_name(name: str) -> LogName | None:
    """What `name` says, or None where it does not name a log stream."""
    # Some clients put the slash after an empty instance name too.
    segments = name.removeprefix("/").split("/")
    token = None
    if len(segments) >= 4 and segments[-4] == _STREAMS and segments[-2] == _WRITE:
        token = segments.pop()
        segments.pop()
    if len(segments) < 2 or segments[-2] != _STREAMS or not _OTHERS.isdisjoint(segments):
        return None
    return LogName("/".join(segments[:-2]), "/".join(segments), token)


def new_names(instance_name: str) -> tuple[str, str]:
    """Two new names to read by, which cannot be guessed, nor told from each other."""
    digits = secrets.token_hex(2 * _SECRET_BYTES)
    prefix = f"{instance_name}/{_STREAMS}/" if instance_name else f"{_STREAMS}/"
    return prefix + digits[: 2 * _SECRET_BYTES], prefix + digits[2 * _SECRET_BYTES :]


def new_token() -> str:
    """A new right to write."""
    return secrets.token_hex(_SECRET_BYTES)


def write_name(stream: str, token: str) -> str:
    """The name to write `stream` by."""
    return f"{stream}/{_WRITE}/{token}"

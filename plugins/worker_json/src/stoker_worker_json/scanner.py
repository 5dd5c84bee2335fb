"""Finds where JSON objects begin and end in a stream that is cut anywhere.

Nothing ends an object but its closing brace: workers that write no newline are common, those
that print over several lines exist. Bytes of a multi-byte UTF-8 character are never ASCII, so that
looking for ASCII marks is right in any cut.
"""

from __future__ import annotations

import re

from stoker.spi import MalformedResponse

EXCERPT_BYTES = 1024
# Deeper than any response, and far from where the JSON parser runs out of stack.
MAX_DEPTH = 64
STDOUT_HINT = "the tool may print to stdout, which belongs to the protocol"

_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_MARK_OUTSIDE_STRING = re.compile(rb'["{}\[\]]')
_MARK_INSIDE_STRING = re.compile(rb'["\\]')


class ObjectScanner:
    """Cuts a stream of JSON objects into objects. Each byte is scanned once."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()
        self._start = 0  # of the object that is being received, or of the space before it
        self._position = 0  # up to which the buffer was scanned; ahead of it after a cut escape
        self._depth = 0  # of open braces and brackets; 0 between objects
        self._in_string = False

    def feed(self, data: bytes) -> list[bytes]:
        """The objects that `data` completes, unparsed.

        Raises MalformedResponse for anything but objects and space between them, for an object
        of more than the limit, and for one of absurd depth.
        """
        self._buffer += data
        objects = []
        while self._find_start() and self._find_end():
            objects.append(bytes(memoryview(self._buffer)[self._start : self._position]))
            self._start = self._position
        self._discard_scanned()
        return objects

    def end(self) -> None:
        """Raises MalformedResponse where an object is incomplete."""
        if self._depth:
            raise self._malformed(f"stdout ended {len(self._buffer)} bytes into a response")

    def _find_start(self) -> bool:
        if self._depth:
            return True
        found = _NOT_SPACE.search(self._buffer, self._start)
        self._start = self._position = len(self._buffer) if found is None else found.start()
        if found is None:
            return False
        if found[0] != b"{":
            raise self._malformed(f"text on stdout is no JSON object ({STDOUT_HINT})")
        return True

    def _find_end(self) -> bool:
        complete = self._scan()
        if self._position - self._start > self._limit_bytes:
            raise self._malformed(
                f"a response of more than {self._limit_bytes} bytes is not allowed ({STDOUT_HINT})"
            )
        return complete

    def _scan(self) -> bool:
        """Scan on to the end of the object, which is true, or to the end of the buffer."""
        pattern = _MARK_INSIDE_STRING if self._in_string else _MARK_OUTSIDE_STRING
        while (mark := pattern.search(self._buffer, self._position)) is not None:
            self._position = mark.end()
            self._pass_mark(mark[0])
            if self._depth == 0:
                return True
            pattern = _MARK_INSIDE_STRING if self._in_string else _MARK_OUTSIDE_STRING
        self._position = max(self._position, len(self._buffer))
        return False

    def _pass_mark(self, mark: bytes) -> None:
        if mark == b'"':
            self._in_string = not self._in_string
        elif mark == b"\\":
            self._position += 1  # whatever is escaped is part of the string
        elif mark in b"{[":
            self._open()
        else:
            self._depth -= 1

    def _open(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._malformed(f"a response is nested more than {MAX_DEPTH} deep")

    def _malformed(self, reason: str) -> MalformedResponse:
        excerpt = bytes(self._buffer[self._start : self._start + EXCERPT_BYTES])
        return MalformedResponse(reason, excerpt)

    def _discard_scanned(self) -> None:
        """Once a feed, as removing from the front for each of many objects would be quadratic."""
        del self._buffer[: self._start]
        self._position -= self._start
        self._start = 0

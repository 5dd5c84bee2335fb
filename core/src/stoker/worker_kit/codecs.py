"""The two forms of the worker protocol, from the worker's side: bytes to requests and back.

Without I/O. `Decoder.feed` takes what was read, cut anywhere.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class MalformedRequest(Exception):
    """What came on stdin is no request. Nothing that follows can be understood either."""


class WorkRequest(NamedTuple):
    """A request as it came."""

    arguments: list[str]
    inputs: dict[str, bytes]
    request_id: int
    cancel: bool
    verbosity: int
    sandbox_dir: str


class WorkResponse(NamedTuple):
    """The one answer to a request."""

    exit_code: int
    output: str
    request_id: int
    was_cancelled: bool


class Codec(Protocol):
    """One form of the protocol, for one process."""

    def feed(self, data: bytes) -> list[WorkRequest]:
        """The requests that `data` completes, in order. Raises MalformedRequest."""

    def end(self) -> None:
        """Stdin has ended. Raises MalformedRequest if that was inside of a request."""

    def encode(self, response: WorkResponse) -> bytes:
        """`response` as it is written to stdout."""


# --- protobuf: each message follows its length ----------------------------------------------------


class ProtoCodec:
    """The ``proto`` form."""

    def __init__(self) -> None:
        # Half of the time that importing the kit would take, and not needed for JSON.
        from stoker.protos import worker_protocol_pb2  # noqa: PLC0415

        self._messages = worker_protocol_pb2
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[WorkRequest]:
        """See `Codec`."""
        self._buffer += data
        requests = []
        start = 0
        while (frame := self._find_frame(start)) is not None:
            begin, end = frame
            requests.append(self._parse(bytes(self._buffer[begin:end])))
            start = end
        del self._buffer[:start]
        return requests

    def end(self) -> None:
        """See `Codec`."""
        _check_nothing_left(self._buffer)

    def encode(self, response: WorkResponse) -> bytes:
        """See `Codec`."""
        message: bytes = self._messages.WorkResponse(**response._asdict()).SerializeToString()
        return _varint(len(message)) + message

    def _find_frame(self, start: int) -> tuple[int, int] | None:
        """Where the message begins and ends whose length is at `start`; None if it is not whole."""
        length = 0
        for index, byte in enumerate(self._buffer[start : start + 5]):
            length |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                begin = start + index + 1
                return (begin, begin + length) if begin + length <= len(self._buffer) else None
        if len(self._buffer) - start >= 5:
            raise MalformedRequest(f"no length of a request: {bytes(self._buffer[start:][:20])!r}")
        return None

    def _parse(self, data: bytes) -> WorkRequest:
        from google.protobuf.message import DecodeError  # noqa: PLC0415 - as above

        try:
            message = self._messages.WorkRequest.FromString(data)
        except DecodeError as error:
            raise MalformedRequest(f"no WorkRequest message: {data[:80]!r}") from error
        return WorkRequest(
            arguments=list(message.arguments),
            inputs={entry.path: entry.digest for entry in message.inputs},
            request_id=message.request_id,
            cancel=message.cancel,
            verbosity=message.verbosity,
            sandbox_dir=message.sandbox_dir,
        )


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


# --- JSON: objects, with anything or nothing between them -----------------------------------------

_OUTSIDE_STRING = re.compile(rb'["{}\[\]]')
_INSIDE_STRING = re.compile(rb'["\\]')
_SPACE = b" \t\r\n"


class JsonCodec:
    """The ``json`` form. What ends an object is its brace: writers without a newline are common."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0  # up to which it was scanned, so that large requests are scanned once
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> list[WorkRequest]:
        """See `Codec`."""
        self._buffer += data
        requests = []
        while self._find_end():
            requests.append(_parse_object(bytes(self._buffer[: self._position])))
            del self._buffer[: self._position]
            self._position = 0
        return requests

    def end(self) -> None:
        """See `Codec`."""
        _check_nothing_left(self._buffer.strip(_SPACE))

    def encode(self, response: WorkResponse) -> bytes:
        """See `Codec`. A line, and only ASCII: that is what every reader takes."""
        fields = {
            "exitCode": response.exit_code,
            "output": response.output,
            "requestId": response.request_id,
            "wasCancelled": response.was_cancelled,
        }
        return json.dumps(fields).encode() + b"\n"

    def _find_end(self) -> bool:
        """Scan on to the end of an object, which is true, or of the buffer."""
        if self._depth == 0:
            self._check_start()
        while True:
            pattern = _INSIDE_STRING if self._in_string else _OUTSIDE_STRING
            mark = pattern.search(self._buffer, self._position)
            if mark is None:
                self._position = max(self._position, len(self._buffer))
                return False
            self._position = mark.end()
            self._pass_mark(mark[0])
            if self._depth == 0:
                return True

    def _check_start(self) -> None:
        begun = self._buffer.lstrip(_SPACE)
        if begun and not begun.startswith(b"{"):
            raise MalformedRequest(f"no JSON object: {bytes(begun[:80])!r}")

    def _pass_mark(self, mark: bytes) -> None:
        if mark == b'"':
            self._in_string = not self._in_string
        elif mark == b"\\":
            self._position += 1  # whatever is escaped belongs to the string
        else:
            self._depth += 1 if mark in b"{[" else -1


def _parse_object(text: bytes) -> WorkRequest:
    """Fields of their default value may be left out, and unknown ones are passed over."""
    try:
        fields = json.loads(text.decode("utf-8", "replace"), strict=False)
        return WorkRequest(
            arguments=[str(argument) for argument in _field(fields, "arguments") or ()],
            inputs={
                str(_field(entry, "path") or ""): _digest(_field(entry, "digest") or "")
                for entry in _field(fields, "inputs") or ()
            },
            request_id=int(_field(fields, "requestId") or 0),
            cancel=_field(fields, "cancel") is True,
            verbosity=int(_field(fields, "verbosity") or 0),
            sandbox_dir=str(_field(fields, "sandboxDir") or ""),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise MalformedRequest(f"an object is no work request: {error}: {text[:80]!r}") from error


def _field(fields: Mapping[str, Any], name: str) -> Any:
    """A field by the name that JSON has for it, or by the one of the message."""
    if name in fields:
        return fields[name]
    return fields.get(re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name))


def _digest(text: str) -> bytes:
    """Bytes are base64 in JSON. What is not is kept as it stands: it need only be comparable."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return text.encode("utf-8", "replace")


def _check_nothing_left(held: bytes | bytearray) -> None:
    if held:
        raise MalformedRequest(f"stdin ended inside of a request: {bytes(held[:80])!r}")


# --- which of them --------------------------------------------------------------------------------

# A request in protobuf may begin with the byte of a brace, too: it is then 123 bytes long. But what
# follows is the tag of a field and no key in quotes. After `{\n`, which can be the beginning of
# both, it takes the colon behind the key to tell: no argument of a tool looks like that.
_JSON_BEGINS = re.compile(rb'\{\s*"\w{1,64}"\s*:|\{\s?\}')
_JSON_MAY_BEGIN = re.compile(rb'\{\s*("(\w{0,64}("\s*)?)?)?')


class AutomaticCodec:
    """Whichever form the first request has."""

    def __init__(self) -> None:
        self._codec: Codec | None = None
        self._undecided = b""

    def feed(self, data: bytes) -> list[WorkRequest]:
        """See `Codec`."""
        if self._codec is None:
            self._undecided += data
            self._codec = _recognised(self._undecided)
            data = self._undecided
        return [] if self._codec is None else self._codec.feed(data)

    def end(self) -> None:
        """See `Codec`."""
        if self._codec is None:
            _check_nothing_left(self._undecided)
        else:
            self._codec.end()

    def encode(self, response: WorkResponse) -> bytes:
        """See `Codec`."""
        assert self._codec is not None, "a request came before its answer"
        return self._codec.encode(response)


def _recognised(first: bytes) -> Codec | None:
    """The form of what begins with `first`, or None where more is needed to tell."""
    if _JSON_BEGINS.match(first):
        return JsonCodec()
    return None if not first or _JSON_MAY_BEGIN.fullmatch(first) else ProtoCodec()


CODECS: Mapping[str, type[ProtoCodec | JsonCodec | AutomaticCodec]] = {
    "auto": AutomaticCodec,
    "proto": ProtoCodec,
    "json": JsonCodec,
}

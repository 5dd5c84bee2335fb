"""Bazel's persistent worker protocol on a pair of byte streams, in both of its encodings.

Field numbers and names are those of Bazel's `worker_protocol.proto`. Only the fields that
this compiler uses are read; all others are skipped.
"""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader, BufferedWriter


@dataclass
class WorkRequest:
    """What Bazel or a server asks for: one compilation."""

    arguments: list[str] = field(default_factory=list)
    input_paths: list[str] = field(default_factory=list)
    request_id: int = 0
    cancel: bool = False


@dataclass
class WorkResponse:
    """The answer: what a process would have exited with and written to stderr."""

    exit_code: int
    output: str
    request_id: int


class WorkerProtocol(Protocol):
    """Requests in, responses out; each stream has one user at a time."""

    def read_requests(self, stream: BufferedReader) -> Iterator[WorkRequest]:
        """Yield requests until the stream ends. Raises EOFError if it ends inside of one."""

    def write_response(self, stream: BufferedWriter, response: WorkResponse) -> None:
        """Write one response and flush it."""


class ProtoProtocol:
    """Protobuf messages, each after its length as a varint."""

    def read_requests(self, stream: BufferedReader) -> Iterator[WorkRequest]:
        while (length := _read_length(stream)) is not None:
            message = stream.read(length)
            if len(message) < length:
                raise EOFError(f"the input ended inside of a request of {length} bytes")
            yield _request_from_proto(message)

    def write_response(self, stream: BufferedWriter, response: WorkResponse) -> None:
        output = response.output.encode()
        message = b"".join(
            [
                _encode_varint(1 << 3 | _VARINT) + _encode_varint(response.exit_code),
                _encode_varint(2 << 3 | _LENGTH_DELIMITED) + _encode_varint(len(output)) + output,
                _encode_varint(3 << 3 | _VARINT) + _encode_varint(response.request_id),
            ]
        )
        stream.write(_encode_varint(len(message)) + message)
        stream.flush()


class JsonProtocol:
    """JSON objects; nothing between them can be relied upon, not even a newline."""

    def read_requests(self, stream: BufferedReader) -> Iterator[WorkRequest]:
        objects = json.JSONDecoder()
        pending = ""
        for text in _read_text(stream):
            pending = (pending + text).lstrip()
            while pending:
                try:
                    fields, end = objects.raw_decode(pending)
                except json.JSONDecodeError:
                    # Only more text can tell whether this is half of an object or none.
                    break
                pending = pending[end:].lstrip()
                yield _request_from_json(fields)
        if pending:
            raise EOFError(f"the input ended inside of a request: {pending[:200]!r}")

    def write_response(self, stream: BufferedWriter, response: WorkResponse) -> None:
        fields = {
            "exitCode": response.exit_code,
            "output": response.output,
            "requestId": response.request_id,
        }
        stream.write(json.dumps(fields).encode() + b"\n")
        stream.flush()


def _read_text(stream: BufferedReader) -> Iterator[str]:
    """Yield what has arrived, as soon as it does, and never half of a character."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    while chunk := stream.read1():
        yield decoder.decode(chunk)


def _request_from_json(fields: dict[str, Any]) -> WorkRequest:
    return WorkRequest(
        arguments=fields.get("arguments", []),
        input_paths=[given.get("path", "") for given in fields.get("inputs", [])],
        request_id=fields.get("requestId", 0),
        cancel=fields.get("cancel", False),
    )


def _request_from_proto(message: bytes) -> WorkRequest:
    request = WorkRequest()
    for number, value in _proto_fields(message):
        match number, value:
            case 1, bytes():
                request.arguments.append(value.decode())
            case 2, bytes():
                request.input_paths.append(_path_of_input(value))
            case 3, int():
                request.request_id = value
            case 4, int():
                request.cancel = bool(value)
    return request


def _path_of_input(message: bytes) -> str:
    for number, value in _proto_fields(message):
        if number == 1 and isinstance(value, bytes):
            return value.decode()
    return ""


# The wire types of protobuf that the messages of this protocol can have.
_VARINT = 0
_LENGTH_DELIMITED = 2


def _proto_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of every field, in the order of the message."""
    position = 0
    while position < len(message):
        key, position = _decode_varint(message, position)
        number, wire_type = key >> 3, key & 7
        value, position = _decode_varint(message, position)
        if wire_type == _VARINT:
            yield number, value
        elif wire_type == _LENGTH_DELIMITED:
            yield number, message[position : position + value]
            position += value
        else:
            raise ValueError(f"field {number} has wire type {wire_type}, unknown to WorkRequest")


def _read_length(stream: BufferedReader) -> int | None:
    """Return the varint at the stream's position, or None where the stream ends."""
    digits = b""
    while byte := stream.read(1):
        digits += byte
        if byte[0] < 0x80:
            return _decode_varint(digits, 0)[0]
    if digits:
        raise EOFError("the input ended inside of a request's length")
    return None


def _decode_varint(message: bytes, position: int) -> tuple[int, int]:
    """Return the varint that starts at `position`, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

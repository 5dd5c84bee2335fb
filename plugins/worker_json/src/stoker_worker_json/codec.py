"""Requests and responses as JSON objects: proto3-JSON, as its writers in the field vary it.

Fields of their default value are left out of requests, ``bytes`` become base64, and a newline
follows each request: some workers read by line, none is hurt by it.
"""

from __future__ import annotations

import json
from binascii import b2a_base64
from collections.abc import Mapping
from json.encoder import encode_basestring
from typing import Any

from stoker import spi
from stoker.protos.worker_protocol_pb2 import Input
from stoker_worker_json.scanner import EXCERPT_BYTES, STDOUT_HINT, ObjectScanner

# A worker that prints protobuf messages by their own field names is understood too: to pass over
# its exit_code as an unknown field would turn a failed action into a success.
_FIELDS = {
    "exitCode": "exit_code",
    "exit_code": "exit_code",
    "output": "output",
    "requestId": "request_id",
    "request_id": "request_id",
    "wasCancelled": "was_cancelled",
    "was_cancelled": "was_cancelled",
}
_FIELD_TYPES: Mapping[str, type] = {
    "exit_code": int,
    "output": str,
    "request_id": int,
    "was_cancelled": bool,
}


class JsonProtocol(spi.WorkerProtocol):
    """The ``json`` worker protocol."""

    def encode(self, request: spi.WorkRequest) -> bytes:
        """`request` on one line."""
        fields = {
            "arguments": _text(list(request.arguments)),
            "inputs": f"[{','.join(map(_input_text, request.inputs))}]",
            "requestId": _text(request.request_id),
            "cancel": _text(request.cancel),
            "verbosity": _text(request.verbosity),
            "sandboxDir": _text(request.sandbox_dir),
        }
        told = [f'"{name}":{text}' for name, text in fields.items() if text not in _DEFAULTS]
        return f"{{{','.join(told)}}}\n".encode()

    def decoder(self, limit_bytes: int) -> JsonDecoder:
        """A decoder that gives up on a response once more than `limit_bytes` of it are there."""
        return JsonDecoder(limit_bytes)


class JsonDecoder(spi.ResponseDecoder):
    """Reads responses that nothing but their braces delimits."""

    def __init__(self, limit_bytes: int) -> None:
        self._scanner = ObjectScanner(limit_bytes)

    def feed(self, data: bytes) -> list[spi.WorkResponse]:
        """The responses that `data` completes. Unknown fields are ignored, missing ones default."""
        return [_parse_response(text) for text in self._scanner.feed(data)]

    def end(self) -> None:
        """Raises MalformedResponse where an object is incomplete."""
        self._scanner.end()


_DEFAULTS = ("[]", "0", "false", '""')


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _input_text(entry: Input) -> str:
    """One of thousands, so that no object is made of it that becomes text right after."""
    path, digest = encode_basestring(entry.path), b2a_base64(entry.digest, newline=False).decode()
    if path == '""' or not digest:
        fields = {"path": entry.path, "digest": digest}
        return _text({name: value for name, value in fields.items() if value})
    return f'{{"path":{path},"digest":"{digest}"}}'


def _parse_response(text: bytes) -> spi.WorkResponse:
    try:
        # Not strict: some writers leave line breaks inside of strings as they are.
        pairs = json.loads(
            text.decode("utf-8", "replace"), strict=False, object_pairs_hook=_ObjectPairs
        )
        return spi.WorkResponse(**_response_fields(pairs))
    except (ValueError, TypeError) as error:
        raise spi.MalformedResponse(
            f"an object on stdout is no work response: {error} ({STDOUT_HINT})",
            text[:EXCERPT_BYTES],
        ) from error


class _ObjectPairs(tuple[tuple[str, object], ...]):
    """An object as it was written: a dict would hide that a field is there twice."""


def _response_fields(pairs: _ObjectPairs) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        field = _FIELDS.get(name)
        if field is None:
            continue
        if field in fields:
            raise ValueError(f"field {name!r} is there twice")
        fields[field] = None if value is None else _converted(name, value, _FIELD_TYPES[field])
    return fields


def _converted(name: str, value: object, expected: type) -> object:
    if expected is int and isinstance(value, str | float):
        value = _integer(value)
    # bool is an int in Python, but not in JSON.
    if type(value) is not expected:
        raise TypeError(f"field {name!r} is not of type {expected.__name__}")
    return _without_lone_surrogates(value) if isinstance(value, str) else value


def _integer(value: str | float) -> object:
    """proto3-JSON lets writers quote an integer, or write it as 1.0."""
    number = float(value)
    return int(number) if number.is_integer() else value


def _without_lone_surrogates(text: str) -> str:
    r"""JSON can write half of a surrogate pair, as ``\ud83d``, which UTF-8 cannot hold."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

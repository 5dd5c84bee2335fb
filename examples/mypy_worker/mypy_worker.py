"""mypy for build tools: one check and exit, or check after check as a persistent worker.

    python mypy_worker.py @PARAMS                                        one check
    python mypy_worker.py --persistent_worker [--worker_protocol=json]   a check for every request

PARAMS is a file of arguments, one a line, and a request of a worker holds the same arguments:
``--output FILE`` first, then whatever mypy takes: options, and the modules to check.

Exit code 0: mypy has checked, and FILE says what it found, be it nothing. 1: it could not check,
for the reason on stderr. So a module with mistakes is no failed action, and its report is cached.
"""

from __future__ import annotations

import argparse
import codecs
import gc
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from mypy import api

# A report must follow from what the action names: no settings from the user's home or from the
# folders above, no packages that happen to be installed beside mypy.
HERMETIC = ("--config-file=", "--no-site-packages", "--explicit-package-bases")
CHECKS_BETWEEN_COLLECTIONS = 8
NO_CACHE = ("--cache-dir", os.devnull)


class Outcome(NamedTuple):
    """How a check ended."""

    exit_code: int
    output: str
    """What the user is to read, apart from the report."""


def check(arguments: list[str], *, cache: tuple[str, ...] = NO_CACHE) -> Outcome:
    """Check as `arguments` say and write the report. `cache` are mypy's options about its cache."""
    match arguments:
        case ["--output", output, *rest] if rest:
            pass
        case _:
            return Outcome(1, "mypy_worker: wanted are: --output FILE, then arguments of mypy\n")
    report, problem, status = api.run([*HERMETIC, *cache, *rest])
    if status == 2 and problem:
        # 2 alone is a report, too: of a syntax error, for example.
        return Outcome(1, problem)
    Path(output).write_text(report, encoding="utf-8")
    return Outcome(0, "")


# --- the worker -----------------------------------------------------------------------------------


class WarmMypy:
    """What this process keeps between checks: mypy's code, and the library's types in a cache."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def check(self, arguments: list[str]) -> Outcome:
        """The outcome, and the report, of a process that starts from nothing. But sooner."""
        try:
            return check(arguments, cache=("--cache-dir", str(self._cache), "--no-sqlite-cache"))
        finally:
            self._forget_inputs()

    def _forget_inputs(self) -> None:
        """Keep in the cache only what comes with mypy.

        It knows a file again by size and time. But executors give all inputs the same time, so
        that the next input of the same path and size would be taken for this one.
        """
        inputs = {entry.name.partition(".")[0] for entry in Path().iterdir()}
        for cached in self._cache.glob("*/*"):
            if cached.name.partition(".")[0] in inputs:
                shutil.rmtree(cached) if cached.is_dir() else cached.unlink()


def serve(protocol: Protocol) -> None:
    """Answer requests on stdin by responses on stdout, one at a time, until stdin ends.

    Any exception ends the process: whoever started it will start another, which knows nothing.
    """
    requests, responses = _take_streams()
    with tempfile.TemporaryDirectory(prefix="mypy-cache-") as cache:
        mypy = WarmMypy(Path(cache))
        for number, request in enumerate(protocol.read_requests(requests), start=1):
            # What a cancel is about was answered before it was read, and it wants no answer.
            if not request.cancel:
                outcome = mypy.check(request.arguments)
                responses.write(protocol.encode_response(outcome, request.request_id))
                responses.flush()
            # mypy leaves cycles of several megabytes a check. To take them away lasts nearly as
            # long as a warm check, however many there are.
            if number % CHECKS_BETWEEN_COLLECTIONS == 0:
                gc.collect()


def _take_streams() -> tuple[io.BufferedReader, io.BufferedWriter]:
    """Stdin and stdout for the protocol alone: a stray print goes to stderr from here on."""
    requests, responses = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, responses


# --- the protocol ---------------------------------------------------------------------------------


class Request(NamedTuple):
    """What this tool needs of a WorkRequest."""

    arguments: list[str]
    request_id: int = 0
    cancel: bool = False


class Protocol(NamedTuple):
    """One of the two forms of the worker protocol."""

    read_requests: Callable[[io.BufferedReader], Iterator[Request]]
    encode_response: Callable[[Outcome, int], bytes]


def read_json(stream: io.BufferedReader) -> Iterator[Request]:
    """The requests of `stream`: objects with anything or nothing between them, cut anywhere."""
    decode_text = codecs.getincrementaldecoder("utf-8")().decode
    received = ""
    while True:
        received = received.lstrip()
        try:
            fields, end = json.JSONDecoder().raw_decode(received)
        except ValueError:
            chunk = stream.read1()
            if not chunk:
                break
            received += decode_text(chunk)
        else:
            received = received[end:]
            yield _request_of_object(fields)
    if received:
        raise EOFError(f"stdin ended inside of a request: {received[:100]!r}")


def _request_of_object(fields: dict[str, Any]) -> Request:
    """Fields of their default value may be left out."""
    return Request(
        fields.get("arguments", []), fields.get("requestId", 0), fields.get("cancel", False)
    )


def encode_json(outcome: Outcome, request_id: int) -> bytes:
    """A WorkResponse as a line."""
    fields = {"exitCode": outcome.exit_code, "output": outcome.output, "requestId": request_id}
    return json.dumps(fields).encode() + b"\n"


def read_proto(stream: io.BufferedReader) -> Iterator[Request]:
    """The requests of `stream`: each a message after its length."""
    while stream.peek(1):
        yield _request_of_message(_read_exactly(stream, _read_varint(stream)))


def encode_proto(outcome: Outcome, request_id: int) -> bytes:
    """A WorkResponse after its length. A key is the field's number and its wire type."""
    output = outcome.output.encode()
    message = _varint(1 << 3 | _VARINT) + _varint(outcome.exit_code)
    message += _varint(2 << 3 | _BYTES) + _varint(len(output)) + output
    message += _varint(3 << 3 | _VARINT) + _varint(request_id)
    return _varint(len(message)) + message


_VARINT, _BYTES = 0, 2


def _request_of_message(message: bytes) -> Request:
    arguments: list[str] = []
    numbers: dict[int, int] = {}
    stream = io.BytesIO(message)
    while stream.tell() < len(message):
        field, wire_type = divmod(_read_varint(stream), 8)
        value = _read_varint(stream)
        if wire_type == _VARINT:
            numbers[field] = value
        elif wire_type == _BYTES:
            content = _read_exactly(stream, value)
            if field == 1:
                arguments.append(content.decode())
        else:
            raise ValueError(f"field {field} of a request has wire type {wire_type}")
    return Request(arguments, numbers.get(3, 0), bool(numbers.get(4)))


def _read_varint(stream: IO[bytes]) -> int:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    value = shift = 0
    while True:
        byte = _read_exactly(stream, 1)[0]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError("stdin ended inside of a request")
    return content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


PROTOCOLS = {"proto": Protocol(read_proto, encode_proto), "json": Protocol(read_json, encode_json)}


# --- the command line -----------------------------------------------------------------------------


def main() -> None:
    """Serve or check, as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--persistent_worker", action="store_true")
    parser.add_argument("--worker_protocol", choices=PROTOCOLS, default="proto")
    parser.add_argument("params", metavar="@PARAMS", nargs="?", default="")
    options = parser.parse_args()
    if options.persistent_worker:
        serve(PROTOCOLS[options.worker_protocol])
        return
    if not options.params.startswith("@"):
        parser.error("wanted is @PARAMS or --persistent_worker")
    outcome = check(Path(options.params[1:]).read_text(encoding="utf-8").splitlines())
    print(outcome.output, end="", file=sys.stderr, flush=True)
    # As mypy's own command does: to take its objects apart lasts half as long as the check.
    os._exit(outcome.exit_code)


if __name__ == "__main__":
    main()

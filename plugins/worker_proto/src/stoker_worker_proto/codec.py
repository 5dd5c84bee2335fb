"""Length-delimited protobuf, as Bazel's ``parseDelimitedFrom`` and ``writeDelimitedTo``.

Nothing marks the beginning of a message, so that whatever else a worker prints is taken for a
length. What can be checked is: the varint, the limit, and that the bytes are a message.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from stoker import spi

# A 64-bit varint ends within ten bytes. Some writers pad, so shorter forms are not demanded.
MAX_VARINT_BYTES = 10
EXCERPT_BYTES = 1024
STDOUT_HINT = "the tool may print to stdout, which belongs to the protocol"


class ProtoProtocol(spi.WorkerProtocol):
    """The ``proto`` worker protocol."""

    def encode(self, request: spi.WorkRequest) -> bytes:
        """The length of `request`, then `request`."""
        return self.encode_with(request, ())

    def encode_with(self, request: spi.WorkRequest, inputs: Sequence[bytes]) -> bytes:
        """The same: messages that follow each other mean one with all their repeated fields."""
        message = (request.SerializeToString(), *inputs)
        return b"".join((encode_varint(sum(map(len, message))), *message))

    def decoder(self, limit_bytes: int) -> ProtoDecoder:
        """A decoder that refuses a longer response by its length, before buffering it."""
        return ProtoDecoder(limit_bytes)


class ProtoDecoder(spi.ResponseDecoder):
    """Cuts a stream into frames. Each byte is copied twice and looked at once."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()
        self._start = 0  # of the frame that is being received
        self._body: tuple[int, int] | None = None  # where its message begins and ends, once known

    def feed(self, data: bytes) -> list[spi.WorkResponse]:
        """The responses that `data` completes. A frame of no bytes is a response: success."""
        self._buffer += data
        responses = []
        while (response := self._next_response()) is not None:
            responses.append(response)
        self._discard_decoded()
        return responses

    def end(self) -> None:
        """Raises MalformedResponse where a frame is incomplete."""
        if not self._buffer:
            return
        held = len(self._buffer)
        expected = "its length is incomplete"
        if self._body is not None:
            expected = f"its length says {self._body[1] - self._body[0]} bytes"
        raise self._malformed(f"stdout ended {held} bytes into a response ({expected})")

    def _next_response(self) -> spi.WorkResponse | None:
        if self._body is None:
            self._body = self._read_length()
        if self._body is None or len(self._buffer) < self._body[1]:
            return None
        begin, end = self._body
        response = self._parse(bytes(memoryview(self._buffer)[begin:end]))
        self._start, self._body = end, None
        return response

    def _parse(self, message: bytes) -> spi.WorkResponse:
        try:
            return spi.WorkResponse.FromString(message)
        except DecodeError as error:
            raise self._malformed(
                f"{len(message)} bytes on stdout are no WorkResponse message ({STDOUT_HINT})"
            ) from error

    def _read_length(self) -> tuple[int, int] | None:
        """Where the frame's message begins and ends, or None while its length is incomplete."""
        length = 0
        for index, byte in enumerate(self._buffer[self._start : self._start + MAX_VARINT_BYTES]):
            length |= (byte & 0x7F) << (7 * index)
            if length > self._limit_bytes:
                raise self._too_large(length)
            if byte < 0x80:
                begin = self._start + index + 1
                return begin, begin + length
        if len(self._buffer) - self._start >= MAX_VARINT_BYTES:
            raise self._malformed(
                f"the length of a response takes more than {MAX_VARINT_BYTES} bytes ({STDOUT_HINT})"
            )
        return None

    def _too_large(self, length: int) -> spi.MalformedResponse:
        return self._malformed(
            f"a response of {length} bytes or more is announced where {self._limit_bytes} "
            f"are allowed ({STDOUT_HINT})"
        )

    def _malformed(self, reason: str) -> spi.MalformedResponse:
        excerpt = bytes(self._buffer[self._start : self._start + EXCERPT_BYTES])
        return spi.MalformedResponse(reason, excerpt)

    def _discard_decoded(self) -> None:
        """Once a feed, as removing from the front for each of many frames would be quadratic."""
        consumed = self._start
        del self._buffer[:consumed]
        self._start = 0
        if self._body is not None:
            self._body = (self._body[0] - consumed, self._body[1] - consumed)


def encode_varint(number: int) -> bytes:
    """`number`, not negative, as a base-128 varint."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)

"""What an engine sends of a command's two outputs on one connection. Sans-I/O."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

STDOUT: Final = 1
STDERR: Final = 2

_HEADER = struct.Struct(">BxxxI")


class Frame(NamedTuple):
    """Some bytes of one output."""

    stream: int
    data: bytes


class FrameDecoder:
    """Takes bytes cut anywhere, and gives what there is of each output at once.

    A frame may be given in several pieces: nothing waits for the rest of it.
    """

    def __init__(self) -> None:
        self._header = b""
        self._stream = 0
        self._missing = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The pieces that `data` holds, in order."""
        frames: list[Frame] = []
        position = 0
        while position < len(data):
            if not self._missing:
                position = self._read_header(data, position)
                continue
            piece = data[position : position + self._missing]
            self._missing -= len(piece)
            position += len(piece)
            frames.append(Frame(self._stream, piece))
        return frames

    @property
    def is_whole(self) -> bool:
        """Whether what has come so far ends where a frame ends."""
        return not self._header and not self._missing

    def _read_header(self, data: bytes, position: int) -> int:
        wanted = _HEADER.size - len(self._header)
        self._header += data[position : position + wanted]
        if len(self._header) == _HEADER.size:
            self._stream, self._missing = _HEADER.unpack(self._header)
            self._header = b""
        return position + wanted

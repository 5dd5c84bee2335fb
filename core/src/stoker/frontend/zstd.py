"""Zstandard, bounded: what a client sends can ask for no more memory than one piece and a window.

Source: RFC 8878; checks BUB-07…09, BSR-10…13, BSW-16.
"""

from __future__ import annotations

import sys

from stoker.errors import InvalidRequest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 1024 * 1024
"""What one step of decompression gives at the most, whatever it is fed."""

THREAD_BYTES = 64 * 1024
"""From this size of a blob on its (de)compression is worth a trip to a thread: at about 400 MB/s
it takes longer than the trip does."""

# RFC 8878 asks decoders for windows of 8 MiB and encoders not to need more, which the levels up to
# 19 do not. A window is memory that an upload of a few bytes can claim.
_WINDOW_LOG = 23
# Level 1 is as fast as the network of most; level 3 takes twice its time for a tenth of the size.
_LEVEL = 1
# A frame costs 30 µs however short it is. Real streams have one, or one a few MiB.
_FREE_FRAMES = 1_000
_MIN_FRAME_BYTES = 4_096


class Decompressor:
    """One stream of one or more frames that are together `size_bytes` long. No task, no I/O.

    Feed it a piece of the stream, read until it gives nothing, and so on; then `end`.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._frames_left = _FREE_FRAMES + size_bytes // _MIN_FRAME_BYTES
        self._given = 0
        self._fed: bytes | memoryview = b""
        self._frame: zstd.ZstdDecompressor | None = None

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next piece of the stream, once all of the last was read."""
        self._fed = data

    def read(self) -> bytes:
        """At most `PIECE_BYTES` of what was fed, decompressed; nothing when that is used up.

        Raises InvalidRequest for what is not zstd, or is more than `size_bytes`.
        """
        data = b""
        while not data and (frame := self._current_frame()):
            fed, self._fed = self._fed, b""
            # One byte more than there may be tells that there is more.
            room = min(PIECE_BYTES, self._size_bytes - self._given + 1)
            data = _decompress(frame, fed, room)
            if frame.eof:
                self._fed = frame.unused_data
        self._given += len(data)
        if self._given > self._size_bytes:
            raise InvalidRequest(
                f"the zstd stream decompresses to more than the {self._size_bytes} bytes announced"
            )
        return data

    def end(self) -> None:
        """Raise InvalidRequest unless the stream has ended with a whole frame."""
        if self._frame is not None and not self._frame.eof:
            raise InvalidRequest("the zstd stream ends inside of a frame")

    def _current_frame(self) -> zstd.ZstdDecompressor | None:
        """The frame that can go on, a new one where the last has ended, or None."""
        frame = self._frame
        if frame is not None and not frame.eof and not frame.needs_input:
            return frame
        if not self._fed:
            return None
        if frame is None or frame.eof:
            if not self._frames_left:
                raise InvalidRequest("the zstd stream has far too many frames for its size")
            self._frames_left -= 1
            frame = self._frame = zstd.ZstdDecompressor(
                options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
            )
        return frame


def decompress(data: bytes, size_bytes: int) -> bytes:
    """The blob of `size_bytes` in a whole zstd stream, which may be shorter than announced.

    Raises InvalidRequest.
    """
    stream = Decompressor(size_bytes)
    stream.feed(data)
    pieces = []
    while piece := stream.read():
        pieces.append(piece)
    stream.end()
    return b"".join(pieces)


class Compressor:
    """Makes frames of blobs, one after the other. For one thread at a time; reuse saves time."""

    def __init__(self) -> None:
        self._compressor = zstd.ZstdCompressor(level=_LEVEL)

    def begin(self, size_bytes: int) -> None:
        """Begin a frame, whose header tells decoders how much room its content takes."""
        self._compressor.set_pledged_input_size(size_bytes)

    def add(self, data: bytes) -> bytes:
        """Some more of the frame, after `data` of the blob: often nothing yet."""
        return self._compressor.compress(data)

    def finish(self) -> bytes:
        """The rest of the frame. A frame of nothing is not nothing (BSR-13)."""
        return self._compressor.flush()

    def compress(self, data: bytes) -> bytes:
        """A whole frame."""
        self.begin(len(data))
        return self._compressor.compress(data, zstd.ZstdCompressor.FLUSH_FRAME)


def _decompress(frame: zstd.ZstdDecompressor, data: bytes | memoryview, room: int) -> bytes:
    try:
        return frame.decompress(data, room)
    except zstd.ZstdError as error:
        raise InvalidRequest(f"the data is not a zstd stream: {error}") from error

"""zstd as clients make it, of other levels and forms than the server's own."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FRAME_OF_NOTHING = zstd.compress(b"")
SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"

decompress = zstd.decompress


def compress(data: bytes, level: int = 5, options: Mapping[int, int] | None = None) -> bytes:
    """One frame with a checksum."""
    parameters = zstd.CompressionParameter
    return zstd.compress(
        data,
        options={parameters.compression_level: level, parameters.checksum_flag: 1}
        | dict(options or {}),
    )


def with_window(data: bytes, window_log: int) -> bytes:
    """A frame, of a stream of unknown length, that asks for a window of 2**window_log bytes."""
    options: dict[int, int] = {zstd.CompressionParameter.window_log: window_log}
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(data) + compressor.flush()


def text(size_bytes: int) -> bytes:
    """Bytes that compress to about a third."""
    words = random.Random(size_bytes)
    return bytes(words.choices(b"a few letters", k=size_bytes))

"""Decompression in bounded steps: what is legal, what is refused, and how much it takes."""

from __future__ import annotations

import os

import pytest

from stoker.errors import InvalidRequest
from stoker.frontend.zstd import PIECE_BYTES, Compressor, Decompressor, decompress

from . import zstd_streams


def unpack(stream: bytes, size_bytes: int, piece: int) -> list[bytes]:
    """Feed `stream` in pieces; returns what each step gave."""
    decompressor = Decompressor(size_bytes)
    steps = []
    for start in range(0, len(stream), piece):
        decompressor.feed(memoryview(stream)[start : start + piece])
        while data := decompressor.read():
            steps.append(data)
    decompressor.end()
    return steps


@pytest.mark.parametrize("piece", [1, 7, 65_536, 1 << 30])
@pytest.mark.parametrize("level", [-5, 1, 3, 19])
def test_every_level_in_every_cut(level: int, piece: int) -> None:
    data = zstd_streams.text(100_000)
    assert b"".join(unpack(zstd_streams.compress(data, level), len(data), piece)) == data


@pytest.mark.parametrize("piece", [1, 10, 1 << 30])
def test_frames_follow_on_frames(piece: int) -> None:
    # BSW-16
    stream = b"".join(
        [
            zstd_streams.SKIPPABLE_FRAME,
            zstd_streams.compress(b"one "),
            zstd_streams.FRAME_OF_NOTHING,
            zstd_streams.compress(b"two"),
            zstd_streams.SKIPPABLE_FRAME,
        ]
    )
    assert b"".join(unpack(stream, 7, piece)) == b"one two"


def test_nothing_is_a_stream_of_nothing() -> None:
    assert unpack(b"", 0, 1) == []
    assert unpack(zstd_streams.FRAME_OF_NOTHING, 0, 1) == []
    assert decompress(b"", 0) == b""


@pytest.mark.parametrize("piece", [1, 1 << 30])
@pytest.mark.parametrize("garbage", [b"x", b"\0\0\0\0", b"garbage that is longer", b"\x28\xb5"])
def test_garbage_behind_a_frame(garbage: bytes, piece: int) -> None:
    # BUB-08
    with pytest.raises(InvalidRequest):
        unpack(zstd_streams.compress(b"data") + garbage, 4, piece)


def test_every_truncation() -> None:
    # BUB-08
    data = zstd_streams.text(500)
    stream = zstd_streams.compress(data)
    for length in range(1, len(stream)):
        with pytest.raises(InvalidRequest, match="inside of a frame"):
            unpack(stream[:length], len(data), 1 << 30)


def test_every_flipped_bit_is_told_or_harmless() -> None:
    data = os.urandom(40) * 3
    stream = zstd_streams.compress(data)
    for bit in range(len(stream) * 8):
        damaged = bytearray(stream)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            # A frame that lost its checksum's flag may pass for another: the digest sees to that.
            assert len(decompress(bytes(damaged), len(data))) <= len(data)
        except InvalidRequest:
            continue


def test_a_bomb_stops_one_byte_behind_its_size() -> None:
    # BUB-09
    bomb = zstd_streams.compress(bytes(64 << 20))
    assert len(bomb) < 10_000
    decompressor = Decompressor(3 * PIECE_BYTES)
    decompressor.feed(bomb)
    assert [len(decompressor.read()) for _ in range(3)] == [PIECE_BYTES] * 3
    with pytest.raises(InvalidRequest, match=f"more than the {3 * PIECE_BYTES} bytes"):
        decompressor.read()
    with pytest.raises(InvalidRequest, match="more than the 0 bytes"):
        decompress(bomb, 0)


def test_steps_are_bounded() -> None:
    # BUB-09: one small piece of input, many of output.
    size_bytes = 10 * PIECE_BYTES + 1
    steps = unpack(zstd_streams.compress(bytes(size_bytes)), size_bytes, 1 << 30)
    assert max(map(len, steps)) == PIECE_BYTES
    assert sum(map(len, steps)) == size_bytes


def test_windows_are_bounded() -> None:
    # RFC 8878 has encoders keep to 8 MiB.
    assert decompress(zstd_streams.with_window(b"data", 23), 4) == b"data"
    with pytest.raises(InvalidRequest):
        decompress(zstd_streams.with_window(b"data", 24), 4)


def test_frames_are_bounded_by_the_size() -> None:
    frames = 5_000
    with pytest.raises(InvalidRequest, match="too many frames"):
        decompress(zstd_streams.FRAME_OF_NOTHING * frames, 10)
    one = zstd_streams.compress(bytes(8_192))
    assert decompress(one * frames, 8_192 * frames) == bytes(8_192 * frames)


def test_a_compressor_makes_frame_after_frame() -> None:
    compressor = Compressor()
    for data in (b"", b"x", os.urandom(1_000), zstd_streams.text(300_000)):
        assert zstd_streams.decompress(compressor.compress(data)) == data
        compressor.begin(len(data))
        pieces = [compressor.add(data[start : start + 999]) for start in range(0, len(data), 999)]
        stream = b"".join([*pieces, compressor.finish()])
        assert stream, "a frame of nothing is not nothing"
        assert zstd_streams.decompress(stream) == data

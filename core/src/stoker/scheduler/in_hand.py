"""Which actions executors have at this moment, told to whoever starts after a kill.

A file in memory: what is written there outlives the process at once and costs no more than an
assignment. A row in a database would cost as much as all else of the journal, or be late for an
action that kills the server within the time of a batch.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from stoker.errors import StorageFull, Unavailable
from stoker.scheduler.losses import KEY_BYTES, Loss

_ENTRIES = 4096
"""More actions than these at once are not told of; they are run again uncounted."""
_EXECUTOR_BYTES = 80
_ENTRY = struct.Struct(f"<q{KEY_BYTES}s{_EXECUTOR_BYTES}sxxxxxxx?")
_MARK = _ENTRY.size - 1
_SIZE = _ENTRIES * _ENTRY.size


class Left(NamedTuple):
    """An action that an executor had when the server was killed."""

    key: bytes
    loss: Loss


class InHand:
    """The open file. Calls are synchronous and never fail."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._free = list(range(_ENTRIES))
        self.left = [*_entries(memory)]
        """What the server before this one was killed with."""

    def take(self, key: bytes, executor: str) -> int | None:
        """An executor is handed the action of this key. Returns what to call `let_go` with."""
        if not self._free:
            return None
        place = self._free.pop()
        start = place * _ENTRY.size
        name = executor.encode()[:_EXECUTOR_BYTES]
        entry = _ENTRY.pack(time.time_ns(), key, name, False)
        self._memory[start : start + _ENTRY.size] = entry
        # Last: a kill before this leaves no half of an entry.
        self._memory[start + _MARK] = 1
        return place

    def let_go(self, place: int | None) -> None:
        """The executor has it no longer."""
        if place is not None:
            self._memory[place * _ENTRY.size + _MARK] = 0
            self._free.append(place)

    def clear(self) -> None:
        """What was `left` is recorded elsewhere."""
        for place in range(_ENTRIES):
            self._memory[place * _ENTRY.size + _MARK] = 0


@contextmanager
def open_in_hand(path: Path) -> Iterator[InHand]:
    """The file `path`, made where there is none, for nobody else on the machine to read.

    Raises StorageFull where the disk is full, and Unavailable where it cannot be used.
    """
    try:
        memory = _mapped(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"the disk of {path} is full") from error
        raise Unavailable(f"{path} cannot be used: {error.strerror}") from error
    with closing(memory):
        yield InHand(memory)


def _mapped(path: Path) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Now, and not when a page is first written: that would be a signal, and no error.
        os.posix_fallocate(descriptor, 0, _SIZE)
        return mmap.mmap(descriptor, _SIZE)
    finally:
        os.close(descriptor)


def _entries(memory: mmap.mmap) -> Iterator[Left]:
    lost = time.time_ns()
    for began, key, name, marked in _ENTRY.iter_unpack(memory[:]):
        if marked:
            executor = name.rstrip(b"\0").decode(errors="replace")
            yield Left(key, Loss(began, lost, executor, with_server=True))

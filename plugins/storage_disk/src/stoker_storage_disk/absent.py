"""What a folder surely does not hold, told without a look at the disk.

A Bloom filter: every name that was ever there leaves four bits in a bitmap, so that a name of which
one is not set has never been there. Two bytes a name answer all but one in some hundred questions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

_BITS_A_NAME = 16
_PROBES = 4
_LEAST_NAMES = 2**16

# Half of a hash: each half places the probes.
_HALF_BITS = 32


class AbsentNames:
    """Which files are absent. To know nothing of a file is always right, and costs a look.

    It knows nothing until `renew` has been called. Safe in threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: _Bitmap | None = None
        self._next: _Bitmap | None = None

    def surely(self, name: str) -> bool:
        """Whether file `name` is absent for certain. Never waits."""
        known = self._known
        return known is not None and name not in known

    def note_present(self, name: str) -> None:
        """File `name` is there, and whoever renews would find it."""
        with self._lock:
            for bitmap in (self._known, self._next):
                if bitmap is not None:
                    bitmap.add(name)

    @property
    def is_due(self) -> bool:
        """Whether to renew: nothing is known, or so many names have come that little is."""
        return self._known is None or self._known.is_full

    def renew(self, count: int, names: Iterable[str], is_whole: Callable[[], bool]) -> None:
        """Begin anew with all `names`, about `count`, unless it turns out that they are not all.

        One thread calls it; it may take long, and others may note names meanwhile.
        """
        bitmap = _Bitmap(2 * count)
        with self._lock:
            self._next = bitmap
        try:
            for name in names:
                with self._lock:
                    bitmap.add(name)
        except BaseException:
            self._next = None
            raise
        with self._lock:
            self._next = None
            if is_whole():
                self._known = bitmap


class _Bitmap:
    """The bits that names have left."""

    def __init__(self, names: int) -> None:
        size = max(names, _LEAST_NAMES) * _BITS_A_NAME
        # A power of two, so that a mask does for the remainder.
        self._mask = (1 << (size - 1).bit_length()) - 1
        self._bytes = bytearray((self._mask + 1) // 8)
        self._room = (self._mask + 1) // _BITS_A_NAME

    @property
    def is_full(self) -> bool:
        return self._room <= 0

    def add(self, name: str) -> None:
        self._room -= 1
        for bit in self._bits(name):
            self._bytes[bit >> 3] |= 1 << (bit & 7)

    def __contains__(self, name: str) -> bool:
        return all(self._bytes[bit >> 3] >> (bit & 7) & 1 for bit in self._bits(name))

    def _bits(self, name: str) -> Iterator[int]:
        place = hash(name)
        step = place >> _HALF_BITS | 1
        for _ in range(_PROBES):
            yield place & self._mask
            place += step

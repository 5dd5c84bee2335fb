"""Digests that were seen lately: bounded in number and in life."""

from __future__ import annotations

from collections.abc import Callable

from stoker.spi import Digest


class DigestIndex:
    """Remembers up to `max_entries` digests for `seconds` by `clock`, the oldest giving way."""

    def __init__(self, max_entries: int, seconds: float, clock: Callable[[], float]) -> None:
        self._max_entries = max_entries
        self._seconds = seconds
        self._clock = clock
        # All live equally long, so that the order of insertion is that of expiry.
        self._expiry: dict[Digest, float] = {}

    def add(self, digest: Digest) -> None:
        """Remember `digest` from now on."""
        self._expiry.pop(digest, None)
        self._expiry[digest] = self._clock() + self._seconds
        if len(self._expiry) > self._max_entries:
            del self._expiry[next(iter(self._expiry))]

    def discard(self, digest: Digest) -> None:
        """Forget `digest`, if it is known."""
        self._expiry.pop(digest, None)

    def holds(self, digest: Digest) -> bool:
        """Whether `digest` was added within the time."""
        expiry = self._expiry.get(digest)
        if expiry is None:
            return False
        if expiry > self._clock():
            return True
        del self._expiry[digest]
        return False

    def __len__(self) -> int:
        return len(self._expiry)

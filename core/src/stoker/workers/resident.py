"""A worker as its pool knows it."""

from __future__ import annotations

from typing import Generic

import trio

from stoker.workers.making import FolderT
from stoker.workers.worker import Worker


class Resident(Generic[FolderT]):
    """A worker of a pool, with what the pool notes of it. Equal to itself alone."""

    def __init__(self, worker: Worker[FolderT], now: float) -> None:
        self.worker = worker
        self.made_at = now
        self.idle_since = now
        """When its last request was over."""
        self.invocation = ""
        """Which invocation of the build tool it has served last."""
        self.failure = ""
        """What a lease of it has met with last, where the worker was to blame."""
        self.recoveries = 0
        """How many requests were given up that it has not answered."""
        self.leases = 0
        """How many hold it; not those that gave a request up which it has not answered."""
        self._has_been_usable = False
        self._vacant: trio.Event | None = None

    @property
    def has_been_usable(self) -> bool:
        """Whether anybody has asked for its process yet."""
        self._has_been_usable = self._has_been_usable or self.worker.usable
        return self._has_been_usable

    @property
    def usable(self) -> bool:
        """Whether it may be given a request. One that is about to start may be shared already."""
        return self.worker.usable or not self.has_been_usable

    def lease(self, invocation: str) -> None:
        """Somebody holds it now, for an action of `invocation`."""
        self.leases += 1
        self.invocation = invocation

    def release(self) -> None:
        """One of them does no more."""
        self.leases -= 1
        if not self.leases and self._vacant is not None:
            self._vacant.set()

    async def wait_vacant(self) -> None:
        """Wait until nobody holds it. To be called when nobody can come to hold it any more."""
        if self.leases:
            self._vacant = trio.Event()
            await self._vacant.wait()

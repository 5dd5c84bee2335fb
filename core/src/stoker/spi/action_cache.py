"""A cache of action results."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from stoker.digest import Digest
from stoker.errors import Unsupported
from stoker.protos.remote_execution_pb2 import ActionResult


class ActionKey(NamedTuple):
    """What an action result is filed under: one namespace never sees another's results."""

    namespace: str
    """The instance name; any text, never to be used as a path as it stands."""
    action: Digest


class ActionCache(abc.ABC):
    """Action results. Calls may overlap freely, also on one key; the last update wins."""

    @abc.abstractmethod
    async def get(self, key: ActionKey) -> ActionResult | None:
        """The result filed under `key`, or None. Raises Unavailable."""

    @abc.abstractmethod
    async def update(self, key: ActionKey, result: ActionResult) -> None:
        """File `result` under `key`, in place of what was there.

        A cancelled or failed update leaves the old result or the new one, whole.
        Raises StorageFull or Unavailable.
        """

    async def peek(self, key: ActionKey) -> ActionResult | None:
        """As `get`, for those who look after the cache: it does not count as a use.

        By default it is `get`, for caches that forget nothing. Raises Unavailable.
        """
        return await self.get(key)

    def open_entries(self) -> AbstractAsyncContextManager[AsyncIterator[ActionKey]]:
        """The keys of all entries, in no order, for those who look after the cache.

        Entries that come and go meanwhile may be told or not. Raises Unsupported by default.
        """
        raise Unsupported("this kind of action cache cannot list its entries")

    async def remove(self, keys: Collection[ActionKey]) -> None:
        """Remove these entries; no error for absent ones. Raises Unsupported by default."""
        raise Unsupported(f"this kind of action cache cannot remove {len(keys)} entries")

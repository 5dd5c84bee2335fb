"""A blob on its way out of a store, or into it."""

from __future__ import annotations

import abc


class BlobReader(abc.ABC):
    """An open blob. One task reads at a time."""

    @abc.abstractmethod
    async def read(self, max_bytes: int) -> bytes:
        """The next bytes: at least one and at most `max_bytes`, or none at the end.

        A cancelled read may be repeated. Raises DataLoss or Unavailable.
        """


class BlobWriter(abc.ABC):
    """A blob on its way in. One task writes at a time."""

    @abc.abstractmethod
    async def write(self, data: bytes | memoryview) -> None:
        """Append `data`. After an exception, cancellation included, the writer is of no more use.

        Raises StorageFull or Unavailable.
        """


class BlobUpload(BlobWriter):
    """A blob on its way in that may be broken off and continued. One task uses it at a time."""

    offset: int = 0
    """How many bytes earlier calls have left here; writing goes on behind them."""

    @abc.abstractmethod
    async def read_kept(self, offset: int, max_bytes: int) -> bytes:
        """Bytes that earlier calls have left, from `offset` on, for hashing them once more.

        At least one and at most `max_bytes`, or none from the end on. Raises Unavailable.
        """

    @abc.abstractmethod
    async def restart(self) -> None:
        """Forget what earlier calls have left: writing begins at 0."""

"""Reading a blob in windows, so that a client that pauses keeps no connection waiting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from stoker.spi import BlobReader, StokerError, Unavailable

FIRST_WINDOW_BYTES = 1024 * 1024
# Large enough that the time to the first byte hardly counts.
WINDOW_BYTES = 8 * 1024 * 1024


class _Fetch:
    """One window on its way."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.data = memoryview(b"")
        self.failure: Exception | None = None


class WindowReader(BlobReader):
    """Bytes `position` to `end` by `fetch`, one window ahead of the reader; `first` is there.

    `fetch` runs in `nursery`, so that a read that is cancelled loses nothing.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        fetch: Callable[[int, int], Awaitable[memoryview]],
        first: memoryview,
        position: int,
        end: int,
    ) -> None:
        self._nursery = nursery
        self._fetch = fetch
        self._window = first
        self._next = position + len(first)
        self._end = end
        self._ahead: _Fetch | None = None

    async def read(self, max_bytes: int) -> bytes:
        if self._window:
            await trio.lowlevel.checkpoint()
        else:
            await self._turn_to_next_window()
        data = bytes(self._window[:max_bytes])
        self._window = self._window[max_bytes:]
        return data

    def close(self) -> None:
        """Give up what is on its way."""
        if self._ahead is not None:
            self._ahead.scope.cancel()

    async def _turn_to_next_window(self) -> None:
        fetch = self._start_fetch()
        if fetch is None:
            await trio.lowlevel.checkpoint()
            return
        await fetch.ended.wait()
        self._ahead = None
        if isinstance(fetch.failure, StokerError):
            raise fetch.failure
        if fetch.failure is not None:
            raise RuntimeError("reading a window failed") from fetch.failure
        if not fetch.data:
            # Not the end of the blob: who gave up the windows was not this reader.
            raise Unavailable("the store was closed while a blob was read")
        self._window = fetch.data
        self._next += len(fetch.data)
        self._start_fetch()

    def _start_fetch(self) -> _Fetch | None:
        """The fetch of the window after the current one, or None behind the last."""
        if self._ahead is None and self._next < self._end:
            self._ahead = _Fetch()
            window_end = min(self._next + WINDOW_BYTES, self._end)
            self._nursery.start_soon(self._run, self._ahead, self._next, window_end)
        return self._ahead

    async def _run(self, fetch: _Fetch, start: int, end: int) -> None:
        try:
            with fetch.scope:
                fetch.data = await self._fetch(start, end)
        except Exception as error:  # noqa: BLE001 - carried to the task that waits for the window
            fetch.failure = error
        finally:
            fetch.ended.set()

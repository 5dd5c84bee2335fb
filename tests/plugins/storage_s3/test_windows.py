"""Reading ahead in windows, where nobody is asked for bytes any more."""

from __future__ import annotations

import pytest
import trio

from stoker.spi import Unavailable
from stoker_storage_s3.reading import WindowReader


async def test_a_reader_that_outlives_its_store_is_told_so() -> None:
    # BSR-19: the end of the store is not the end of the blob.
    asked = trio.Event()

    async def fetch(start: int, end: int) -> memoryview:
        del start, end
        asked.set()
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def read(reader: WindowReader) -> None:
        assert await reader.read(10) == b"first"
        with pytest.raises(Unavailable, match="closed"):
            await reader.read(10)

    async with trio.open_nursery() as readers, trio.open_nursery() as store:
        readers.start_soon(read, WindowReader(store, fetch, memoryview(b"first"), 0, 100))
        await asked.wait()
        store.cancel_scope.cancel()

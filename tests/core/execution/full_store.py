"""Store outputs on the small file system at the path given by actions, until it is full.

A program. The outputs lie in the other folder that is given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from stoker.digest import SHA256
from stoker.errors import StorageFull

from .test_giving_outputs import collect, open_disk

FOLDER, ROOT = Path(sys.argv[1]), Path(sys.argv[2])


async def main() -> None:
    for name in ("f", "g"):
        (ROOT / name).write_bytes(bytes(60_000_000) + name.encode())
    (ROOT / "h").write_bytes(b"it fits")
    async with open_disk(FOLDER) as store:
        for gives_files in (True, False):
            with pytest.raises(StorageFull):
                await collect(store, ROOT, "f", "g", gives_files=gives_files)
            assert list((FOLDER / "store" / "incoming").iterdir()) == []
            assert list((FOLDER / "store").glob("sha256/*/*")) == []
        await collect(store, ROOT, "h")
        assert not await store.find_missing([SHA256.digest(b"it fits")])
    print("all is well")


trio.run(main)

"""Opens the disk store in a folder, asks it for one blob, and prints what that took.

The output is one line: seconds from before the opening until the answer, and the most bytes of
memory that the process ever had resident, the interpreter and all modules among them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import trio

from stoker.digest import SHA256
from stoker.spi import Context
from stoker_storage_disk import DiskSettings, stoker_blob_stores


async def _answer(folder: str, hash_: str, size_bytes: int) -> float:
    # With a bound, as only then the size of all that is stored matters.
    settings = DiskSettings(path=folder, max_bytes=2**50)
    digest = SHA256.named(hash_, size_bytes)
    start = time.perf_counter()
    async with stoker_blob_stores()["disk"].open(settings, Context("main", Path(folder), {})) as it:
        assert await it.find_missing([digest]) == set()
        return time.perf_counter() - start


def _most_resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not tell how much memory was resident")


if __name__ == "__main__":
    seconds = trio.run(_answer, sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print(seconds, _most_resident_bytes())

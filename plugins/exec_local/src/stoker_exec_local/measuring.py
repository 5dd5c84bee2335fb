"""How much memory a process uses now, with all that came of it.

Call these functions in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stoker_exec_local.launcher import cgroups, messages
from stoker_exec_local.launcher.descendants import descendants

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KIBIBYTE = 1024


def memory_in_use(source: Sequence[Any]) -> int | None:
    """What `messages.STARTED` said where to read, in bytes; None if there is nothing any more."""
    kind, *place = source
    if kind == messages.GROUP_MEMORY:
        return _charged_bytes(*place)
    return _sum_of(
        cgroups.members(*place) if kind == messages.GROUP_MEMBERS else descendants(*place)
    )


def _charged_bytes(version: int, path: str) -> int | None:
    """Without the page cache, which the system takes back when it needs to."""
    usage_bytes = cgroups.read_number(
        path, "memory.current" if version == 2 else "memory.usage_in_bytes"
    )
    if usage_bytes is None:
        return None
    prefix = "" if version == 2 else "total_"
    text = cgroups.read(path, "memory.stat").split()
    numbers = dict(zip(text[::2], text[1::2], strict=False))
    lists = ("inactive_file", "active_file")
    cached_bytes = sum(int(numbers.get(prefix + name, 0)) for name in lists)
    # The two were not read at the same moment.
    return max(0, usage_bytes - cached_bytes)


def _sum_of(pids: Sequence[int]) -> int | None:
    found = [size for pid in pids if (size := _process_bytes(pid)) is not None]
    return sum(found) if found else None


def _process_bytes(pid: int) -> int | None:
    """Its share of what it shares, where that can be read; else all that it has in memory."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * _KIBIBYTE
    except OSError:
        pass  # another user's, or gone: the next file tells
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return None

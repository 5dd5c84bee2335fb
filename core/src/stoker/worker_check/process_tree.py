"""Ending all that a program has started, also what tried to leave it.

For a process that has no other children: what is orphaned becomes its child, and all its
descendants are ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

import trio

_PR_SET_CHILD_SUBREAPER = 36
_PAUSE_SECONDS = 0.01


def adopt_orphans() -> None:
    """Become the parent of every descendant whose parent ends, in place of init."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


async def kill_descendants() -> None:
    """Return once no descendant lives. What cannot be killed, such as a program of another
    user, is left after a while; cancellation leaves this early."""
    with trio.move_on_after(5):
        while living := _living_descendants(os.getpid()):
            for pid in living:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            await trio.sleep(_PAUSE_SECONDS)


def _living_descendants(ancestor: int) -> list[int]:
    children: dict[int, list[int]] = {}
    dead = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (facts := _state_and_parent(folder)):
            children.setdefault(facts[1], []).append(int(folder.name))
            if facts[0] in "ZX":
                dead.add(int(folder.name))
    found, unvisited = [], [ancestor]
    while unvisited:
        offspring = children.get(unvisited.pop(), [])
        found += offspring
        unvisited += offspring
    return [pid for pid in found if pid not in dead]


def _state_and_parent(folder: Path) -> tuple[str, int] | None:
    try:
        text = (folder / "stat").read_text(errors="replace")
    except OSError:
        return None
    state, parent = text.rpartition(")")[2].split()[:2]  # the name may hold anything
    return state, int(parent)

"""What a server holds on to, as the kernel tells: to be compared before and after."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """The processes below `pid`, ended ones that nobody has asked about among them."""
    by_parent: dict[int, list[int]] = {}
    for other in _pids():
        with suppress(OSError, IndexError):
            # The name in parentheses may hold anything.
            fields = Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()
            by_parent.setdefault(int(fields[1]), []).append(other)
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = by_parent.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def children(pid: int) -> set[int]:
    """Those of which `pid` is the parent: a server's launchers."""
    text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return set(map(int, text.split()))


def command_lines(pids: Iterable[int]) -> dict[int, str]:
    """What the processes are; those that have ended are empty."""
    found = dict.fromkeys(pids, "")
    for pid in found:
        with suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return found


def marked(mark: str) -> dict[int, str]:
    """The processes that have `mark` in their environment, with their command lines."""
    found: dict[int, str] = {}
    for pid in _pids():
        with suppress(OSError):
            if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found |= command_lines([pid])
    return found


def _pids() -> Iterable[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 -- names are all it needs


def mountinfo(pid: int | str = "self") -> set[str]:
    """The mounts that a process sees."""
    return set(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())


def descriptors(pid: int) -> list[str]:
    """What each open descriptor of a process is, without numbers that differ each time."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(str(entry.readlink()).split(":[")[0])
    return sorted(found)


def groups(pid: int) -> list[str]:
    """The control groups that a server made for single processes, and those of its launchers."""
    found = []
    for folder, folders, _ in os.walk("/sys/fs/cgroup"):
        for name in folders:
            if name.startswith("stoker-") and name.split("-")[2:3] == [str(pid)]:
                path = f"{folder}/{name}"
                found.append(path)
                found += [entry.path for entry in os.scandir(path) if entry.is_dir()]
    return sorted(found)


def wait_ended(pids: Iterable[int], seconds: float) -> set[int]:
    """Wait until none of `pids` lives. Returns those that do after so many seconds."""
    alive = set()
    for pid in pids:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                if not select.select([descriptor], [], [], seconds)[0]:
                    alive.add(pid)
            finally:
                os.close(descriptor)
    return alive

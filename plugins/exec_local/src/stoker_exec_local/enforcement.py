"""What those who run the server are told of limits and process trees."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stoker import spi
from stoker_exec_local.estate import Land

_UNPROTECTED_LINKS = (
    "degraded: fs.protected_hardlinks is 0, so processes may link to files that they cannot read, "
    "and leave such a link as an output that is stored with the file's content; set it to 1"
)


def enforcement(
    land: Land | None,
    problems: Sequence[str],
    user: spi.ProcessUser | None,
    max_memory_bytes: int | None,
    protected_hardlinks: Path = Path("/proc/sys/fs/protected_hardlinks"),
) -> list[str]:
    """Sentences for `ExecutionStrategy.enforcement`."""
    controllers = land.controllers if land is not None else frozenset()
    is_root = user is None and os.geteuid() == 0
    return [
        _user(user),
        *_links(user, protected_hardlinks),
        _trees(land, problems),
        _memory(controllers),
        _all_memory(controllers, max_memory_bytes),
        _processes(controllers, is_root=is_root),
        _cpus(controllers),
    ]


def _user(user: spi.ProcessUser | None) -> str:
    if user is None:
        return "processes run as the server's own user, and reach what it reaches"
    return f"processes run as uid {user.uid}, gid {user.gid}"


def _links(user: spi.ProcessUser | None, protected_hardlinks: Path) -> list[str]:
    if user is None or _is_set(protected_hardlinks):
        return []
    return [_UNPROTECTED_LINKS]


def _is_set(setting: Path) -> bool:
    try:
        return setting.read_text().strip() != "0"
    except OSError:
        return False


def _trees(land: Land | None, problems: Sequence[str]) -> str:
    if land is not None:
        versions = sorted({place.version for place in land.places})
        text = " and ".join(f"version {version}" for version in versions)
        return f"process trees are ended by control groups ({text})"
    reasons = f" ({'; '.join(problems)})" if problems else ""
    return f"process trees are ended by a supervisor for each, without control groups{reasons}"


def _memory(controllers: frozenset[str]) -> str:
    if "memory" in controllers:
        return "memory limits are enforced by control groups"
    return (
        "degraded: memory limits bound the data of each process on its own (RLIMIT_DATA), "
        "as there is no memory control group; a breach is not told from other failures"
    )


def _all_memory(controllers: frozenset[str], max_memory_bytes: int | None) -> str:
    if "memory" in controllers and max_memory_bytes is not None:
        return f"all processes together may use {max_memory_bytes} bytes of memory"
    return "degraded: the memory of all processes together is not bounded (no memory control group)"


def _processes(controllers: frozenset[str], *, is_root: bool) -> str:
    if "pids" in controllers:
        return "limits of processes are enforced by control groups"
    if is_root:
        return "degraded: limits of processes are not enforced (no pids control group, for root)"
    return (
        "degraded: limits of processes bound those of the whole user (RLIMIT_NPROC), "
        "as there is no pids control group"
    )


def _cpus(controllers: frozenset[str]) -> str:
    if "cpu" in controllers:
        return "limits of processors are enforced by control groups"
    return "degraded: limits of processors are not enforced (no cpu control group)"

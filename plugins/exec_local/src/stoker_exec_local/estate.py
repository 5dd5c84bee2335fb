"""The control groups of one launcher: made, bounded, and removed whatever happened to it.

The folders are named for their owner, ``stoker-NAMESPACE-PID-START-NUMBER``: the server's
process namespace, number and start time tell whether it lives still, so that what killed servers
left can be told from what others use. Call these functions in a thread.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stoker_exec_local.hierarchies import CONTROLLERS, Place
from stoker_exec_local.launcher import cgroups
from stoker_exec_local.launcher.descendants import start_time
from stoker_exec_local.launcher.group import Estate, Hierarchy, limit_memory

_GONE_WITHIN_SECONDS = 10.0
_PAUSE_SECONDS = 0.002
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Land:
    """Where control groups can be made."""

    places: tuple[Place, ...]
    """Writable ones, each with those controllers that work in groups below it."""

    @property
    def controllers(self) -> frozenset[str]:
        """All that work somewhere."""
        return frozenset().union(*(place.controllers for place in self.places))


def with_homes(land: Land, own: Iterable[Place]) -> Land:
    """The land as a server knows it whose own groups are `own`."""
    homes = {place.hierarchy: place.path for place in own}
    return Land(tuple(replace(place, home=homes.get(place.hierarchy)) for place in land.places))


def prepare(places: Iterable[Place]) -> tuple[Land, list[str]]:
    """Find out which places can be used, and why others cannot, in sentences."""
    usable: list[Place] = []
    problems: list[str] = []
    for place in places:
        try:
            usable.append(_prepared(place))
        except OSError as error:
            problems.append(f"{place.path}: {error.strerror}")
    return Land(tuple(usable)), problems


def _prepared(place: Place) -> Place:
    """Make sure that groups can be made there, and that controllers reach them."""
    for path in _leftovers(place.path):
        remove(path)
    if place.version == 2 and place.controllers:
        place = _delegating(place)
    trial = place.path / _new_name()
    trial.mkdir()
    trial.rmdir()
    return place


def _delegating(place: Place) -> Place:
    """Have version 2 pass the controllers on, which it does not from a group with processes."""
    if not _delegate(place) and _is_ours_alone(place.path):
        leaf = place.path / "stoker-server"
        leaf.mkdir(exist_ok=True)
        for pid in cgroups.members(str(place.path)):
            cgroups.try_write(str(leaf), "cgroup.procs", str(pid))
        _delegate(place)
    passed_on = frozenset(cgroups.read(str(place.path), "cgroup.subtree_control").split())
    return Place(2, place.path, place.controllers & passed_on)


def _delegate(place: Place) -> bool:
    failures = [
        name
        for name in CONTROLLERS
        if name in place.controllers
        and not cgroups.try_write(str(place.path), "cgroup.subtree_control", f"+{name}")
    ]
    return not failures


def _is_ours_alone(path: Path) -> bool:
    return cgroups.read(str(path), "cgroup.procs").split() == [str(os.getpid())]


def establish(land: Land, max_memory_bytes: int | None) -> Estate:
    """Make the folders for one launcher, bounded together. Raises OSError."""
    name = _new_name()
    ending = _place_of_end(land.places)
    hierarchies = []
    for place in land.places:
        path = place.path / name
        hierarchies.append(
            Hierarchy(
                place.version,
                str(path),
                tuple(place.controllers),
                place is ending,
                str(place.home or ""),
            )
        )
    estate = Estate(hierarchies, max_memory_bytes if "memory" in land.controllers else None)
    try:
        for hierarchy in hierarchies:
            _establish(hierarchy, estate.max_memory_bytes)
    except BaseException:
        estate.remove()
        raise
    return estate


def _establish(hierarchy: Hierarchy, max_memory_bytes: int | None) -> None:
    Path(hierarchy.path).mkdir()
    if max_memory_bytes is not None and "memory" in hierarchy.controllers:
        limit_memory(hierarchy.version, hierarchy.path, max_memory_bytes)
    if hierarchy.version == 2:
        for name in hierarchy.controllers:
            cgroups.write(hierarchy.path, "cgroup.subtree_control", f"+{name}")


def _place_of_end(places: Sequence[Place]) -> Place:
    """Where process trees are found: version 2 kills them at once, ``pids`` can hold them still."""
    return min(places, key=lambda place: (place.version != 2, "pids" not in place.controllers))


def remove(path: Path) -> bool:
    """Kill what is in a group and below, and remove it. Returns whether it is gone in time."""
    deadline = time.monotonic() + _GONE_WITHIN_SECONDS
    while not cgroups.remove(str(path)):
        cgroups.kill(str(path))
        for child in cgroups.children(str(path)):
            cgroups.kill(child)
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_SECONDS)
    return True


def dissolve(estate: Estate) -> bool:
    """Remove an estate whose launcher is gone, with all that it left."""
    # First where processes are found and cannot escape.
    order = sorted(estate.hierarchies, key=lambda hierarchy: not hierarchy.ends_processes)
    left = [hierarchy for hierarchy in order if not remove(Path(hierarchy.path))]
    return not left


def _new_name() -> str:
    return f"{_prefix()}{os.getpid()}-{start_time(os.getpid())}-{next(_numbers)}"


def _prefix() -> str:
    """The same for all whose process numbers mean the same."""
    return f"stoker-{os.stat('/proc/self/ns/pid').st_ino}-"  # noqa: PTH116


def _leftovers(parent: Path) -> list[Path]:
    return [path for path in parent.glob(f"{_prefix()}*") if not _is_owned(path.name)]


def _is_owned(name: str) -> bool:
    """Whether the server that a folder is named for lives. What is not so named is not ours."""
    numbers = name.removeprefix(_prefix()).split("-")
    if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
        return True
    return start_time(int(numbers[0])) == int(numbers[1])

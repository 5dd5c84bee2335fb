"""Which control group hierarchies there are, and where this process is in them.

Read from the two files of /proc that tell it; nothing is tried or changed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CONTROLLERS = ("cpu", "memory", "pids")
"""Those that limits need."""


@dataclass(frozen=True, slots=True)
class Place:
    """The group of this process in one mounted hierarchy."""

    version: int
    path: Path
    """Its folder."""
    controllers: frozenset[str]
    """Of version 1: those of the hierarchy, among CONTROLLERS. Of version 2: those available."""
    home: Path | None = None
    """The group in this hierarchy that the server is in, once that is known."""

    @property
    def hierarchy(self) -> tuple[int, frozenset[str]]:
        """The same for all places of one hierarchy."""
        return self.version, frozenset() if self.version == 2 else self.controllers


def find_places(
    memberships: str, mounts: str, group: str | None = None, *, below: Path = Path("/")
) -> list[Place]:
    """The places that ``/proc/self/cgroup`` and ``/proc/self/mountinfo`` tell of.

    With `group` the places are those of the group of that name instead. `below` is where the
    paths of the mounts begin. Hierarchies without use to limits or to process trees are left out.
    """
    groups = dict(_memberships(memberships))
    places = []
    for version, names, root, point in _mounts(mounts):
        name = groups.get(_key(version, names))
        if name is None:
            continue
        path = below / point.lstrip("/") / os.path.relpath(group or name, root)
        if ".." not in Path(os.path.relpath(group or name, root)).parts:
            places.append(Place(version, path, _controllers(version, names, path)))
    return [place for place in places if place.version == 2 or place.controllers]


def _memberships(text: str) -> Iterator[tuple[frozenset[str], str]]:
    """From lines such as ``4:memory:/a`` and, for version 2, ``0::/b``."""
    for line in text.splitlines():
        _, names, group = line.split(":", 2)
        yield frozenset(filter(None, names.split(","))), group


def _mounts(text: str) -> Iterator[tuple[int, frozenset[str], str, str]]:
    """Version, names of controllers, mounted group and mount point of each mounted hierarchy."""
    seen = set()
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = (*after.split(" ", 2), "", "", "")[:3]
        if kind not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind == "cgroup2" else 1
        names = frozenset(options.split(",")) if version == 1 else frozenset()
        _, _, _, root, point, *_ = before.split(" ")
        if (version, names) not in seen:
            seen.add((version, names))
            yield version, names, _unescaped(root), _unescaped(point)


def _key(version: int, options: frozenset[str]) -> frozenset[str]:
    """How /proc/self/cgroup names a hierarchy of version 1 with one of our controllers."""
    if version == 2:
        return frozenset()
    # What else the options hold is no controller.
    return options - {"rw", "ro", "xattr", "clone_children", "noprefix", "favordynmods"}


def _controllers(version: int, names: frozenset[str], path: Path) -> frozenset[str]:
    if version == 1:
        return names & set(CONTROLLERS)
    try:
        return frozenset((path / "cgroup.controllers").read_text().split()) & set(CONTROLLERS)
    except OSError:
        return frozenset()


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)

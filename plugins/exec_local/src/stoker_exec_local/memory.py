"""How much memory all processes together may use."""

from __future__ import annotations

import os
from collections.abc import Iterable

from stoker_exec_local.hierarchies import Place
from stoker_exec_local.launcher import cgroups

_SMALLEST_RESERVE_BYTES = 1024**3


def default_max_memory_bytes(places: Iterable[Place]) -> int:
    """What there is, less a reserve for the server and the system: a tenth, or 1 GiB."""
    available = min([_physical_bytes(), *map(_bound_bytes, places)])
    reserve = max(_SMALLEST_RESERVE_BYTES, available // 10)
    # Of a very small machine, half.
    return max(available - reserve, available // 2)


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _bound_bytes(place: Place) -> int:
    """What the control group of a place, or one above it, allows."""
    if "memory" not in place.controllers:
        return _physical_bytes()
    if place.version == 1:
        bound = cgroups.read_entry(str(place.path), "memory.stat", "hierarchical_memory_limit")
        return bound or _physical_bytes()
    folders = [place.path, *place.path.parents]
    bounds = [cgroups.read_number(str(folder), "memory.max") for folder in folders]
    return min([bound for bound in bounds if bound is not None], default=_physical_bytes())

"""What this package offers to stoker: its settings, and how to open it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import trio

from stoker import spi
from stoker_exec_local.enforcement import enforcement
from stoker_exec_local.estate import Land, prepare, with_homes
from stoker_exec_local.hierarchies import CONTROLLERS, Place, find_places
from stoker_exec_local.memory import default_max_memory_bytes
from stoker_exec_local.strategy import LocalStrategy, open_local
from stoker_exec_local.users import resolve_user


class Settings(spi.Settings, frozen=True):
    """How processes run, and what bounds them."""

    user: str | int | None = None
    """Whom processes run as, by name or number; needs root. By default the server's own user."""
    group: str | int | None = None
    """The group beside `user`, by default that user's own."""
    cgroups: Literal["auto", "never", "require"] = "auto"
    """Whether control groups end process trees and enforce limits."""
    cgroup_parent: str | None = None
    """The control group to make others in, such as ``/stoker``; by default the server's own."""
    max_memory_bytes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """What all processes together may use; by default the memory there is, less a reserve."""


@asynccontextmanager
async def open_strategy(settings: Settings, context: spi.Context) -> AsyncIterator[LocalStrategy]:
    """Give a strategy. Raises ConfigurationError for what cannot work here, or Unavailable."""
    table = f"strategies.{context.name}"
    if not hasattr(os, "memfd_create"):
        raise spi.ConfigurationError([f"{table}: kind 'local' needs Linux"])
    user = None
    if settings.user is not None or settings.group is not None:
        user = resolve_user(settings.user, settings.group, table)
    land, problems = await trio.to_thread.run_sync(_land, settings, table)
    max_memory_bytes = settings.max_memory_bytes
    if land is not None and max_memory_bytes is None:
        max_memory_bytes = default_max_memory_bytes(land.places)
    sentences = enforcement(land, problems, user, max_memory_bytes)
    async with open_local(
        user=user, land=land, max_memory_bytes=max_memory_bytes, enforcement=sentences
    ) as strategy:
        yield strategy


def _land(settings: Settings, table: str) -> tuple[Land | None, list[str]]:
    if settings.cgroups == "never":
        return None, ["cgroups is 'never'"]
    land, problems = prepare(_places(settings.cgroup_parent))
    # Only now: it may have had to make room in its group by moving to another.
    land = with_homes(land, _places(None))
    if settings.cgroups == "require":
        missing = [name for name in CONTROLLERS if name not in land.controllers]
        if not land.places or missing:
            reasons = "; ".join(problems) or "no hierarchy has them"
            what = ", ".join(missing or CONTROLLERS)
            raise spi.ConfigurationError(
                [f"{table}.cgroups: required, but {what} cannot be had: {reasons}"]
            )
    return (land if land.places else None), problems


def _places(group: str | None) -> list[Place]:
    memberships, mounts = Path("/proc/self/cgroup"), Path("/proc/self/mountinfo")
    return find_places(memberships.read_text(), mounts.read_text(), group)


@spi.hookimpl
def stoker_execution_strategies() -> Mapping[str, spi.Provider[spi.ExecutionStrategy]]:
    """The one strategy of this package."""
    return {"local": spi.Provider(Settings, open_strategy, "processes of this machine, unenclosed")}

"""What this package offers to stoker."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from stoker import spi
from stoker_exec_local.strategy import LocalStrategy


class Settings(spi.Settings, frozen=True):
    """The strategy has nothing to set."""


@asynccontextmanager
async def open_strategy(_settings: Settings, context: spi.Context) -> AsyncIterator[LocalStrategy]:
    """Give a strategy. Raises ConfigurationError where there is no Linux underneath."""
    if not hasattr(os, "pidfd_open"):
        raise spi.ConfigurationError(
            [f"strategies.{context.name}: kind 'local' needs Linux, with pidfd_open"]
        )
    yield LocalStrategy()


@spi.hookimpl
def stoker_execution_strategies() -> Mapping[str, spi.Provider[spi.ExecutionStrategy]]:
    """The one strategy of this package."""
    return {"local": spi.Provider(Settings, open_strategy, "processes of this machine, unenclosed")}

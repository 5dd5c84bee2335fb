"""What this package offers to stoker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from stoker import spi
from stoker_sandbox_bubblewrap import probe, view
from stoker_sandbox_bubblewrap.sandbox import Bubblewrap
from stoker_sandbox_bubblewrap.settings import BubblewrapSettings


@asynccontextmanager
async def open_sandbox(
    settings: BubblewrapSettings, context: spi.Context
) -> AsyncIterator[Bubblewrap]:
    """Give a sandbox that has enclosed one process already.

    Raises ConfigurationError, with the way out, where that cannot be done here (ISO-11).
    """
    try:
        sandbox = await _tried(settings, context)
    except spi.ConfigurationError as error:
        raise spi.ConfigurationError(
            [f"sandboxes.{context.name}: {problem}" for problem in error.problems]
        ) from error
    yield sandbox


async def _tried(settings: BubblewrapSettings, context: spi.Context) -> Bubblewrap:
    tools = await trio.to_thread.run_sync(probe.find_tools)
    seen = await trio.to_thread.run_sync(view.look, settings, context.path("."))
    sandbox = Bubblewrap(settings, seen, tools)
    await probe.check(sandbox)
    return sandbox


@spi.hookimpl
def stoker_sandboxes() -> Mapping[str, spi.Provider[spi.Sandbox]]:
    """The one sandbox of this package."""
    return {
        "bubblewrap": spi.Provider(
            BubblewrapSettings, open_sandbox, "namespaces of Linux, made by bubblewrap"
        )
    }

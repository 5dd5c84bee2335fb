"""Worker protocol ``json``: each message is a JSON object."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from stoker import spi
from stoker_worker_json.codec import JsonProtocol

__all__ = ["JsonProtocol", "Settings", "open_protocol", "stoker_worker_protocols"]


class Settings(spi.Settings, frozen=True):
    """There is nothing to set."""


@asynccontextmanager
async def open_protocol(_settings: Settings, _context: spi.Context) -> AsyncIterator[JsonProtocol]:
    """The protocol; it holds nothing open."""
    yield JsonProtocol()


@spi.hookimpl
def stoker_worker_protocols() -> Mapping[str, spi.Provider[spi.WorkerProtocol]]:
    """Offer kind ``json``."""
    return {
        "json": spi.Provider(
            Settings, open_protocol, "JSON objects, with or without newlines between them"
        )
    }

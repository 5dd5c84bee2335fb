"""Worker protocol ``proto``: each message follows its length, a varint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from stoker import spi
from stoker_worker_proto.codec import ProtoProtocol

__all__ = ["ProtoProtocol", "Settings", "open_protocol", "stoker_worker_protocols"]


class Settings(spi.Settings, frozen=True):
    """There is nothing to set."""


@asynccontextmanager
async def open_protocol(_settings: Settings, _context: spi.Context) -> AsyncIterator[ProtoProtocol]:
    """The protocol; it holds nothing open."""
    yield ProtoProtocol()


@spi.hookimpl
def stoker_worker_protocols() -> Mapping[str, spi.Provider[spi.WorkerProtocol]]:
    """Offer kind ``proto``."""
    return {
        "proto": spi.Provider(
            Settings, open_protocol, "length-delimited protobuf, the default of build tools"
        )
    }

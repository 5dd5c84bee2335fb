"""All log streams of a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from stoker.errors import LogStreamNotFound
from stoker.log_streams.growth import Growth
from stoker.log_streams.run_output import RunOutputs
from stoker.log_streams.settings import LogStreamSettings
from stoker.log_streams.stream import LogStream
from stoker.log_streams.written import WrittenStreams


class LogStreams:
    """What executors and clients write, by the names that it is read by."""

    def __init__(self, runs: RunOutputs, written: WrittenStreams, growth: Growth) -> None:
        self.runs = runs
        self.written = written
        self.growth = growth

    def find(self, name: str) -> LogStream:
        """The stream to read by this name. Raises LogStreamNotFound."""
        try:
            return self.runs.find(name)
        except LogStreamNotFound:
            return self.written.find(name)


@asynccontextmanager
async def open_log_streams(folder: Path, settings: LogStreamSettings) -> AsyncIterator[LogStreams]:
    """Streams, of which those that clients write are kept in `folder` until this is left."""
    async with trio.open_nursery() as nursery:
        written = WrittenStreams(folder, settings, nursery)
        try:
            yield LogStreams(RunOutputs(), written, Growth(nursery))
        finally:
            nursery.cancel_scope.cancel()
            written.close()

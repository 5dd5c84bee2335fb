"""Serving metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.registry import Collector

from stoker.errors import ConfigurationError


@asynccontextmanager
async def open_metrics(address: str, collector: Collector) -> AsyncIterator[str]:
    """Serve what `collector` tells, at `address`, host:port, while the context is open.

    Gives the address with the port that was chosen where it is 0. Raises ConfigurationError if
    nobody can listen there.
    """
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    registry.register(_OnTrioThread(collector))
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        problem = f"[server] metrics_listen: cannot listen on {address}: {error.strerror}"
        raise ConfigurationError([problem]) from error
    try:
        yield f"{host}:{server.server_port}"
    finally:
        with trio.CancelScope(shield=True):
            # In a thread: a scrape that is being answered waits for this one.
            await trio.to_thread.run_sync(server.shutdown)
            await trio.to_thread.run_sync(server.server_close)
            await trio.to_thread.run_sync(thread.join)


class _OnTrioThread(Collector):
    """The server answers in threads, and what is told changes on trio's."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._token = trio.lowlevel.current_trio_token()

    def describe(self) -> Iterable[Metric]:
        # Asked for when it is registered, to find names that come twice.
        return ()

    def collect(self) -> Iterable[Metric]:
        return trio.from_thread.run_sync(
            lambda: [*self._collector.collect()], trio_token=self._token
        )

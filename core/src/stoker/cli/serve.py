"""``stoker serve``: run the server."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import click
import structlog
import trio

from stoker.cli.collector import tune_collector
from stoker.cli.documents import config_option, load_configuration
from stoker.cli.logs import start_logging
from stoker.compose import RunningServer, open_server
from stoker.config import Configuration
from stoker.plugins import Catalogue, load_catalogue
from stoker.rpc import tune_allocator

log = structlog.get_logger(__name__)


@click.command()
@config_option
@click.option(
    "--local-execution",
    is_flag=True,
    help="With the built-in defaults: run actions as processes of this machine, unsandboxed.",
)
@click.option(
    "--listen",
    multiple=True,
    metavar="ADDRESS",
    help="Listen here, as host:port or unix:/path, in place of the configured addresses.",
)
@click.option(
    "--port-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the addresses to this file, one a line, once the server serves.",
)
def serve(
    config_file: Path | None,
    local_execution: bool,
    listen: tuple[str, ...],
    port_file: Path | None,
) -> None:
    """Serve until told to stop (SIGINT, SIGTERM), then let running calls end."""
    catalogue = load_catalogue()
    configuration, source = load_configuration(
        config_file, catalogue, local_execution=local_execution, listen=listen
    )
    start_logging(configuration.log)
    tune_allocator()
    trio.run(_serve, configuration, catalogue, source, port_file)


async def _serve(
    configuration: Configuration, catalogue: Catalogue, source: str, port_file: Path | None
) -> None:
    # Signals are taken before anything is open, so that none can interrupt in the middle.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            async with open_server(configuration, catalogue) as server:
                tune_collector()
                _announce(server, configuration, source, port_file)
                log.info("stopping", signal=await _next_signal(signals))
                nursery.start_soon(_hasten, signals, server)
            nursery.cancel_scope.cancel()
    log.info("stopped")


def _announce(
    server: RunningServer, configuration: Configuration, source: str, port_file: Path | None
) -> None:
    log.info(
        "serving",
        addresses=server.addresses,
        instances=[*configuration.instances],
        executors=[*configuration.executors],
        configuration=source,
    )
    if port_file:
        _write_whole(port_file, "".join(f"{a}\n" for a in server.addresses))


async def _next_signal(signals: AsyncIterator[int]) -> str:
    async for number in signals:
        return signal.Signals(number).name
    raise AssertionError("signals never end")


async def _hasten(signals: AsyncIterator[int], server: RunningServer) -> None:
    """Whoever signals twice has no more patience. Further signals change nothing."""
    log.info("stopping at once", signal=await _next_signal(signals))
    server.draining.cancel()
    # One that nobody takes ends the process as if nothing had been closed.
    async for _ in signals:
        pass


def _write_whole(file: Path, text: str) -> None:
    """Write by renaming, so that whoever waits for `file` never reads half of it."""
    part = file.with_name(file.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.rename(file)

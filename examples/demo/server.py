"""stoker as a process of its own, on its built-in defaults."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

START_SECONDS = 60
STOP_SECONDS = 10
_LOOK_SECONDS = 0.05
_LOG_TAIL_BYTES = 2000


class ServerLost(Exception):
    """The server did not come up, or is gone. The text has the end of its log."""


@asynccontextmanager
async def open_server(folder: Path) -> AsyncIterator[str]:
    """Serve with all state in `folder`, on a free port; gives the address.

    Raises ServerLost if the server does not come up, or ends before the context is left. On
    leaving, cancellation included, the server is stopped, and no process of it is left.
    """
    port_file, log = trio.Path(folder / "address"), folder / "server.log"
    process = await _start(folder, port_file, log)
    try:
        async with trio.open_nursery() as nursery:
            address = await _wait_for_address(process, port_file, log)
            with trio.CancelScope() as while_it_lives:
                nursery.start_soon(_cancel_at_end, process, while_it_lives)
                yield address
            if process.poll() is not None:
                raise ServerLost(_last_words(process, log))
            nursery.cancel_scope.cancel()
    finally:
        await _stop(process)


async def _start(folder: Path, port_file: trio.Path, log: Path) -> trio.Process:
    command = [sys.executable, "-m", "stoker", "serve", "--local-execution"]
    with log.open("wb") as output:
        return await trio.lowlevel.open_process(
            [*command, "--listen", "127.0.0.1:0", "--port-file", str(port_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Not here, where a stoker.toml may lie that is the user's.
            cwd=folder,
            env={**os.environ, "STOKER_STATE": str(folder / "state")},
            # Ctrl-C is for the demo, which then stops the server in its own time.
            start_new_session=True,
        )


async def _wait_for_address(process: trio.Process, port_file: trio.Path, log: Path) -> str:
    with trio.move_on_after(START_SECONDS):
        while process.poll() is None:
            if await port_file.exists():
                return (await port_file.read_text(encoding="utf-8")).split()[0]
            await trio.sleep(_LOOK_SECONDS)
    raise ServerLost(_last_words(process, log))


async def _cancel_at_end(process: trio.Process, scope: trio.CancelScope) -> None:
    await process.wait()
    scope.cancel()


def _last_words(process: trio.Process, log: Path) -> str:
    state = "does not come up" if process.returncode is None else "has ended"
    tail = log.read_bytes()[-_LOG_TAIL_BYTES:].decode("utf-8", "replace").strip()
    return f"the server {state} (exit code {process.returncode}); its log ends with:\n{tail}"


async def _stop(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        if process.poll() is None:
            process.terminate()
        with trio.move_on_after(STOP_SECONDS):
            await process.wait()
        process.kill()
        await process.wait()

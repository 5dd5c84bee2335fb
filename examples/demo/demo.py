"""The demo: one set of actions three times over, and a table of what each time took."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import trio
from rich.console import Console

from examples.demo import display
from examples.demo.actions import CheckAction, check_action, library_modules
from examples.demo.passes import ActionFailed, Pass, run_pass
from examples.demo.server import ServerLost, open_server
from stoker.client import RemoteInstance, open_remote
from stoker.errors import StokerError, sole_cause
from stoker.rpc import RpcError

MODULES = 36
# Each worker has to be started once, so with more of them the demo would need more modules to
# show what they are worth.
AT_ONCE = 2

ONE_SHOT: dict[str, str] = {}
ON_WORKERS = {"persistentWorkerKey": "mypy_worker"}


def main() -> None:
    """Run the demo and exit: 0 if all went well, 1 if not, 130 if interrupted."""
    options = _options()
    console = Console()
    try:
        with tempfile.TemporaryDirectory(prefix="stoker-demo-") as folder:
            finished = trio.run(_demonstrate_unless_told, Path(folder), options, console)
    except Exception as error:
        cause = sole_cause(error)
        if not isinstance(cause, ServerLost | ActionFailed | StokerError | RpcError | OSError):
            raise
        # Not by rich, which would wrap the lines of a log.
        print(f"The demo failed: {cause}", file=sys.stderr)
        sys.exit(1)
    if not finished:
        console.print("Interrupted. The server is stopped, and its files are gone.")
    sys.exit(0 if finished else 130)


def _options() -> argparse.Namespace:
    available = len(library_modules())
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument(
        "--modules",
        type=int,
        choices=range(1, available + 1),
        default=min(MODULES, available),
        metavar=f"1..{available}",
        help="how many modules of the standard library to check (default: %(default)s)",
    )
    parser.add_argument(
        "--at-once",
        type=int,
        choices=range(1, 65),
        default=min(AT_ONCE, os.cpu_count() or 1),
        metavar="1..64",
        help="how many actions to have in flight (default: %(default)s)",
    )
    return parser.parse_args()


async def _demonstrate_unless_told(
    folder: Path, options: argparse.Namespace, console: Console
) -> bool:
    """Whether it came to its end, rather than to be told to stop by a signal."""
    finished = False
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_told, signals, nursery.cancel_scope)
            await _demonstrate(folder, options, console)
            finished = True
            nursery.cancel_scope.cancel()
    return finished


async def _cancel_when_told(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


async def _demonstrate(folder: Path, options: argparse.Namespace, console: Console) -> None:
    modules = library_modules()[: options.modules]
    display.introduce(console, len(modules), options.at_once)
    async with open_server(folder) as address, open_remote(address) as remote:
        one_shot, on_workers = (
            [check_action(module, properties, remote.digest_function) for module in modules]
            for properties in (ONE_SHOT, ON_WORKERS)
        )
        passes = await _run_passes(remote, one_shot, on_workers, options.at_once, console)
    display.conclude(console, passes)


async def _run_passes(
    remote: RemoteInstance,
    one_shot: Sequence[CheckAction],
    on_workers: Sequence[CheckAction],
    at_once: int,
    console: Console,
) -> list[Pass]:
    passes = []
    with display.open_progress(console) as progress:
        for title, actions in (
            ("one-shot processes", one_shot),
            ("persistent workers", on_workers),
            ("action cache", on_workers),
        ):
            with progress.watch(title, len(actions)) as on_ended:
                passes.append(await run_pass(title, remote, actions, at_once, on_ended))
    _check(*passes)
    return passes


def _check(one_shot: Pass, on_workers: Pass, cached: Pass) -> None:
    """Raise ActionFailed unless each pass is what the table will say it is."""
    for ended in (*one_shot.actions, *on_workers.actions):
        if ended.cached:
            raise ActionFailed(f"the check of {ended.name} came from the cache, on a new server")
    for ended in on_workers.actions:
        if not ended.service:
            reason = ended.one_shot_reason or "the server does not say why"
            raise ActionFailed(f"the check of {ended.name} ran on no worker: {reason}")
    for ended in cached.actions:
        if not ended.cached:
            raise ActionFailed(f"the check of {ended.name} was not cached")
    for other in (on_workers, cached):
        for name, report in one_shot.reports.items():
            if other.reports[name] != report:
                raise ActionFailed(f"{other.title} gave another report of {name}")

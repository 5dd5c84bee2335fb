"""``stoker workers``: the persistent workers of the server that runs here."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import trio
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from stoker.cli.administration import find_socket, open_answers
from stoker.cli.documents import config_option
from stoker.cli.printable import printable, printable_lines
from stoker.protos import admin_pb2 as admin

_ENDLESS = 10_000
_STATES = ("busy", "idle", "starting", "recovering", "ending")


@click.command()
@config_option
@click.option("--executor", "executors", multiple=True, help="Only this executor's.")
@click.option("--processes", is_flag=True, help="A row for each process, too.")
@click.option("--json", "as_json", is_flag=True, help="All of it, as one JSON object an executor.")
def workers(
    config_file: Path | None, executors: tuple[str, ...], processes: bool, as_json: bool
) -> None:
    """List persistent workers: how many there are, what they use, and whether they stay warm.

    For the server that runs on this machine with this configuration. Counts are since it began.
    """
    request = admin.ListWorkersRequest(executors=executors)
    found = trio.run(_ask, find_socket(config_file), request)
    if as_json:
        for one in found:
            click.echo(json.dumps(_plain(one)))
        return
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        # Scripts and pipes get whole lines.
        console = Console(highlight=False, markup=False, width=_ENDLESS)
    if not found:
        click.echo("this server has no executors")
    for one in found:
        _print(console, one, processes=processes)


async def _ask(socket: Path, request: admin.ListWorkersRequest) -> list[admin.ExecutorWorkers]:
    async with open_answers(socket, "ListWorkers", request, admin.ExecutorWorkers) as answers:
        return [answer async for answer in answers]


def _print(console: Console, found: admin.ExecutorWorkers, *, processes: bool) -> None:
    console.print(_headline(found))
    for label, counts in (("started", found.misses), ("ended", found.ended)):
        if counts:
            console.print(f"  {label}: {_counts(counts)}")
    if found.keys:
        console.print(_keys(found.keys))
    if processes and any(key.workers for key in found.keys):
        console.print(_processes(found.keys))
    for key in found.keys:
        if key.last_error:
            console.print(f"  last error of {_named(key)}: {printable_lines(key.last_error)}")


def _headline(found: admin.ExecutorWorkers) -> str:
    parts = [f"{found.places} of {found.max_workers} workers", f"{found.waiting} actions waiting"]
    if found.HasField("memory_bytes"):
        bound = (
            f" of {decimal(found.max_memory_bytes)}" if found.HasField("max_memory_bytes") else ""
        )
        parts.append(f"{decimal(found.memory_bytes)}{bound}")
    parts.append(f"warm {_rate(found.hits, found.misses)}")
    return f"executor {found.executor}: {', '.join(parts)}"


def _rate(hits: int, misses: Mapping[str, int]) -> str:
    """How many of the actions met with a warm worker."""
    # Beside "key" stand the components that differed, as "key:argv" and the like.
    total = hits + sum(count for reason, count in misses.items() if ":" not in reason)
    return f"{hits / total:.0%} of {total}" if total else "-"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


def _named(key: admin.WorkerKeyStatus) -> str:
    return printable(key.mnemonic or Path(key.argv[0]).name)


def _keys(keys: Iterable[admin.WorkerKeyStatus]) -> Table:
    table = Table("workers of", "instance", "protocol", "mode", "tools", box=None, pad_edge=True)
    for title in ("processes", "memory", "served", "warm"):
        table.add_column(title, justify="right")
    table.add_column("started because")
    for key in keys:
        states = Counter(worker.state for worker in key.workers)
        used = [worker.memory_bytes for worker in key.workers if worker.HasField("memory_bytes")]
        table.add_row(
            _named(key),
            repr(key.instance_name),
            key.protocol,
            key.mode,
            key.tools[:8],
            ", ".join(f"{states[state]} {state}" for state in _STATES if states[state]) or "0",
            decimal(sum(used)) if used else "-",
            str(sum(worker.served for worker in key.workers)),
            _rate(key.hits, key.misses),
            _because(key),
        )
    return table


def _because(key: admin.WorkerKeyStatus) -> str:
    reasons = _counts(key.misses)
    if not key.nearest_key_differs_in:
        return reasons
    return f"{reasons} (nearest key differs in {', '.join(key.nearest_key_differs_in)})"


def _processes(keys: Iterable[admin.WorkerKeyStatus]) -> Table:
    table = Table("worker", "process", "state", "tools by", "log", box=None, pad_edge=True)
    for title in ("in flight", "served", "memory", "age", "idle"):
        table.add_column(title, justify="right")
    for worker in (worker for key in keys for worker in key.workers):
        table.add_row(
            worker.name,
            worker.process.removeprefix("process "),
            worker.state,
            worker.tools_by,
            worker.log,
            str(worker.in_flight),
            str(worker.served),
            decimal(worker.memory_bytes) if worker.HasField("memory_bytes") else "-",
            f"{worker.age_seconds:.0f} s",
            f"{worker.idle_seconds:.0f} s",
        )
    return table


def _plain(found: admin.ExecutorWorkers) -> dict[str, Any]:
    """As JSON's own numbers: protobuf writes 64-bit ones as texts."""
    plain: dict[str, Any] = _numbers(
        MessageToDict(
            found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    )
    return plain


_NUMBERS = {"memory_bytes", "max_memory_bytes", "hits", "served"}
_COUNTS = {"misses", "ended"}


def _numbers(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        if name in _COUNTS:
            return {reason: int(count) for reason, count in value.items()}
        return {key: _numbers(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return int(value) if name in _NUMBERS else value

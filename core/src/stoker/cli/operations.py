"""``stoker operations``: what a server executes, or has executed lately."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
import trio
from google.longrunning import operations_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table

from stoker.cli.connection import Connection, server_options
from stoker.cli.printable import printable
from stoker.client import response_of
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc.status import status_code

_ENDLESS = 10_000

_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


@click.group()
def operations() -> None:
    """See and cancel operations: what a server executes, or has executed lately.

    An operation is named as the server names it, or by the last part of that. A server that asks
    its clients for certificates shows each its own only.
    """


@operations.command("list")
@server_options
@click.option(
    "--filter",
    "filter_",
    default="",
    metavar="FILTER",
    help="As 'stage = EXECUTING AND mnemonic = Javac'. Fields are stage, done, action, mnemonic, "
    "target, invocation, executor and principal.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=None, help="At the most so many, oldest first."
)
@_json_option
def list_(connection: Connection, filter_: str, limit: int | None, as_json: bool) -> None:
    """List operations, oldest first."""
    found = trio.run(_list, connection, filter_, limit)
    if as_json:
        for operation in found:
            click.echo(json.dumps(_plain(operation)))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("operation", "stage", "outcome", "executor", "queued", "action"):
        table.add_column(title, no_wrap=True)
    for operation in found:
        plain = _plain(operation)
        table.add_row(
            plain["name"],
            plain["stage"],
            _outcome(plain),
            printable(plain["executor"]),
            plain["queued"] or "-",
            plain["action"],
        )
    # Whole lines everywhere: a name that is cut names nothing.
    console = Console(highlight=False, markup=False, emoji=False)
    console.width = max(console.width, _ENDLESS if not console.is_terminal else 0)
    console.print(table, soft_wrap=True)


@operations.command()
@server_options
@click.argument("name")
@_json_option
def show(connection: Connection, name: str, as_json: bool) -> None:
    """Show how the operation NAME stands."""
    plain = _plain(trio.run(_show, connection, name))
    if as_json:
        click.echo(json.dumps(plain))
        return
    for key, value in plain.items():
        if value not in (None, ""):
            click.echo(f"{key + ':':<17}{printable(str(value))}")


@operations.command()
@server_options
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def cancel(connection: Connection, names: Sequence[str]) -> None:
    """Cancel operations. What one of them shares with somebody else's goes on for that one."""
    trio.run(_cancel, connection, names)


async def _list(
    connection: Connection, filter_: str, limit: int | None
) -> list[operations_pb2.Operation]:
    async with connection.open() as remote:
        return await remote.operations(filter_, at_most=limit)


async def _show(connection: Connection, name: str) -> operations_pb2.Operation:
    async with connection.open() as remote:
        return await remote.operation(remote.operation_name(name))


async def _cancel(connection: Connection, names: Sequence[str]) -> None:
    async with connection.open() as remote:
        for name in names:
            await remote.cancel(remote.operation_name(name))


def _plain(operation: operations_pb2.Operation) -> dict[str, Any]:
    """What scripts may rely on: docs/guides/operations.md."""
    metadata = reapi.ExecuteOperationMetadata()
    operation.metadata.Unpack(metadata)
    known = metadata.partial_execution_metadata
    plain: dict[str, Any] = {
        "name": operation.name,
        "stage": reapi.ExecutionStage.Value.Name(metadata.stage),
        "done": operation.done,
        "action": f"{metadata.action_digest.hash}/{metadata.action_digest.size_bytes}",
        "digest_function": reapi.DigestFunction.Value.Name(metadata.digest_function),
        "queued": _time(known.queued_timestamp) if known.HasField("queued_timestamp") else None,
        "executor": known.worker,
        "cached_result": None,
        "exit_code": None,
        "status": None,
        "message": "",
    }
    return {**plain, **_ended(operation)} if operation.done else plain


def _ended(operation: operations_pb2.Operation) -> dict[str, Any]:
    response = response_of(operation)
    ended: dict[str, Any] = {
        "cached_result": response.cached_result,
        "status": status_code(response.status.code).name,
        "message": response.status.message or response.message,
    }
    if response.HasField("result"):
        ended["exit_code"] = response.result.exit_code
        ended["executor"] = response.result.execution_metadata.worker
    return ended


def _outcome(plain: dict[str, Any]) -> str:
    if not plain["done"]:
        return "-"
    if plain["status"] != "OK":
        return str(plain["status"])
    return f"exit code {plain['exit_code']}{' (cached)' if plain['cached_result'] else ''}"


def _time(stamp: Timestamp) -> str:
    return f"{stamp.ToDatetime().isoformat(' ', 'seconds')}Z"

"""``stoker drain``: have an executor of the server that runs here take nothing new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import trio
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from stoker.cli.administration import find_socket, open_answers
from stoker.cli.documents import config_option
from stoker.protos import admin_pb2 as admin


@click.command()
@config_option
@click.argument("executors", nargs=-1, metavar="[EXECUTOR]...")
@click.option("--resume", is_flag=True, help="Have them take actions again.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object an executor.")
def drain(
    config_file: Path | None, executors: tuple[str, ...], resume: bool, as_json: bool
) -> None:
    """Have executors take nothing new; without names, tell how each stands.

    What runs there ends, and its persistent workers go once they are idle. Actions that nobody
    else can run wait, and end after a while: see wait_for_executor_seconds in [scheduler]. It
    lasts until the executor is told to --resume, or the server starts again.
    """
    if resume and not executors:
        raise click.UsageError("name the executors that are to take actions again")
    request = admin.DrainExecutorsRequest(executors=executors, resume=resume)
    found = trio.run(_ask, find_socket(config_file), request)
    if as_json:
        for one in found:
            click.echo(json.dumps(_plain(one)))
    elif found:
        _print(found)
    else:
        click.echo("this server has no executors")


async def _ask(socket: Path, request: admin.DrainExecutorsRequest) -> list[admin.ExecutorStatus]:
    async with open_answers(socket, "DrainExecutors", request, admin.ExecutorStatus) as answers:
        return [answer async for answer in answers]


def _print(found: list[admin.ExecutorStatus]) -> None:
    table = Table("executor", "state", box=None, pad_edge=False)
    for title in ("running", "free slots", "waiting", "workers"):
        table.add_column(title, justify="right")
    for one in found:
        counts = (one.busy_slots, one.free_slots, one.waiting, one.workers)
        table.add_row(one.executor, one.state, *map(str, counts))
    Console(highlight=False, markup=False).print(table)


def _plain(one: admin.ExecutorStatus) -> dict[str, Any]:
    # JSON of protobuf writes 64-bit numbers as texts.
    plain = MessageToDict(
        one, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return {**plain, "waiting": one.waiting}

"""``stoker ac``: the action cache of the server that runs here."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import trio
from google.protobuf.json_format import MessageToDict

from stoker.cli.administration import find_socket, open_answers
from stoker.cli.documents import config_option
from stoker.cli.printable import printable
from stoker.protos import admin_pb2 as admin

Command = TypeVar("Command", bound=Callable[..., Any])

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def age_of(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """A click callback: the seconds in a time span such as 30m, 12h or 7d."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no age, as 90s, 30m, 12h, 7d or 4w are")
    seconds = float(found[1]) * _UNITS[found[2]]
    if seconds > time.time():
        raise click.BadParameter(f"{value!r} is no age of a result: it reaches back before 1970")
    return seconds


_FILTERS = (
    click.option("--instance", "instance_name", help="The instance; '' is one too."),
    click.option("--action", "action_hash", help="The action's hash, or its first digits."),
    click.option("--tool", "tool_name", help="The tool that filed the result, as bazel."),
    click.option("--invocation", "tool_invocation_id", help="The tool's invocation."),
    click.option("--executor", help="The executor that made the result."),
    click.option("--principal", help="Who the client proved to be."),
    click.option("--peer", help="The client's address, as `show` writes it."),
    click.option(
        "--older-than", metavar="AGE", callback=age_of, help="Filed longer ago than this, as 7d."
    ),
    click.option("--newer-than", metavar="AGE", callback=age_of, help="Filed since, as 12h."),
)


def filter_options(command: Command) -> Command:
    """Add the options that choose results."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@click.group()
def ac() -> None:
    """See who filed which action results, and remove them.

    For the server that runs on this machine with this configuration. All filters that are given
    must hold.
    """


@ac.command()
@config_option
@filter_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def show(config_file: Path | None, as_json: bool, **filters: Any) -> None:
    """List cached results, and who filed them when."""
    request = admin.ListResultsRequest(filter=_filter(**filters))
    socket = find_socket(config_file)
    trio.run(_print_results, socket, "ListResults", request, as_json)


@ac.command()
@config_option
@filter_options
@click.option("--all", "everything", is_flag=True, help="Every result, where no filter is given.")
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
def purge(config_file: Path | None, everything: bool, dry_run: bool, **filters: Any) -> None:
    """Remove cached results, and list them."""
    wanted = _filter(**filters)
    if not (wanted.ByteSize() or everything):
        raise click.UsageError("give a filter, or --all to remove every result")
    request = admin.PurgeResultsRequest(filter=wanted, dry_run=dry_run, all=everything)
    count = trio.run(_print_results, find_socket(config_file), "PurgeResults", request, False)
    click.echo(f"{count} results {'would be ' if dry_run else ''}removed", err=True)


def _filter(
    instance_name: str | None, older_than: float | None, newer_than: float | None, **rest: str
) -> admin.ResultFilter:
    wanted = admin.ResultFilter(instance_name=instance_name)
    for field, value in rest.items():
        setattr(wanted, field, value or "")
    if older_than is not None:
        wanted.written_before.FromNanoseconds(time.time_ns() - int(older_than * 1e9))
    if newer_than is not None:
        wanted.written_after.FromNanoseconds(time.time_ns() - int(newer_than * 1e9))
    return wanted


async def _print_results(
    socket: Path,
    method: str,
    request: admin.ListResultsRequest | admin.PurgeResultsRequest,
    as_json: bool,
) -> int:
    count = 0
    async with open_answers(socket, method, request, admin.ListedResult) as results:
        async for result in results:
            if result.trouble:
                click.echo(f"[action_caches.{result.action_cache}]: {result.trouble}", err=True)
                continue
            count += 1
            click.echo(json.dumps(_plain(result)) if as_json else _line(result))
    return count


def _plain(result: admin.ListedResult) -> dict[str, Any]:
    plain: dict[str, Any] = MessageToDict(
        result, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    plain["action_size_bytes"] = result.action_size_bytes
    del plain["trouble"]
    return plain


def _line(result: admin.ListedResult) -> str:
    parts = [
        f"{result.action_hash}/{result.action_size_bytes}",
        f"instance {result.instance_name!r}",
        f"exit code {result.exit_code}",
    ]
    if not result.HasField("provenance"):
        return "  ".join([*parts, "filed by an unknown writer"])
    written = result.provenance
    tool = " ".join(filter(None, (written.tool_name, written.tool_version)))
    named = {
        "tool": tool,
        "invocation": written.tool_invocation_id,
        "executor": written.executor,
        "principal": written.principal,
        "peer": written.peer,
    }
    when = written.written_at.ToDatetime().isoformat(" ", "seconds")
    told = (f"{key} {printable(value)}" for key, value in named.items() if value)
    return "  ".join([f"{when}Z", *parts, *told])

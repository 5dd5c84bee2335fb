"""``stoker explain``: what became of an action, and why."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import trio
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

# For the entries of auxiliary metadata that are known.
from google.protobuf.struct_pb2 import Struct
from rich.console import Console

from stoker.cli.connection import DEFAULT_SERVER, Connection, server_options
from stoker.cli.explain_report import print_report
from stoker.cli.printable import printable
from stoker.client import RemoteInstance
from stoker.client.reproduction import Reproduction, download_action, shell_command
from stoker.digest import Digest, digest_function
from stoker.execution.process import environment_of
from stoker.protos import explain_pb2 as explain_proto
from stoker.protos.provenance_pb2 import Provenance
from stoker.rpc import RpcError

_KNOWN: tuple[type[Message], ...] = (Struct, Provenance)
_ENDLESS = 10_000


@click.command()
@server_options
@click.argument("subject", metavar="ACTION-OR-OPERATION")
@click.option("--json", "as_json", is_flag=True, help="All that is known, as one JSON object.")
@click.option(
    "--max-differences",
    type=click.IntRange(1, 1000),
    default=200,
    show_default=True,
    help="How many differences from the nearest earlier action are told.",
)
@click.option(
    "--reproduce",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Bring the inputs into DIR, which must be absent or empty, and print the command line "
    "that repeats the action there.",
)
def explain(
    connection: Connection, subject: str, as_json: bool, max_differences: int, folder: Path | None
) -> None:
    """Tell where an action's time went, why it was not cached, why it waited, where it ran.

    The action is HASH/SIZE, its hash, or the first eight digits of it, or more. An operation is
    named as the server does, as operations/…; its instance is part of its name.
    """
    if folder is not None and as_json:
        raise click.UsageError("--json and --reproduce do not go together")
    request = explain_proto.ExplainActionRequest(max_differences=max_differences)
    prefix, separator, _ = subject.rpartition("operations/")
    if separator:
        request.operation_name = subject
        connection = replace(connection, instance_name=prefix.removesuffix("/"))
    else:
        request.action = subject
    if folder is not None:
        trio.run(_reproduce, connection, request, folder.absolute())
        return
    explanation = trio.run(_ask, connection, request)
    if as_json:
        click.echo(json.dumps(_plain(explanation)))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        # Scripts and pipes get whole lines.
        console = Console(highlight=False, markup=False, emoji=False, width=_ENDLESS)
    print_report(console, explanation)
    console.print(f"\nto repeat it here: {_repeating(connection, explanation.run)}")


async def _ask(
    connection: Connection, request: explain_proto.ExplainActionRequest
) -> explain_proto.Explanation:
    async with connection.open() as instance:
        return await instance.explain(request)


async def _reproduce(
    connection: Connection, request: explain_proto.ExplainActionRequest, here: Path
) -> None:
    async with connection.open() as instance:
        run = await _find_run(instance, request)
        found = await download_action(instance, _digest(run), here)
    count, size_bytes = found.downloaded
    click.echo(f"{count} files, {size_bytes} bytes, are in {here / 'root'}", err=True)
    for note in _notes(found, run):
        click.echo(printable(note), err=True)
    environment = environment_of(found.command, here / "tmp")
    directory = here / "root" / found.command.working_directory
    click.echo(shell_command(found.command.arguments, environment, directory))


async def _find_run(
    instance: RemoteInstance, request: explain_proto.ExplainActionRequest
) -> explain_proto.Run:
    """The run that is asked for. An action that is named whole need not be known to records."""
    try:
        return (await instance.explain(request)).run
    except RpcError:
        if not re.fullmatch("[0-9a-f]+/[0-9]{1,18}", request.action):
            raise
    hash_, _, size = request.action.partition("/")
    function = digest_function(0, len(hash_))
    digest = function.named(hash_, int(size)).to_proto()
    return explain_proto.Run(action_digest=digest, digest_function=function.number)


def _notes(found: Reproduction, run: explain_proto.Run) -> list[str]:
    """What the command line leaves out."""
    images = [p.value for p in found.platform.properties if p.name == "container-image"]
    notes = [f"it asks for container image {image}, which this does not use" for image in images]
    if any("worker" in facts for facts in facts_of(run)):
        notes.append("it ran on a persistent worker; this is the same as a process of its own")
    return notes


def facts_of(run: explain_proto.Run) -> list[dict[str, Any]]:
    """The entries of the run's auxiliary metadata that are facts by name."""
    facts = []
    for entry in run.metadata.auxiliary_metadata:
        message = Struct()
        if entry.Unpack(message):
            facts.append(dict(message))
    return facts


def _digest(run: explain_proto.Run) -> Digest:
    return digest_function(run.digest_function).parse(run.action_digest)


def _repeating(connection: Connection, run: explain_proto.Run) -> str:
    words = ["stoker", "explain"]
    if connection.server != DEFAULT_SERVER:
        words += ["--server", connection.server]
    if connection.instance_name:
        words += ["--instance", connection.instance_name]
    for name in ("tls_ca", "tls_certificate", "tls_key"):
        if file := getattr(connection, name):
            words += [f"--{name.replace('_', '-')}", str(file)]
    digest = run.action_digest
    return shlex.join([*words, f"{digest.hash}/{digest.size_bytes}", "--reproduce", "DIR"])


def _plain(explanation: explain_proto.Explanation) -> dict[str, Any]:
    plain: dict[str, Any] = MessageToDict(
        explanation, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return plain

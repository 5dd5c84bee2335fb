"""``stoker tail``: what an operation prints, as it comes."""

from __future__ import annotations

from functools import partial

import click
import trio

from stoker.cli.connection import Connection, server_options
from stoker.cli.live_output import function_of, open_live_output
from stoker.cli.printable import printable
from stoker.client import response_of
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc.status import status_code

_PAUSE_SECONDS = 0.25


@click.command()
@server_options
@click.option("--stdout", "only", flag_value="stdout", help="Only what it prints to stdout.")
@click.option("--stderr", "only", flag_value="stderr", help="Only what it prints to stderr.")
@click.argument("operation")
def tail(*, connection: Connection, only: str | None, operation: str) -> None:
    """Show what OPERATION prints, from its beginning until it ends.

    Its stdout goes to stdout and its stderr to stderr, also of one that has ended already, as long
    as the server remembers it. Ctrl-C ends this command, and leaves the action alone.

    OPERATION is named as the server names it, {instance/}operations/{id}, or by the last part of
    that. `stoker operations list` lists them, and so does the Operations service to any client.
    """
    click.echo(trio.run(partial(_tail, connection, operation, only)), err=True)


async def _tail(connection: Connection, given_name: str, only: str | None) -> str:
    """Returns how it has ended, in words."""
    async with (
        connection.open() as remote,
        open_live_output(remote, stdout=only != "stderr", stderr=only != "stdout") as live,
    ):
        name = remote.operation_name(given_name)
        # Asked now and then, in place of a wait: an operation that nobody waits for is given up
        # after a while, and whoever looks on neither causes nor hinders that.
        while not (operation := await remote.operation(name)).done:
            await live.follow(operation)
            await live.wait_ended()
            await trio.sleep(_PAUSE_SECONDS)
        response = response_of(operation)
        await live.show_rest(response, function_of(operation))
    return _ending(name, response)


def _ending(name: str, response: reapi.ExecuteResponse) -> str:
    if response.status.code:
        code = status_code(response.status.code).name
        return f"{name} has ended: {code}: {printable(response.status.message)}"
    return f"{name} has ended: exit code {response.result.exit_code}"

"""``stoker cas``: blobs of a server, by hand."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
import trio

from stoker.cli.administration import find_socket, open_answers
from stoker.cli.connection import Connection, digest_of, digests_of, server_options
from stoker.cli.documents import config_option
from stoker.client import digest_file
from stoker.digest import Digest
from stoker.protos import admin_pb2 as admin


@click.group()
def cas() -> None:
    """Put blobs on a server, get them back, see whether they are there.

    A blob is named by its digest, HASH/SIZE.
    """


@cas.command()
@server_options
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
def put(connection: Connection, files: Sequence[Path]) -> None:
    """Upload FILES and print their digests, a line each, in the order given."""
    for digest in trio.run(_put, connection, files):
        click.echo(digest)


@cas.command()
@server_options
@click.argument("digest", callback=digest_of)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; stdout if none is given.",
)
def get(connection: Connection, digest: Digest, output: Path | None) -> None:
    """Fetch the blob DIGEST. What is fetched is checked against it."""
    trio.run(_get, connection, digest, output)


@cas.command()
@server_options
@click.argument("digests", nargs=-1, required=True, callback=digests_of)
@click.pass_context
def find(context: click.Context, connection: Connection, digests: Sequence[Digest]) -> None:
    """Say of each of DIGESTS whether the server has it. The exit code is 1 if one is missing."""
    missing = trio.run(_find, connection, digests)
    for digest in digests:
        click.echo(f"{'missing' if digest in missing else 'present'} {digest}")
    if missing:
        context.exit(1)


@cas.command()
@config_option
@click.argument("stores", nargs=-1)
@click.pass_context
def scrub(context: click.Context, config_file: Path | None, stores: Sequence[str]) -> None:
    """Have the server hash all blobs of STORES once more, and drop what is damaged.

    For the server that runs on this machine with this configuration; STORES are the names of its
    [blob_stores.NAME] tables, all of them unless given. It may be broken off at any time. The exit
    code is 1 if anything was damaged, or if a store that was named cannot be scrubbed.
    """
    if not trio.run(_scrub, find_socket(config_file), stores):
        context.exit(1)


async def _scrub(socket: Path, stores: Sequence[str]) -> bool:
    request = admin.ScrubRequest(blob_stores=stores)
    sound = True
    async with open_answers(socket, "Scrub", request, admin.ScrubProgress) as steps:
        async for step in steps:
            where = f"[blob_stores.{step.blob_store}]"
            if step.done and step.problem:
                click.echo(f"{where} {step.problem}", err=True)
                sound = sound and step.blob_store not in stores
            elif step.done:
                click.echo(f"{where} {step.checked} blobs checked")
            elif step.problem:
                click.echo(f"{where} {step.digest or 'something'}: {step.problem}")
                sound = False
    return sound


async def _put(connection: Connection, files: Sequence[Path]) -> list[Digest]:
    async with connection.open() as remote:
        digests = [await digest_file(path, remote.digest_function) for path in files]
        by_content = dict(zip(digests, files, strict=True))
        missing = await remote.find_missing(digests)
        await remote.upload_files({digest: by_content[digest] for digest in missing})
    return digests


async def _get(connection: Connection, digest: Digest, output: Path | None) -> None:
    async with connection.open() as remote:
        if output is not None:
            await remote.download_file(digest, output)
        elif digest.size_bytes:
            async with remote.open_blob(digest) as chunks:
                async for chunk in chunks:
                    await trio.to_thread.run_sync(sys.stdout.buffer.write, chunk)
            sys.stdout.buffer.flush()


async def _find(connection: Connection, digests: Sequence[Digest]) -> set[Digest]:
    async with connection.open() as remote:
        return await remote.find_missing(digests)

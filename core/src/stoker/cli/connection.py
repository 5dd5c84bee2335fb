"""What the commands that talk to a server have in common: which server, and which blobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from stoker.digest import Digest, digest_function
from stoker.errors import InvalidRequest

DEFAULT_SERVER = "grpc://127.0.0.1:8980"

Command = TypeVar("Command", bound=Callable[..., Any])


def server_options(command: Command) -> Command:
    """Add ``--server`` and ``--instance``."""
    instance = click.option(
        "--instance",
        "instance_name",
        default="",
        envvar="STOKER_INSTANCE",
        help="Instance name; often empty.",
    )
    server = click.option(
        "--server",
        default=DEFAULT_SERVER,
        envvar="STOKER_SERVER",
        show_default=True,
        show_envvar=True,
        help="grpc://host:port, grpcs://host:port, host:port or unix:/path.",
    )
    return server(instance(command))


def digests_of(
    _context: click.Context, _parameter: click.Parameter, values: Sequence[str]
) -> list[Digest]:
    """A click callback: the digests that arguments of the form HASH/SIZE name."""
    return [digest_of(_context, _parameter, value) for value in values]


def digest_of(_context: click.Context, _parameter: click.Parameter, value: str) -> Digest:
    """A click callback: the digest that an argument of the form HASH/SIZE names."""
    hash_, _, size = value.partition("/")
    if not (size.isascii() and size.isdigit()):
        raise click.BadParameter(f"{value!r} is not of the form HASH/SIZE")
    try:
        return digest_function(0, len(hash_)).named(hash_, int(size))
    except InvalidRequest as error:
        raise click.BadParameter(str(error)) from error


def assignments_of(
    _context: click.Context, _parameter: click.Parameter, values: Sequence[str]
) -> list[tuple[str, str]]:
    """A click callback: the names and values in options of the form NAME=VALUE."""
    pairs = []
    for value in values:
        name, separator, content = value.partition("=")
        if not (name and separator):
            raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE")
        pairs.append((name, content))
    return pairs

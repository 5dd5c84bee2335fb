"""What the commands that talk to a server have in common: which server, and which blobs."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stoker.client import RemoteInstance, open_remote, parse_target
from stoker.digest import Digest, digest_function
from stoker.errors import InvalidRequest
from stoker.rpc import ClientTlsCredentials

DEFAULT_SERVER = "grpc://127.0.0.1:8980"


@dataclass(frozen=True, slots=True)
class Connection:
    """Which instance of which server, and how to trust each other."""

    server: str
    instance_name: str
    tls_ca: Path | None
    tls_certificate: Path | None
    tls_key: Path | None

    def open(self) -> AbstractAsyncContextManager[RemoteInstance]:
        """Talk to it. Raises InvalidRequest for options that do not go together."""
        return open_remote(self.server, self.instance_name, credentials=self._credentials())

    def _credentials(self) -> ClientTlsCredentials | None:
        files = (self.tls_ca, self.tls_certificate, self.tls_key)
        if not any(files):
            return None
        if not parse_target(self.server).tls:
            raise InvalidRequest(f"{self.server} is without TLS; say grpcs:// to use certificates")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InvalidRequest("--tls-certificate and --tls-key go together")
        return ClientTlsCredentials(*(file.read_bytes() if file else None for file in files))


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose a server; the command gets a `connection` for them."""

    @functools.wraps(command)
    def connected(**parameters: Any) -> Any:
        chosen = {name: parameters.pop(name) for name in Connection.__dataclass_fields__}
        return command(connection=Connection(**chosen), **parameters)

    for option in reversed(_OPTIONS):
        connected = option(connected)
    return connected


def _tls_file(name: str, what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        name,
        envvar=f"STOKER_{name.strip('-').replace('-', '_').upper()}",
        show_envvar=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help=what,
    )


_OPTIONS = (
    click.option(
        "--server",
        default=DEFAULT_SERVER,
        envvar="STOKER_SERVER",
        show_default=True,
        show_envvar=True,
        help="grpc://host:port, grpcs://host:port, host:port or unix:/path.",
    ),
    click.option(
        "--instance",
        "instance_name",
        default="",
        envvar="STOKER_INSTANCE",
        show_envvar=True,
        help="Instance name; often empty.",
    ),
    _tls_file("--tls-ca", "PEM file of the authorities to trust, in place of the usual ones."),
    _tls_file("--tls-certificate", "PEM file to show to a server that asks who comes."),
    _tls_file("--tls-key", "PEM file of its private key."),
)


def digests_of(
    _context: click.Context, _parameter: click.Parameter, values: Sequence[str]
) -> list[Digest]:
    """A click callback: the digests that arguments of the form HASH/SIZE name."""
    return [digest_of(_context, _parameter, value) for value in values]


def digest_of(_context: click.Context, _parameter: click.Parameter, value: str) -> Digest:
    """A click callback: the digest that an argument of the form HASH/SIZE names."""
    hash_, _, size = value.partition("/")
    if not re.fullmatch("[0-9]{1,18}", size):
        raise click.BadParameter(f"{value!r} is not of the form HASH/SIZE")
    try:
        return digest_function(0, len(hash_)).named(hash_, int(size))
    except InvalidRequest as error:
        raise click.BadParameter(str(error)) from error


def finite(
    _context: click.Context, _parameter: click.Parameter, value: float | None
) -> float | None:
    """A click callback: refuses what is no number, which no range does."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number of seconds")
    return value


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

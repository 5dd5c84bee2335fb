"""What a remote store and a remote action cache have in common: the way to the other server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Annotated, Protocol

import msgspec
import trio

from stoker import spi
from stoker.client.calls import Calls
from stoker.client.remote import own_metadata, parse_target
from stoker.digest import Digest
from stoker.errors import (
    BlobNotFound,
    ConfigurationError,
    DataLoss,
    FailedPrecondition,
    InvalidRequest,
    StokerError,
    StorageFull,
    Unavailable,
)
from stoker.rpc import ClientTlsCredentials, RpcError, StatusCode, open_channel, status_code

_REFUSALS = frozenset(
    {
        StatusCode.INVALID_ARGUMENT,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.OUT_OF_RANGE,
        StatusCode.PERMISSION_DENIED,
        StatusCode.UNAUTHENTICATED,
        StatusCode.UNIMPLEMENTED,
    }
)


class RemoteSettings(spi.Settings, frozen=True):
    """Settings of the kind ``remote``, for blob stores and for action caches."""

    target: str
    """The server: grpc://host:port, grpcs://host:port, host:port or unix:/path."""
    instance_name: str = ""
    """The instance there."""
    tls_ca: str | None = None
    """PEM file of the authorities to believe; those that gRPC brings along unless given."""
    tls_certificate: str | None = None
    """PEM file of the certificate chain to show to the server."""
    tls_key: str | None = None
    """PEM file of its private key."""
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """How long each message may take. A server that is slower counts as not available."""


class _Status(Protocol):
    @property
    def code(self) -> int: ...
    @property
    def message(self) -> str: ...


@asynccontextmanager
async def open_far_side(settings: RemoteSettings, context: spi.Context) -> AsyncIterator[Calls]:
    """A channel to the server of `settings`. It connects with the first call.

    Raises ConfigurationError.
    """
    try:
        target = parse_target(settings.target)
    except InvalidRequest as error:
        raise ConfigurationError([f"target: {error}"]) from error
    credentials = _credentials(settings, context)
    if credentials and not target.tls:
        raise ConfigurationError(
            [f"target: {settings.target!r} is not grpcs://, but has TLS files"]
        )
    if target.tls and credentials is None:
        credentials = ClientTlsCredentials()
    async with open_channel(target.address, credentials=credentials) as channel:
        yield Calls(channel, settings.target, settings.instance_name, own_metadata())


def _credentials(settings: RemoteSettings, context: spi.Context) -> ClientTlsCredentials | None:
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise ConfigurationError(["tls_certificate and tls_key go together"])
    files = (settings.tls_ca, settings.tls_key, settings.tls_certificate)
    if not any(files):
        return None
    authority, key, chain = (context.path(file).read_bytes() if file else None for file in files)
    return ClientTlsCredentials(
        root_certificates=authority, private_key=key, certificate_chain=chain
    )


@contextmanager
def mapping_errors(
    target: str, digest: Digest | None = None, *, writing: bool = False
) -> Iterator[None]:
    """Raise what the server answers as stoker's own errors; see `far_error`."""
    try:
        yield
    except RpcError as error:
        raise far_error(error, target, digest, writing=writing) from error
    except InvalidRequest as error:
        raise Unavailable(f"the server at {target} answers with nonsense: {error}") from error
    except trio.TooSlowError as error:
        raise Unavailable(f"the server at {target} does not answer in time") from error


def far_error(
    error: RpcError, target: str, digest: Digest | None = None, *, writing: bool = False
) -> StokerError:
    """`error` as one of stoker's: never an absent blob unless the server has said so (STO-04)."""
    return far_status(error, target, digest, writing=writing)


def far_status(
    status: _Status, target: str, digest: Digest | None = None, *, writing: bool = False
) -> StokerError:
    """As `far_error`, of a status that came inside of an answer."""
    code = status_code(status.code)
    message = f"the server at {target} answers {code.name}: {status.message}"
    if digest is not None and not writing:
        if code is StatusCode.NOT_FOUND:
            return BlobNotFound(digest)
        if code is StatusCode.DATA_LOSS:
            return DataLoss(digest, message)
    if code is StatusCode.RESOURCE_EXHAUSTED and writing:
        return StorageFull(message)
    return FailedPrecondition(message) if code in _REFUSALS else Unavailable(message)


def within(timeout_seconds: float) -> AbstractContextManager[object]:
    """A bound for one message."""
    return trio.fail_after(timeout_seconds)

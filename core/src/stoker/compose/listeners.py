"""What is served over gRPC, and where it is listened for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import structlog

from stoker.compose.services import Services
from stoker.config import Configuration
from stoker.errors import ConfigurationError
from stoker.frontend.action_cache import ActionCacheService
from stoker.frontend.admin import AdminService
from stoker.frontend.bytestream import ByteStreamService
from stoker.frontend.capabilities import CapabilitiesService
from stoker.frontend.cas import CasService
from stoker.frontend.execution import ExecutionService
from stoker.frontend.executor_draining import ExecutorDraining
from stoker.frontend.explain import ExplainService
from stoker.frontend.instances import Instances
from stoker.frontend.log_streams import LogStreamService, LogTransfers
from stoker.frontend.operations import OperationsService
from stoker.frontend.status import translate
from stoker.history.records import History
from stoker.log_streams.streams import LogStreams
from stoker.rpc import Server
from stoker.rpc.health import SERVICE_NAME as HEALTH
from stoker.rpc.health import Health
from stoker.rpc.reflection import reflection_services
from stoker.scheduler.scheduler import Scheduler
from stoker.spi import ActionCache, BlobStore
from stoker.tls import load_tls
from stoker.workers.report import PoolReport

log = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""What a request may weigh. The batch limit that is advertised counts the bytes of blobs alone;
the digests beside many tiny ones weigh several times as much (GEN-14). More would let one request
keep all others waiting while it is parsed."""

_REAPI = "build.bazel.remote.execution.v2"
_SERVED = (
    f"{_REAPI}.Capabilities",
    f"{_REAPI}.ContentAddressableStorage",
    f"{_REAPI}.ActionCache",
    f"{_REAPI}.Execution",
    "google.bytestream.ByteStream",
    "google.longrunning.Operations",
    "build.bazel.remote.logstream.v1.LogStreamService",
    "stoker.v1.Explain",
)


def rpc_server(
    instances: Instances,
    scheduler: Scheduler,
    history: History,
    log_streams: LogStreams,
    health: Health,
) -> Server:
    """The server that clients reach. It listens nowhere yet."""
    return Server(
        [
            CapabilitiesService(instances).service(),
            CasService(instances).service(),
            ByteStreamService(instances, LogTransfers(instances, log_streams)).service(),
            LogStreamService(instances, log_streams).service(),
            ActionCacheService(instances).service(),
            ExecutionService(instances, scheduler).service(),
            OperationsService(instances, scheduler).service(),
            ExplainService(instances, scheduler, history).service(),
            health.service,
            *reflection_services([*_SERVED, HEALTH]),
        ],
        translate_error=translate,
        max_receive_message_bytes=MAX_MESSAGE_BYTES,
    )


def admin_server(
    services: Services,
    configuration: Configuration,
    pools: Mapping[str, Callable[[], PoolReport]],
    draining: ExecutorDraining,
) -> Server:
    """The server that whoever runs this one reaches, over the services that others are made of."""
    leaves = services.leaves(configuration)
    admin = AdminService(
        cast("Mapping[str, ActionCache]", leaves["action_caches"]),
        cast("Mapping[str, BlobStore]", leaves["blob_stores"]),
        pools,
        draining,
    )
    return Server([admin.service()], translate_error=translate)


@contextmanager
def announced(health: Health) -> Iterator[None]:
    """Within this context, every service is said to be served."""
    try:
        _set_serving(health, serving=True)
        yield
    finally:
        _set_serving(health, serving=False)


def _set_serving(health: Health, *, serving: bool) -> None:
    for name in ("", *_SERVED):
        health.set_serving(name, serving=serving)


def listen(server: Server, configuration: Configuration) -> tuple[str, ...]:
    """Have `server` listen where the configuration says. Returns where that is, ports chosen.

    Raises ConfigurationError for an address that cannot be listened on.
    """
    credentials = load_tls(configuration)
    addresses = []
    for written in configuration.server.listen:
        unix = written.startswith("unix:")
        address = f"unix:{configuration.path(written[5:])}" if unix else written
        try:
            port = server.add_listener(address, credentials)
        except OSError as error:
            raise ConfigurationError([f"[server] listen: {error}"]) from error
        addresses.append(address if unix else f"{address.rpartition(':')[0]}:{port}")
    return tuple(addresses)


def listen_admin(server: Server, path: Path) -> bool:
    """Listen on the admin socket, which the server's own user alone may reach.

    Without it, for want of a place, the server serves all the same: returns False.
    """
    try:
        with suppress(FileExistsError):
            path.parent.mkdir(parents=True, mode=0o700)
        with _private_files():
            server.add_listener(f"unix:{path}")
    except OSError as error:
        log.warning("there is no admin socket", path=str(path), reason=str(error))
        return False
    return True


@contextmanager
def _private_files() -> Iterator[None]:
    # A chmod afterwards would leave a moment in which anybody can connect.
    previous = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(previous)

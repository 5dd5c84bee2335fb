"""The tables of a configuration as frozen structs, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import msgspec

from stoker.execution.settings import ExecutionSettings
from stoker.history.settings import HistorySettings
from stoker.log_streams.settings import LogStreamSettings
from stoker.machine import usable_memory_bytes, usable_processors, usable_slots
from stoker.resources import ByteCount, Capacity
from stoker.scheduler.settings import SchedulerSettings
from stoker.spi import ActionCacheName, BlobStoreName, Settings, resolve_path
from stoker.storage.completeness import MAX_TREE_BYTES
from stoker.tables import quoted
from stoker.workers.settings import ProtocolName, WorkerSettings

StrategyName = Annotated[str, msgspec.Meta(extra={"refers_to": "strategies"})]
SandboxName = Annotated[str, msgspec.Meta(extra={"refers_to": "sandboxes"})]
ExecutorName = Annotated[str, msgspec.Meta(extra={"refers_to": "executors"})]
PathText = Annotated[str, msgspec.Meta(min_length=1)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]

_DigestFunctionName = Literal["sha256", "blake3", "sha384", "sha512", "sha1", "md5"]
_DIGEST_FUNCTION_NAMES: tuple[_DigestFunctionName, ...] = get_args(_DigestFunctionName)


class ServerTable(Settings, frozen=True):
    """``[server]``."""

    listen: tuple[str, ...] = ("127.0.0.1:8980",)
    """Addresses as host:port, or unix:/path."""
    insecure: bool = False
    """Listen on addresses that other machines reach, without TLS: anybody there may then run
    programs here."""
    tls_certificate: PathText | None = None
    """PEM file of the certificate chain."""
    tls_key: PathText | None = None
    """PEM file of its private key."""
    tls_client_ca: PathText | None = None
    """PEM file of the authorities whose clients are let in; others are turned away."""
    metrics_listen: PathText | None = None
    """An address, as host:port, for metrics in Prometheus's format at ``/metrics``, over plain
    HTTP; unset for none."""
    drain_seconds: Seconds = 20.0
    """How long a server that is told to stop lets actions and calls end by themselves."""
    state_directory: PathText = "stoker-state"
    """Where executors lay out input roots, and where the admin socket is."""


class LogTable(Settings, frozen=True):
    """``[log]``."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"
    """auto: text on a terminal, JSON lines otherwise."""


class ExecutorTable(Settings, frozen=True):
    """``[executors.NAME]``."""

    strategy: StrategyName
    sandbox: SandboxName = "none"
    slots: PositiveInt = msgspec.field(default_factory=usable_slots)
    """How many actions it runs at once, at most."""
    cpus: Annotated[float, msgspec.Meta(ge=0.001)] = msgspec.field(
        default_factory=usable_processors
    )
    """How many processors the actions that it runs at once may ask for together."""
    memory_bytes: ByteCount = msgspec.field(default_factory=usable_memory_bytes)
    """How much memory they may ask for together; a text such as "16GiB" is taken too."""
    properties: dict[str, str | tuple[str, ...]] = msgspec.field(default_factory=dict)
    """What it offers to the platform that actions ask for; ``*`` as a value satisfies any."""
    worker_protocols: tuple[ProtocolName, ...] | None = None
    """How it speaks to persistent workers; unset for all that are installed, empty for never."""
    limits: ExecutionSettings = ExecutionSettings()
    workers: WorkerSettings = WorkerSettings()

    @property
    def capacity(self) -> Capacity:
        """What it has for its actions."""
        return Capacity.of_executor(
            slots=self.slots,
            cpus=self.cpus,
            memory_bytes=self.memory_bytes,
            default_memory_bytes=self.limits.default_memory_bytes,
        )


class InstanceTable(Settings, frozen=True):
    """``[instances.NAME]``; the name is the one that clients give, often empty."""

    blob_store: BlobStoreName
    action_cache: ActionCacheName
    executors: tuple[ExecutorName, ...] = ()
    """Where its actions run; empty for an instance that only caches."""
    client_updates: bool = True
    """Whether clients may write action results, or executors only."""
    digest_functions: tuple[_DigestFunctionName, ...] = _DIGEST_FUNCTION_NAMES
    """How its blobs may be named; the first is what clients are told to prefer."""
    max_blob_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """The largest blob that clients may upload; 0 for no bound."""
    check_actions: bool = False
    """Whether a result that a client writes needs its Action and Command in the CAS (ACU-03)."""
    cache_failures: bool = False
    """Whether results with an exit code other than zero are filed and served (ACG-12)."""
    max_tree_bytes: PositiveInt = MAX_TREE_BYTES
    """A cached result whose trees take more than this together is not served (ACG-13)."""


class Service(NamedTuple):
    """A table of a service: its kind, and the settings that its provider takes."""

    kind: str
    settings: Settings


class ServiceName(NamedTuple):
    """A service, by its sort of table and its name."""

    table: str
    name: str

    def __str__(self) -> str:
        return f"[{self.table}.{quoted(self.name)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """All of it."""

    server: ServerTable
    log: LogTable
    scheduler: SchedulerSettings
    log_streams: LogStreamSettings
    history: HistorySettings
    services: dict[ServiceName, Service]
    """In an order in which each comes after those that it names."""
    executors: dict[str, ExecutorTable]
    instances: dict[str, InstanceTable]
    folder: Path
    """Where relative paths begin."""

    def path(self, text: str) -> Path:
        """The path that a setting means."""
        return resolve_path(self.folder, text)

    @property
    def admin_socket(self) -> Path:
        """Where the server listens to the person who runs it."""
        return self.path(self.server.state_directory) / "admin.socket"

"""The configuration: one TOML file to frozen structs.

Everything that can be known without opening anything is checked here, all of it at once.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec

from stoker.errors import ConfigurationError, InvalidRequest
from stoker.execution.settings import ExecutionSettings
from stoker.frontend.instances import check_instance_name
from stoker.history.settings import HistorySettings
from stoker.log_streams.settings import LogStreamSettings
from stoker.machine import usable_memory_bytes, usable_processors, usable_slots
from stoker.plugins import NOUNS, SUPPLIERS, Catalogue
from stoker.resources import RESOURCE_PROPERTIES, ByteCount, Capacity
from stoker.scheduler.matching import NUMERIC_KINDS, Matching, declared_number
from stoker.scheduler.settings import SchedulerSettings
from stoker.spi import ActionCacheName, BlobStoreName, Settings, resolve_path
from stoker.storage.completeness import MAX_TREE_BYTES
from stoker.tables import convert_table, nearest, quoted, references, toml_type
from stoker.workers.rules import rules_never_reached
from stoker.workers.settings import ProtocolName, WorkerSettings

StrategyName = Annotated[str, msgspec.Meta(extra={"refers_to": "strategies"})]
SandboxName = Annotated[str, msgspec.Meta(extra={"refers_to": "sandboxes"})]
ExecutorName = Annotated[str, msgspec.Meta(extra={"refers_to": "executors"})]
PathText = Annotated[str, msgspec.Meta(min_length=1)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]

SERVICE_TABLES = tuple(NOUNS)

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


def default_document(state: Path, *, local_execution: bool) -> dict[str, Any]:
    """What the server does without a TOML file: cache on disk and, if told so, run actions here."""
    document: dict[str, Any] = {
        "server": {"state_directory": str(state)},
        "blob_stores": {"main": {"kind": "disk", "path": str(state / "cas")}},
        "action_caches": {"main": {"kind": "disk", "path": str(state / "actions")}},
        "instances": {"": {"blob_store": "main", "action_cache": "main"}},
    }
    if local_execution:
        document["executors"] = {"local": {"strategy": "local", "properties": _this_machine()}}
        document["instances"][""]["executors"] = ["local"]
    return document


def _this_machine() -> dict[str, str]:
    names = {"x86_64": "x86-64", "aarch64": "arm-a64"}
    machine = os.uname().machine
    return {"OSFamily": "linux", "ISA": names.get(machine, machine)}


def read_toml(path: Path) -> dict[str, Any]:
    """The document in a TOML file. Raises ConfigurationError naming the file, and the place."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ConfigurationError([f"{path} is nested too deeply"]) from error
    except OSError as error:
        raise ConfigurationError([f"cannot read {path}: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"{path} is not TOML: {error}"]) from error


def check_document(
    document: Mapping[str, Any], folder: Path, catalogue: Catalogue
) -> Configuration:
    """`document` as a configuration. Raises ConfigurationError with all that is wrong with it."""
    return _Check(document, folder, catalogue).configuration()


class _Check:
    """One pass over a document, which collects problems and keeps what is sound."""

    _TABLES = (
        *("server", "log", "scheduler", "log_streams", "history"),
        *(*SERVICE_TABLES, "executors", "instances"),
    )

    def __init__(self, document: Mapping[str, Any], folder: Path, catalogue: Catalogue) -> None:
        self._document = dict(document)
        self._folder = folder
        self._catalogue = catalogue
        self._problems: list[str] = []
        self._services: dict[ServiceName, Service] = {}

    def configuration(self) -> Configuration:
        for name in self._document:
            if name not in self._TABLES:
                self._problems.append(
                    f"there is no table [{quoted(name)}]{nearest(name, self._TABLES)}"
                )
        for name in (*SERVICE_TABLES, "executors", "instances"):
            if not isinstance(self._document.setdefault(name, {}), Mapping):
                self._problems.append(f"[{name}] must hold tables, as [{name}.NAME]")
                self._document[name] = {}
        server = self._table("server", ServerTable)
        log = self._table("log", LogTable)
        scheduler = self._table("scheduler", SchedulerSettings)
        log_streams = self._table("log_streams", LogStreamSettings)
        history = self._table("history", HistorySettings)
        self._read_services()
        executors = dict(self._named("executors", ExecutorTable))
        instances = dict(self._named("instances", InstanceTable))
        if server:
            self._check_listeners(server)
        if scheduler:
            self._check_kinds(scheduler, executors)
        self._check_references(executors, instances)
        self._check_instances(executors, instances)
        services = self._ordered()
        if self._problems:
            raise ConfigurationError(self._problems)
        assert server
        assert log
        assert scheduler
        assert log_streams
        assert history
        return Configuration(
            server=server,
            log=log,
            scheduler=scheduler,
            log_streams=log_streams,
            history=history,
            services=services,
            executors=executors,
            instances=instances,
            folder=self._folder,
        )

    def _table(self, name: str, struct: type[Any]) -> Any:
        return convert_table(name, self._document.get(name, {}), struct, self._problems)

    def _entries(self, table: str) -> Iterator[tuple[str, object]]:
        yield from self._document[table].items()

    def _named(self, table: str, struct: type[Any]) -> Iterator[tuple[str, Any]]:
        for name, raw in self._entries(table):
            settings = convert_table(f"{table}.{quoted(name)}", raw, struct, self._problems)
            if settings is not None:
                yield name, settings

    # --- services

    def _read_services(self) -> None:
        for table in SERVICE_TABLES:
            for name, raw in self._entries(table):
                self._read_service(ServiceName(table, name), raw)

    def _read_service(self, name: ServiceName, raw: object) -> None:
        if not isinstance(raw, Mapping):
            self._problems.append(f"{name} must be a table, not {toml_type(raw)}")
            return
        if not isinstance(raw.get("kind"), str):
            got = f", got {raw['kind']!r}" if "kind" in raw else ""
            self._problems.append(f"{name} needs the key 'kind' (a string){got}")
            return
        kind = self._catalogue.kinds(name.table).get(raw["kind"])
        if kind is None:
            self._problems.append(f"{name} kind: {self._unknown_kind(name.table, raw['kind'])}")
            return
        rest = {key: value for key, value in raw.items() if key != "kind"}
        table = f"{name.table}.{quoted(name.name)}"
        settings = convert_table(table, rest, kind.provider.settings, self._problems)
        if settings is not None:
            self._services[name] = Service(kind.name, settings)

    def _unknown_kind(self, table: str, kind: str) -> str:
        installed = self._catalogue.kinds(table)
        known = {name: package for (where, name), package in SUPPLIERS.items() if where == table}
        message = f"no {NOUNS[table]} of kind {kind!r} is installed"
        if package := known.get(kind):
            return f"{message}; the package {package} supplies it"
        hint = nearest(kind, {*installed, *known})
        absent = [f"{name!r} comes with {known[name]}" for name in sorted({*known} - {*installed})]
        return f"{message}{hint}{''.join(f' ({note})' for note in absent)}"

    # --- references

    def _check_references(
        self, executors: Mapping[str, ExecutorTable], instances: Mapping[str, InstanceTable]
    ) -> None:
        for name, service in tuple(self._services.items()):
            self._check_names(str(name), service.settings)
        for executor, settings in executors.items():
            self._check_executor(executor, settings)
            self._check_names(f"[executors.{quoted(executor)}]", settings)
            if settings.worker_protocols is None:
                for protocol in self._catalogue.kinds("worker_protocols"):
                    self._exists("worker_protocols", protocol)
        for instance, table in instances.items():
            self._check_names(f"[instances.{quoted(instance)}]", table)

    def _check_executor(self, name: str, settings: ExecutorTable) -> None:
        table = f"executors.{quoted(name)}"
        if not _FOLDER_NAME.fullmatch(name):
            self._problems.append(
                f"[{table}]: an executor's name is also a folder's; "
                f"use letters, digits, '-', '_' and '.', and begin with a letter or digit"
            )
        limits = settings.limits
        if limits.default_timeout_seconds > limits.maximum_timeout_seconds:
            self._problems.append(
                f"[{table}.limits] default_timeout_seconds is above maximum_timeout_seconds"
            )
        if (limits.default_memory_bytes or 0) > settings.memory_bytes:
            self._problems.append(
                f"[{table}.limits] default_memory_bytes is above the executor's memory_bytes, "
                f"{settings.memory_bytes}"
            )
        self._check_rules(table, settings)
        for amount in sorted(RESOURCE_PROPERTIES & settings.properties.keys()):
            self._problems.append(
                f"[{table}] properties: {amount!r} asks for an amount and is not matched as a "
                f"value; say what there is by the keys cpus and memory_bytes of [{table}]"
            )

    def _check_kinds(
        self, scheduler: SchedulerSettings, executors: Mapping[str, ExecutorTable]
    ) -> None:
        for name in sorted(RESOURCE_PROPERTIES & scheduler.properties.keys()):
            self._problems.append(
                f"[scheduler.properties] {name!r} asks for processors or memory, "
                f"and is always consumed"
            )
        for executor, settings in executors.items():
            self._check_numbers(executor, settings, scheduler.matching)

    def _check_numbers(self, executor: str, settings: ExecutorTable, matching: Matching) -> None:
        for name, values in settings.properties.items():
            try:
                if matching.kind(name) in NUMERIC_KINDS:
                    declared_number((values,) if isinstance(values, str) else values)
            except ValueError:
                self._problems.append(
                    f"[executors.{quoted(executor)}] properties: {name} is "
                    f"{matching.kind(name)!r} by [scheduler.properties] and needs a number such "
                    f"as '2' or '0.5', got {values!r}"
                )

    def _check_rules(self, table: str, settings: ExecutorTable) -> None:
        rules, offered = settings.workers.rules, settings.worker_protocols
        for position, earlier in rules_never_reached(rules):
            self._problems.append(
                f"[{table}.workers.rules[{position}]] never counts: rules[{earlier}] fits all "
                f"that it fits, and the first rule that fits counts alone"
            )
        for position, rule in enumerate(rules):
            if rule.protocol is not None and offered is not None and rule.protocol not in offered:
                self._problems.append(
                    f"[{table}.workers.rules[{position}]] protocol: {rule.protocol!r} is not among "
                    f"the worker_protocols of [{table}]{nearest(rule.protocol, offered)}"
                )

    def _check_names(self, owner: str, settings: Settings) -> None:
        for key, table, name in references(settings):
            if not self._exists(table, name):
                declared = [*self._document[table]]
                self._problems.append(
                    f"{owner} {key}: there is no [{table}.{quoted(name)}]"
                    f"{self._other_names(table, name, declared)}"
                )

    def _other_names(self, table: str, name: str, declared: list[str]) -> str:
        if table in SERVICE_TABLES and not declared:
            return f", and {self._unknown_kind(table, name)}"
        return nearest(name, declared)

    def _exists(self, table: str, name: str) -> bool:
        """Whether a table is there. An installed kind that needs no settings needs no table."""
        if name in self._document[table]:
            return True
        if table not in SERVICE_TABLES or name not in self._catalogue.kinds(table):
            return False
        provider = self._catalogue.kinds(table)[name].provider
        if any(field.required for field in msgspec.structs.fields(provider.settings)):
            return False
        self._services[ServiceName(table, name)] = Service(name, provider.settings())
        return True

    def _ordered(self) -> dict[ServiceName, Service]:
        graph = {
            name: [ServiceName(table, target) for _, table, target in references(service.settings)]
            for name, service in self._services.items()
        }
        try:
            order = [*TopologicalSorter(graph).static_order()]
        except CycleError as error:
            path = " -> ".join(str(name) for name in reversed(error.args[1]))
            self._problems.append(f"these name each other in a circle: {path}")
            return {}
        return {name: self._services[name] for name in order if name in self._services}

    # --- what single tables cannot tell

    def _check_listeners(self, server: ServerTable) -> None:
        if not server.listen:
            self._problems.append("[server] listen: give at least one address")
        tls = server.tls_certificate is not None
        if tls != (server.tls_key is not None):
            self._problems.append("[server] tls_certificate and tls_key go together")
        if server.tls_client_ca is not None and not tls:
            self._problems.append("[server] tls_client_ca needs tls_certificate and tls_key")
        if (metrics := server.metrics_listen) and (
            metrics.startswith("unix:") or _bad_address(metrics)
        ):
            self._problems.append(f"[server] metrics_listen: {metrics!r} is not host:port")
        for address in server.listen:
            if reason := _bad_address(address):
                self._problems.append(f"[server] listen: {address!r} {reason}")
            elif not tls and not server.insecure and not _is_loopback(address):
                self._problems.append(
                    f"[server] listen: {address!r} is open to other machines without TLS; "
                    f"give tls_certificate and tls_key, or say insecure = true"
                )

    def _check_instances(
        self, executors: Mapping[str, ExecutorTable], instances: Mapping[str, InstanceTable]
    ) -> None:
        if not self._document["instances"]:
            self._problems.append("there is no [instances.NAME]; without one nothing is served")
        stores: dict[str, tuple[str, str]] = {}
        for name, instance in instances.items():
            try:
                check_instance_name(name)
            except InvalidRequest as error:
                self._problems.append(f"[instances.{quoted(name)}]: {error}")
            if not instance.digest_functions:
                self._problems.append(
                    f"[instances.{quoted(name)}] digest_functions: give at least one"
                )
            for executor in instance.executors:
                other, store = stores.setdefault(executor, (name, instance.blob_store))
                if executor in executors and store != instance.blob_store:
                    self._problems.append(
                        f"[executors.{quoted(executor)}] serves instances {other!r} and {name!r} "
                        f"with different blob stores, {store!r} and {instance.blob_store!r}; "
                        f"give each an executor of its own"
                    )


_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _bad_address(address: str) -> str | None:
    if address.startswith("unix:"):
        return None if address.removeprefix("unix:") else "names no path"
    host, colon, port = address.rpartition(":")
    if not colon or not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        return "is neither host:port nor unix:/path"
    return None


def _is_loopback(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def effective_document(configuration: Configuration) -> dict[str, Any]:
    """`configuration`, defaults included, as a document that means the same."""
    document: dict[str, Any] = {
        "server": _plain(configuration.server),
        "log": _plain(configuration.log),
        "scheduler": _plain(configuration.scheduler),
    }
    for name, service in configuration.services.items():
        table = document.setdefault(name.table, {})
        table[name.name] = {"kind": service.kind, **_plain(service.settings)}
    for table, entries in (
        ("executors", configuration.executors),
        ("instances", configuration.instances),
    ):
        if entries:
            document[table] = {name: _plain(settings) for name, settings in entries.items()}
    return document


def _plain(settings: Settings) -> dict[str, Any]:
    """`settings` in TOML's types; TOML has no null, so what is unset is left out."""
    plain: dict[str, Any] = _without_none(msgspec.to_builtins(settings))
    return plain


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(held) for key, held in value.items() if held is not None}
    return [_without_none(item) for item in value] if isinstance(value, (list, tuple)) else value

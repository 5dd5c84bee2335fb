"""The check of a document, as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stoker.config.executors import executor_problems, property_problems
from stoker.config.instances import instance_problems
from stoker.config.listeners import listener_problems
from stoker.config.services import SERVICE_TABLES, Services
from stoker.config.structs import Configuration, ExecutorTable, InstanceTable, LogTable, ServerTable
from stoker.errors import ConfigurationError
from stoker.history.settings import HistorySettings
from stoker.log_streams.settings import LogStreamSettings
from stoker.plugins import Catalogue
from stoker.scheduler.settings import SchedulerSettings
from stoker.spi import Settings
from stoker.tables import StructT, convert_table, nearest, quoted

_SINGLE_TABLES: dict[str, type[Settings]] = {
    "server": ServerTable,
    "log": LogTable,
    "scheduler": SchedulerSettings,
    "log_streams": LogStreamSettings,
    "history": HistorySettings,
}
_TABLES_OF_TABLES = (*SERVICE_TABLES, "executors", "instances")


def check_document(
    document: Mapping[str, Any], folder: Path, catalogue: Catalogue
) -> Configuration:
    """`document` as a configuration. Raises ConfigurationError with all that is wrong with it."""
    problems: list[str] = []
    tables = _known_tables(document, problems)
    single: dict[str, Any] = {
        name: convert_table(name, tables.get(name, {}), struct, problems)
        for name, struct in _SINGLE_TABLES.items()
    }
    services = Services(tables, catalogue, problems)
    services.read()
    executors = dict(_named("executors", tables, ExecutorTable, problems))
    instances = dict(_named("instances", tables, InstanceTable, problems))
    if single["server"]:
        problems += listener_problems(single["server"])
    if single["scheduler"]:
        problems += property_problems(single["scheduler"], executors)
    _check_references(services, executors, instances, problems)
    if not tables["instances"]:
        problems.append("there is no [instances.NAME]; without one nothing is served")
    problems += instance_problems(instances, executors)
    ordered = services.ordered()
    if problems:
        raise ConfigurationError(problems)
    return Configuration(
        **single, services=ordered, executors=executors, instances=instances, folder=folder
    )


def _known_tables(document: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The tables of `document`; those that hold tables are there, and do."""
    known = (*_SINGLE_TABLES, *_TABLES_OF_TABLES)
    problems += [
        f"there is no table [{quoted(name)}]{nearest(name, known)}"
        for name in document
        if name not in known
    ]
    tables = dict(document)
    for name in _TABLES_OF_TABLES:
        if not isinstance(tables.setdefault(name, {}), Mapping):
            problems.append(f"[{name}] must hold tables, as [{name}.NAME]")
            tables[name] = {}
    return tables


def _named(
    table: str, tables: Mapping[str, Any], struct: type[StructT], problems: list[str]
) -> Iterator[tuple[str, StructT]]:
    for name, raw in tables[table].items():
        settings = convert_table(f"{table}.{quoted(name)}", raw, struct, problems)
        if settings is not None:
            yield name, settings


def _check_references(
    services: Services,
    executors: Mapping[str, ExecutorTable],
    instances: Mapping[str, InstanceTable],
    problems: list[str],
) -> None:
    services.check_own_references()
    for name, settings in executors.items():
        problems += executor_problems(name, settings)
        services.check_references(f"[executors.{quoted(name)}]", settings)
        if settings.worker_protocols is None:
            services.add_installed("worker_protocols")
    for name, table in instances.items():
        services.check_references(f"[instances.{quoted(name)}]", table)

"""The tables of services: what kind each is of, and which of them name which."""

from __future__ import annotations

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec

from stoker.config.structs import Service, ServiceName
from stoker.plugins import NOUNS, SUPPLIERS, Catalogue
from stoker.spi import Settings
from stoker.tables import convert_table, nearest, quoted, references, toml_type

SERVICE_TABLES = tuple(NOUNS)


class Services:
    """The services of a document. What is wrong with them is added to `problems`."""

    def __init__(
        self, document: Mapping[str, Any], catalogue: Catalogue, problems: list[str]
    ) -> None:
        self._document = document
        self._catalogue = catalogue
        self._problems = problems
        self._services: dict[ServiceName, Service] = {}

    def read(self) -> None:
        """Read every table of a service."""
        for table in SERVICE_TABLES:
            for name, raw in self._document[table].items():
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

    def check_own_references(self) -> None:
        """Check what services name. To be called when all of them have been read."""
        for name, service in tuple(self._services.items()):
            self.check_references(str(name), service.settings)

    def check_references(self, owner: str, settings: Settings) -> None:
        """Check that all is there that `settings` name, the table that `owner` stands for."""
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

    def add_installed(self, table: str) -> None:
        """Add a service of each kind that is installed and needs no table."""
        for kind in self._catalogue.kinds(table):
            self._exists(table, kind)

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

    def ordered(self) -> dict[ServiceName, Service]:
        """All services that are there, each behind those that it names."""
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

"""Finds what is installed: the kinds of every service, and the package that offers each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType, ModuleType
from typing import Any

import pluggy

from stoker import hookspecs
from stoker.errors import ConfigurationError
from stoker.spi import Provider

GROUP = "stoker"
"""The entry point group of plugins."""

HOOKS: Mapping[str, str] = MappingProxyType(
    {
        "blob_stores": "stoker_blob_stores",
        "action_caches": "stoker_action_caches",
        "strategies": "stoker_execution_strategies",
        "sandboxes": "stoker_sandboxes",
        "worker_protocols": "stoker_worker_protocols",
    }
)
"""TOML table to the hook that offers its kinds."""

NOUNS: Mapping[str, str] = MappingProxyType(
    {
        "blob_stores": "blob store",
        "action_caches": "action cache",
        "strategies": "execution strategy",
        "sandboxes": "sandbox",
        "worker_protocols": "worker protocol",
    }
)
"""What one entry of each table is called in messages."""

SUPPLIERS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("blob_stores", "disk"): "stoker-storage-disk",
        ("action_caches", "disk"): "stoker-storage-disk",
        ("blob_stores", "s3"): "stoker-storage-s3",
        ("blob_stores", "gcs"): "stoker-storage-s3",
        ("blob_stores", "azure"): "stoker-storage-s3",
        ("action_caches", "s3"): "stoker-storage-s3",
        ("action_caches", "gcs"): "stoker-storage-s3",
        ("action_caches", "azure"): "stoker-storage-s3",
        ("strategies", "local"): "stoker-exec-local",
        ("strategies", "docker"): "stoker-exec-docker",
        ("sandboxes", "bubblewrap"): "stoker-sandbox-bubblewrap",
        ("worker_protocols", "proto"): "stoker-worker-proto",
        ("worker_protocols", "json"): "stoker-worker-json",
    }
)
"""Kinds that are known to exist, and the packages to install for them."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One installed kind of a service."""

    name: str
    table: str
    provider: Provider[Any]
    package: str
    version: str


class Catalogue:
    """Every installed kind, by table and name."""

    def __init__(self, kinds: Mapping[str, Mapping[str, Kind]]) -> None:
        self._kinds = kinds

    def kinds(self, table: str) -> Mapping[str, Kind]:
        """The kinds that `table` may name."""
        return self._kinds[table]

    def __iter__(self) -> Iterator[Kind]:
        for kinds in self._kinds.values():
            yield from kinds.values()


def load_catalogue() -> Catalogue:
    """Import every installed plugin and ask it what it offers.

    Raises ConfigurationError, with one problem each, for plugins that cannot be imported, offer
    something else than providers, or offer a kind that another package offers too.
    """
    loader = _Loader()
    for entry_point in sorted(metadata.entry_points(group=GROUP), key=lambda e: e.name):
        loader.load(entry_point)
    return loader.catalogue()


class _Loader:
    def __init__(self) -> None:
        self._plugins = pluggy.PluginManager(GROUP)
        self._plugins.add_hookspecs(hookspecs)
        self._problems: list[str] = []
        self._kinds: dict[str, dict[str, Kind]] = {table: {} for table in HOOKS}

    def load(self, entry_point: metadata.EntryPoint) -> None:
        package, version = _origin(entry_point)
        try:
            module = entry_point.load()
            self._plugins.register(module, entry_point.name)
            self._plugins.check_pending()
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises, it is named
            self._problems.append(
                f"plugin {entry_point.name!r} of package {package} cannot be loaded: "
                f"{type(error).__name__}: {error}"
            )
            return
        for table, hook in HOOKS.items():
            for name, provider in self._offers(module, hook).items():
                self._add(Kind(name, table, provider, package, version))

    def _offers(self, module: ModuleType, hook: str) -> Mapping[str, Provider[Any]]:
        for implementation in getattr(self._plugins.hook, hook).get_hookimpls():
            if implementation.plugin is module:
                offers: Mapping[str, Provider[Any]] = implementation.function()
                return offers
        return {}

    def _add(self, kind: Kind) -> None:
        offered: object = kind.provider
        if not isinstance(offered, Provider):
            self._problems.append(
                f"package {kind.package} offers {NOUNS[kind.table]} kind {kind.name!r}, "
                f"but not as a stoker.spi.Provider"
            )
        elif other := self._kinds[kind.table].get(kind.name):
            self._problems.append(
                f"{NOUNS[kind.table]} kind {kind.name!r} is offered by two packages, "
                f"{other.package} and {kind.package}: uninstall one of them"
            )
        else:
            self._kinds[kind.table][kind.name] = kind

    def catalogue(self) -> Catalogue:
        if self._problems:
            raise ConfigurationError(self._problems)
        return Catalogue(self._kinds)


def _origin(entry_point: metadata.EntryPoint) -> tuple[str, str]:
    if entry_point.dist is None:
        return entry_point.value, "unknown"
    return entry_point.dist.name, entry_point.dist.version

"""Services: every table of the configuration that names a kind of a plugin, opened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import NamedTuple, cast

from stoker.config import SERVICE_TABLES, Configuration, ExecutorTable, InstanceTable, ServiceName
from stoker.errors import ConfigurationError, StokerError, sole_cause
from stoker.execution.enclosed import Enclosed
from stoker.execution.limited import Limited
from stoker.plugins import Catalogue
from stoker.spi import (
    ActionCache,
    BlobStore,
    Context,
    ExecutionStrategy,
    Sandbox,
    WorkerProtocol,
)
from stoker.storage.completeness import CompleteActionCache
from stoker.storage.verifying import VerifyingBlobStore
from stoker.tables import references


class Services:
    """Every opened service, by its sort of table and its name."""

    def __init__(self, opened: Mapping[str, Mapping[str, object]]) -> None:
        self._opened = opened
        self._verifying = {
            name: VerifyingBlobStore(cast("BlobStore", store))
            for name, store in opened["blob_stores"].items()
        }

    def blob_store(self, name: str) -> BlobStore:
        """The store of this name, which verifies what is written to it."""
        return self._verifying[name]

    def action_cache(self, table: InstanceTable) -> CompleteActionCache:
        """The instance's cache, which serves whole results only."""
        cache = cast("ActionCache", self._opened["action_caches"][table.action_cache])
        return CompleteActionCache(
            cache,
            self.blob_store(table.blob_store),
            max_tree_bytes=table.max_tree_bytes,
            cache_failures=table.cache_failures,
        )

    def leaves(self, configuration: Configuration) -> dict[str, dict[str, object]]:
        """All that stand on no other service, as they were opened: the rest is made of them."""
        leaves = _no_services()
        for name, (_, settings) in configuration.services.items():
            if not any(references(settings)):
                leaves[name.table][name.name] = self._opened[name.table][name.name]
        return leaves

    def enclosed(self, table: ExecutorTable) -> Enclosed:
        """The strategy of an executor, within its sandbox."""
        strategy = cast("ExecutionStrategy", self._opened["strategies"][table.strategy])
        return Enclosed(strategy, cast("Sandbox", self._opened["sandboxes"][table.sandbox]))

    def worker_protocols(self, names: tuple[str, ...] | None) -> dict[str, WorkerProtocol]:
        """Those of these names; all for None."""
        protocols = cast("Mapping[str, WorkerProtocol]", self._opened["worker_protocols"])
        return {name: protocols[name] for name in (protocols if names is None else names)}


@asynccontextmanager
async def open_services(
    configuration: Configuration, catalogue: Catalogue
) -> AsyncIterator[Services]:
    """Open every service of the configuration, those that others name first.

    Raises ConfigurationError naming the table of one that cannot be opened.
    """
    opened = _no_services()
    async with AsyncExitStack() as stack:
        for name in configuration.services:
            await _open_service(name, configuration, catalogue, opened, stack)
        yield Services(opened)


def _no_services() -> dict[str, dict[str, object]]:
    return {table: {} for table in SERVICE_TABLES}


async def _open_service(
    name: ServiceName,
    configuration: Configuration,
    catalogue: Catalogue,
    opened: dict[str, dict[str, object]],
    stack: AsyncExitStack,
) -> None:
    kind, settings = configuration.services[name]
    provider = catalogue.kinds(name.table)[kind].provider
    context = Context(name.name, configuration.folder, opened)
    with _naming(name):
        opened[name.table][name.name] = await stack.enter_async_context(
            provider.open(settings, context)
        )


@contextmanager
def _naming(name: ServiceName) -> Iterator[None]:
    """Adds the name of a table to whatever goes wrong while it is opened."""
    try:
        yield
    except Exception as error:
        cause = sole_cause(error)
        if isinstance(cause, StokerError | OSError):
            raise ConfigurationError([f"{name} cannot be opened: {cause}"]) from error
        raise


class Trial(NamedTuple):
    """What became of opening every service once."""

    services: list[tuple[ServiceName, str | None]]
    """Each with what is wrong with it, or None."""
    enforcement: dict[str, Sequence[str]]
    """How each executor whose services can be opened isolates and limits its actions."""


async def try_services(configuration: Configuration, catalogue: Catalogue) -> Trial:
    """Open every service once."""
    outcomes: dict[ServiceName, str | None] = {}
    opened = _no_services()
    async with AsyncExitStack() as stack:
        for name, (_, settings) in configuration.services.items():
            needed = [ServiceName(table, other) for _, table, other in references(settings)]
            if failed := next((other for other in needed if outcomes[other]), None):
                outcomes[name] = f"{name} needs {failed}, which cannot be opened"
                continue
            try:
                await _open_service(name, configuration, catalogue, opened, stack)
                outcomes[name] = None
            except ConfigurationError as error:
                outcomes[name] = str(error)
        sound = Services(opened)
        enforcement = {
            name: Limited(sound.enclosed(table), table.limits).enforcement()
            for name, table in configuration.executors.items()
            if table.strategy in opened["strategies"] and table.sandbox in opened["sandboxes"]
        }
    return Trial([*outcomes.items()], enforcement)

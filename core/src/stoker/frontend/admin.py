"""The Admin service: what the person who runs the server may see and do.

Whoever reaches it may do all of it, so it is served on a socket of that person's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

from stoker.errors import InvalidRequest, Unsupported
from stoker.frontend.executor_draining import ExecutorDraining
from stoker.frontend.provenance import read_provenance
from stoker.frontend.worker_status import executor_workers
from stoker.protos import admin_pb2 as admin
from stoker.protos.provenance_pb2 import Provenance
from stoker.rpc import ServerCall, Service, unary_stream
from stoker.spi import ActionCache, ActionKey, ActionResult, BlobStore
from stoker.workers.report import PoolReport

_KEYS_PER_REMOVAL = 256
_BLOBS_PER_PROGRESS = 1000

Visit = Callable[[ActionKey, admin.ListedResult], Awaitable[None]]


class AdminService:
    """Looks after caches, stores and executors, by the names of their tables."""

    def __init__(
        self,
        action_caches: Mapping[str, ActionCache],
        blob_stores: Mapping[str, BlobStore],
        pools: Mapping[str, Callable[[], PoolReport]] | None = None,
        draining: ExecutorDraining | None = None,
    ) -> None:
        self._action_caches = action_caches
        self._blob_stores = blob_stores
        self._pools = pools or {}
        self._draining = draining

    def service(self) -> Service:
        return Service(
            "stoker.admin.v1.Admin",
            {
                "ListResults": unary_stream(
                    self.list_results, admin.ListResultsRequest, admin.ListedResult
                ),
                "PurgeResults": unary_stream(
                    self.purge_results, admin.PurgeResultsRequest, admin.ListedResult
                ),
                "Scrub": unary_stream(self.scrub, admin.ScrubRequest, admin.ScrubProgress),
                "ListWorkers": unary_stream(
                    self.list_workers, admin.ListWorkersRequest, admin.ExecutorWorkers
                ),
                "DrainExecutors": unary_stream(
                    self.drain_executors, admin.DrainExecutorsRequest, admin.ExecutorStatus
                ),
            },
        )

    # --- results

    async def list_results(self, request: admin.ListResultsRequest, call: ServerCall) -> None:
        async def tell(_: ActionKey, listed: admin.ListedResult) -> None:
            await call.send(listed)

        for name, cache in self._action_caches.items():
            try:
                await _visit_entries(name, cache, request.filter, tell)
            except Unsupported as error:
                await call.send(admin.ListedResult(action_cache=name, trouble=str(error)))

    async def purge_results(self, request: admin.PurgeResultsRequest, call: ServerCall) -> None:
        if not (request.filter.ByteSize() or request.all):
            raise InvalidRequest("a filter that passes every result needs 'all' beside it")
        for name, cache in self._action_caches.items():
            removal = _Removal(cache, call, dry_run=request.dry_run)
            try:
                await _visit_entries(name, cache, request.filter, removal.add)
                await removal.finish()
            except Unsupported as error:
                await call.send(admin.ListedResult(action_cache=name, trouble=str(error)))

    # --- blobs

    async def scrub(self, request: admin.ScrubRequest, call: ServerCall) -> None:
        names = list(request.blob_stores) or list(self._blob_stores)
        for name in names:
            if name not in self._blob_stores:
                known = ", ".join(map(repr, self._blob_stores))
                raise InvalidRequest(f"there is no blob store {name!r} to scrub: there are {known}")
        for name in names:
            await self._scrub(name, call)

    async def _scrub(self, name: str, call: ServerCall) -> None:
        checked = 0
        try:
            async with self._blob_stores[name].scrub() as findings:
                async for finding in findings:
                    checked = finding.checked
                    if not finding.problem and checked % _BLOBS_PER_PROGRESS:
                        continue
                    digest = str(finding.digest) if finding.digest else ""
                    await call.send(
                        admin.ScrubProgress(
                            blob_store=name, digest=digest, problem=finding.problem, checked=checked
                        )
                    )
        except Unsupported as error:
            await call.send(admin.ScrubProgress(blob_store=name, problem=str(error), done=True))
        else:
            await call.send(admin.ScrubProgress(blob_store=name, checked=checked, done=True))

    # --- executors

    async def list_workers(self, request: admin.ListWorkersRequest, call: ServerCall) -> None:
        for name in self._executors(request.executors):
            await call.send(executor_workers(name, self._pools[name]()))

    async def drain_executors(self, request: admin.DrainExecutorsRequest, call: ServerCall) -> None:
        if self._draining is None:
            raise Unsupported("there are no executors here")
        names = self._executors(request.executors)
        for name in names if request.executors else ():
            if request.resume:
                self._draining.resume(name)
            else:
                self._draining.drain(name)
        for status in self._draining.statuses(names):
            await call.send(status)

    def _executors(self, asked: Iterable[str]) -> list[str]:
        """Those that are asked for, each once, or all. Raises InvalidRequest."""
        names = [*dict.fromkeys(asked)] or [*self._pools]
        for name in names:
            if name not in self._pools:
                known = ", ".join(map(repr, self._pools)) or "none"
                raise InvalidRequest(f"there is no executor {name!r} in use; there are: {known}")
        return names


class _Removal:
    """Removes results some at a time, and tells each once it is gone."""

    def __init__(self, cache: ActionCache, call: ServerCall, *, dry_run: bool) -> None:
        self._cache = cache
        self._call = call
        self._dry_run = dry_run
        self._waiting: dict[ActionKey, admin.ListedResult] = {}

    async def add(self, key: ActionKey, listed: admin.ListedResult) -> None:
        self._waiting[key] = listed
        if len(self._waiting) == _KEYS_PER_REMOVAL:
            await self.finish()

    async def finish(self) -> None:
        """Remove what still waits."""
        if self._waiting and not self._dry_run:
            await self._cache.remove(self._waiting.keys())
        for listed in self._waiting.values():
            await self._call.send(listed)
        self._waiting.clear()


async def _visit_entries(
    name: str, cache: ActionCache, wanted: admin.ResultFilter, visit: Visit
) -> None:
    async with cache.open_entries() as keys:
        async for key in keys:
            if not _names(wanted, key):
                continue
            # None: it has gone meanwhile, or was damaged and is gone now.
            result = await cache.peek(key)
            if result is not None and _passes(wanted, read_provenance(result)):
                await visit(key, _listed(name, key, result))


def _names(wanted: admin.ResultFilter, key: ActionKey) -> bool:
    if wanted.HasField("instance_name") and wanted.instance_name != key.namespace:
        return False
    return key.action.hash.startswith(wanted.action_hash)


def _passes(wanted: admin.ResultFilter, provenance: Provenance | None) -> bool:
    found = provenance or Provenance()
    for field in ("tool_name", "tool_invocation_id", "executor", "peer", "principal"):
        if (value := getattr(wanted, field)) and value != getattr(found, field):
            return False
    written_ns = found.written_at.ToNanoseconds()
    if wanted.HasField("written_before") and not (
        0 < written_ns < wanted.written_before.ToNanoseconds()
    ):
        return False
    return not (
        wanted.HasField("written_after") and written_ns <= wanted.written_after.ToNanoseconds()
    )


def _listed(name: str, key: ActionKey, result: ActionResult) -> admin.ListedResult:
    return admin.ListedResult(
        action_cache=name,
        instance_name=key.namespace,
        digest_function=key.action.function.name,
        action_hash=key.action.hash,
        action_size_bytes=key.action.size_bytes,
        exit_code=result.exit_code,
        provenance=read_provenance(result),
    )

"""The kinds that come with the core package itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from stoker import spi
from stoker.client import far_side, result_cache, store
from stoker.spi import ActionCache, BlobStore, Provider, Sandbox, Settings
from stoker.storage import existence, memory, read_only, tiered, tiered_actions


@spi.hookimpl
def stoker_blob_stores() -> Mapping[str, Provider[BlobStore]]:
    return {
        "memory": Provider(
            memory.MemorySettings,
            memory.open_memory_blob_store,
            "in memory, gone when the server stops",
        ),
        "read-only": Provider(
            read_only.ReadOnlyBlobStoreSettings,
            read_only.open_read_only_blob_store,
            "another store, without writing",
        ),
        "tiered": Provider(
            tiered.TieredBlobStoreSettings,
            tiered.open_tiered_blob_store,
            "a near store in front of a far one",
        ),
        "existence": Provider(
            existence.ExistenceSettings,
            existence.open_existence_blob_store,
            "remembers for a while which blobs another store has",
        ),
        "remote": Provider(
            far_side.RemoteSettings,
            store.open_remote_blob_store,
            "the CAS of another REAPI server",
        ),
    }


@spi.hookimpl
def stoker_action_caches() -> Mapping[str, Provider[ActionCache]]:
    return {
        "memory": Provider(
            memory.MemorySettings,
            memory.open_memory_action_cache,
            "in memory, gone when the server stops",
        ),
        "read-only": Provider(
            read_only.ReadOnlyActionCacheSettings,
            read_only.open_read_only_action_cache,
            "another cache, without writing",
        ),
        "tiered": Provider(
            tiered_actions.TieredActionCacheSettings,
            tiered_actions.open_tiered_action_cache,
            "a near cache in front of a far one",
        ),
        "remote": Provider(
            result_cache.RemoteActionCacheSettings,
            result_cache.open_remote_action_cache,
            "the action cache of another REAPI server",
        ),
    }


class NoSandbox(Sandbox):
    """Runs processes as they are: they see what the server's user sees."""

    def enclose(self, spec: spi.ProcessSpec) -> AbstractAsyncContextManager[spi.ProcessSpec]:
        return nullcontext(spec)


class NoSandboxSettings(Settings, frozen=True):
    """``[sandboxes.NAME]`` with ``kind = "none"``."""


@asynccontextmanager
async def _open_no_sandbox(_: NoSandboxSettings, __: spi.Context) -> AsyncIterator[Sandbox]:
    yield NoSandbox()


@spi.hookimpl
def stoker_sandboxes() -> Mapping[str, Provider[Sandbox]]:
    return {"none": Provider(NoSandboxSettings, _open_no_sandbox, "no enclosure at all")}

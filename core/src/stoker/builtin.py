"""The kinds that come with the core package itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from stoker import spi
from stoker.spi import ActionCache, BlobStore, Provider, Sandbox, Settings
from stoker.storage import memory, read_only


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

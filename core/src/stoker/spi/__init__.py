"""The public door: all that a plugin may import, but for the generated :mod:`stoker.protos`.

A plugin is a module with hooks (:mod:`stoker.hookspecs`), each returning providers. A provider says
which settings its TOML table takes and how to open the service::

    class Settings(spi.Settings):
        path: str

    @asynccontextmanager
    async def open_store(settings: Settings, context: spi.Context) -> AsyncIterator[MyStore]:
        yield MyStore(context.path(settings.path))

    @spi.hookimpl
    def stoker_blob_stores() -> Mapping[str, spi.Provider[spi.BlobStore]]:
        return {"mine": spi.Provider(Settings, open_store, "blobs in my place")}

The services below have one to three abstract methods. A method that a later release adds comes
with a default body, so that an old plugin lives on. Each subject has a module of its own below this
one, where its promises are to be read; they are no part of the door: import from here.
"""

from __future__ import annotations

from stoker.digest import DIGEST_FUNCTIONS, SHA256, Digest, DigestFunction
from stoker.errors import (
    BlobNotFound,
    ConfigurationError,
    DataLoss,
    DigestMismatch,
    FailedPrecondition,
    InputsMissing,
    InvalidRequest,
    MalformedResponse,
    OffsetOutOfRange,
    ProgramNotStarted,
    StokerError,
    StorageFull,
    Unavailable,
    Unsupported,
    UploadInProgress,
)
from stoker.protos.remote_execution_pb2 import ActionResult
from stoker.protos.worker_protocol_pb2 import WorkRequest, WorkResponse
from stoker.spi.action_cache import ActionCache, ActionKey
from stoker.spi.blob_paths import BlobPaths, Locate
from stoker.spi.blob_paths import locate_in as locate_in  # for stoker alone: not in __all__
from stoker.spi.blob_store import HELD_SECONDS as HELD_SECONDS  # likewise
from stoker.spi.blob_store import BlobStore, ScrubFinding
from stoker.spi.blob_streams import BlobReader, BlobUpload, BlobWriter
from stoker.spi.execution_strategy import ExecutionStrategy, Tell
from stoker.spi.processes import Exit, Limits, Process, ProcessSpec, ProcessUser, ResourceUsage
from stoker.spi.providers import (
    ActionCacheName,
    BlobStoreName,
    Context,
    Provider,
    Settings,
    hookimpl,
    resolve_path,
)
from stoker.spi.sandbox import Sandbox
from stoker.spi.worker_protocol import ResponseDecoder, WorkerProtocol

__all__ = [
    # plugins and configuration
    "hookimpl",
    "Provider",
    "Context",
    "Settings",
    "resolve_path",
    "BlobStoreName",
    "ActionCacheName",
    # storage
    "BlobStore",
    "BlobPaths",
    "Locate",
    "BlobReader",
    "BlobWriter",
    "BlobUpload",
    "ScrubFinding",
    "ActionCache",
    "ActionKey",
    "ActionResult",
    "Digest",
    "DigestFunction",
    "DIGEST_FUNCTIONS",
    "SHA256",
    # execution
    "ExecutionStrategy",
    "Tell",
    "Process",
    "ProcessSpec",
    "ProcessUser",
    "Limits",
    "Exit",
    "ResourceUsage",
    "Sandbox",
    # persistent workers
    "WorkerProtocol",
    "ResponseDecoder",
    "WorkRequest",
    "WorkResponse",
    # errors
    "StokerError",
    "BlobNotFound",
    "ConfigurationError",
    "DataLoss",
    "DigestMismatch",
    "FailedPrecondition",
    "InputsMissing",
    "InvalidRequest",
    "MalformedResponse",
    "OffsetOutOfRange",
    "ProgramNotStarted",
    "StorageFull",
    "Unavailable",
    "Unsupported",
    "UploadInProgress",
]

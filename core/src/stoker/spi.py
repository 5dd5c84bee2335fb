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
with a default body, so that an old plugin lives on.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, TypeVar, cast

import msgspec
import pluggy
import trio

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

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
    "Locate",
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

hookimpl = pluggy.HookimplMarker("stoker")

Service_co = TypeVar("Service_co", covariant=True)

_COPY_BYTES = 1024 * 1024


# --- plugins and configuration -------------------------------------------------------------------


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Root of every settings struct. A field is a TOML key; one without a default is required.

    Subclasses repeat ``frozen=True``, which type checkers ask for.
    """


BlobStoreName = Annotated[str, msgspec.Meta(extra={"refers_to": "blob_stores"})]
"""The type of a setting that names a ``[blob_stores.NAME]`` table. It is open before its user."""

ActionCacheName = Annotated[str, msgspec.Meta(extra={"refers_to": "action_caches"})]
"""The type of a setting that names an ``[action_caches.NAME]`` table."""


def resolve_path(folder: Path, text: str) -> Path:
    """The path that a setting means: ``~`` is a home, and relative ones begin at `folder`.

    Raises ConfigurationError for what cannot be a path.
    """
    if not text or "\0" in text:
        raise ConfigurationError([f"{text!r} cannot be a path"])
    try:
        return folder / Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigurationError([f"{text!r} cannot be a path: {error}"]) from error


class Context:
    """What a provider may know of the server that opens it."""

    def __init__(
        self, name: str, folder: Path, services: Mapping[str, Mapping[str, object]]
    ) -> None:
        self.name = name
        """The name of the TOML table, for messages."""
        self._folder = folder
        self._services = services

    def path(self, text: str) -> Path:
        """The path that a setting means: relative ones begin at the TOML file's folder."""
        return resolve_path(self._folder, text)

    def blob_store(self, name: str) -> BlobStore:
        """The store that a setting of type `BlobStoreName` names."""
        return cast("BlobStore", self._services["blob_stores"][name])

    def action_cache(self, name: str) -> ActionCache:
        """The cache that a setting of type `ActionCacheName` names."""
        return cast("ActionCache", self._services["action_caches"][name])


@dataclass(frozen=True, slots=True)
class Provider(Generic[Service_co]):
    """One kind of a service: its settings, and how to open it.

    `open` is entered once for each TOML table of the kind and left when the server stops. It may
    hold a nursery for background work. It raises ConfigurationError for settings that cannot work
    here, and Unavailable for what may work later.
    """

    settings: type[Settings]
    open: Callable[[Any, Context], AbstractAsyncContextManager[Service_co]]
    summary: str = ""
    """A few words for ``stoker plugins``."""


# --- storage -------------------------------------------------------------------------------------


class BlobReader(abc.ABC):
    """An open blob. One task reads at a time."""

    @abc.abstractmethod
    async def read(self, max_bytes: int) -> bytes:
        """The next bytes: at least one and at most `max_bytes`, or none at the end.

        A cancelled read may be repeated. Raises DataLoss or Unavailable.
        """


class BlobWriter(abc.ABC):
    """A blob on its way in. One task writes at a time."""

    @abc.abstractmethod
    async def write(self, data: bytes | memoryview) -> None:
        """Append `data`. After an exception, cancellation included, the writer is of no more use.

        Raises StorageFull or Unavailable.
        """


class BlobUpload(BlobWriter):
    """A blob on its way in that may be broken off and continued. One task uses it at a time."""

    offset: int = 0
    """How many bytes earlier calls have left here; writing goes on behind them."""

    @abc.abstractmethod
    async def read_kept(self, offset: int, max_bytes: int) -> bytes:
        """Bytes that earlier calls have left, from `offset` on, for hashing them once more.

        At least one and at most `max_bytes`, or none from the end on. Raises Unavailable.
        """

    @abc.abstractmethod
    async def restart(self) -> None:
        """Forget what earlier calls have left: writing begins at 0."""


@dataclass(frozen=True, slots=True)
class ScrubFinding:
    """One step of a scrub: something that was wrong, or how far it has come."""

    digest: Digest | None
    """The blob that this is about, where it can still be told."""
    problem: str
    """What was wrong, and what was done about it; empty where this only tells the progress."""
    checked: int
    """How many blobs have been checked so far."""


class BlobPaths(Mapping[Digest, Path]):
    """Files that hold blobs. Their paths are texts, and a Path is made when it is asked for:
    for ten thousand files, making Paths would take as long as linking them."""

    def __init__(self, locations: Mapping[Digest, str]) -> None:
        self._locations = locations

    @property
    def locations(self) -> Mapping[Digest, str]:
        """The same as texts."""
        return self._locations

    def __getitem__(self, digest: Digest) -> Path:
        return Path(self._locations[digest])

    def __contains__(self, digest: object) -> bool:
        return digest in self._locations

    def __iter__(self) -> Iterator[Digest]:
        return iter(self._locations)

    def __len__(self) -> int:
        return len(self._locations)


Locate = Callable[[Digest], str | None]
"""Where the file is that holds a blob, or would be; None if there is none on this machine."""


def locate_in(paths: Mapping[Digest, Path]) -> Locate:
    """Files that are known, as `BlobStore.open_locations` tells them."""
    if isinstance(paths, BlobPaths):
        return paths.locations.get
    return {digest: os.fspath(path) for digest, path in paths.items()}.get


HELD_SECONDS = 60.0
"""For how long bytes of a blob may be held in memory after it was last seen in its store."""


class BlobStore(abc.ABC):
    """Blobs by content. Calls may overlap freely, also on one digest.

    The store never hashes: stoker hands it a writer that verifies size and hash before the
    context of `open_write` is left cleanly. A store need not know the empty blob either: stoker
    answers for it.
    """

    @abc.abstractmethod
    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Those of `digests` that are absent. One that is present is not soon evicted.

        Raises Unavailable rather than call a blob missing because something did not answer.
        """

    @abc.abstractmethod
    def open_read(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AbstractAsyncContextManager[BlobReader]:
        """Open `digest` at `offset` (at most its size) for at most `limit` bytes.

        While it is open the blob stays readable, whatever happens to it meanwhile.
        Raises BlobNotFound or Unavailable on entering.
        """

    @abc.abstractmethod
    def open_write(self, digest: Digest) -> AbstractAsyncContextManager[BlobWriter]:
        """Publish `digest` once the context is left cleanly.

        After any exception, cancellation included, readers see nothing of it and the space is
        given back. Writing a blob that is present already is no error.
        Raises StorageFull or Unavailable.
        """

    async def read_many(self, digests: Collection[Digest]) -> dict[Digest, bytes]:
        """Whole small blobs at once. Absent ones are left out. Raises DataLoss or Unavailable."""
        blobs = {}
        for digest in digests:
            try:
                async with self.open_read(digest) as reader:
                    blobs[digest] = await _read_whole(reader, digest.size_bytes)
            except BlobNotFound:
                continue
        return blobs

    def held(self, digests: Collection[Digest]) -> Mapping[Digest, bytes]:
        """Those of `digests` that somebody has in memory, and nobody has to wait for.

        They were in the store at most `HELD_SECONDS` ago, and may have gone since: for whoever
        needs the bytes and not the blob. To be held is not to be used. None by default: stoker
        holds what has gone in and out of a store lately itself.
        """
        del digests
        return {}

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, StokerError]:
        """Publish whole small blobs, each on its own. Returns those that failed, and why."""
        failures: dict[Digest, StokerError] = {}
        for digest, data in blobs.items():
            try:
                async with self.open_write(digest) as writer:
                    await writer.write(data)
            except StokerError as error:
                failures[digest] = error
        return failures

    def open_upload(self, digest: Digest, upload: str) -> AbstractAsyncContextManager[BlobUpload]:
        """As `open_write`, for an upload that may be continued under its name, any short text.

        Left cleanly, it publishes `digest`. Left by InvalidRequest, DigestMismatch among it,
        what was written is discarded. Left by any other exception, cancellation included, a
        store that can keeps what was written, over restarts too, for a bounded time and counted
        against its bound; this body keeps nothing. Raises UploadInProgress on entering while
        another task has the same upload open, StorageFull or Unavailable.
        """
        return _unkept_upload(self, digest, upload)

    async def write_file(self, digest: Digest, path: Path) -> None:
        """Publish the file at `path`, whose bytes the caller has found to be `digest`.

        The file is the store's: it may be moved away, and nobody may have it open for writing.
        Where it stays, it is unchanged, and the caller's to remove. As for `open_write`
        otherwise; raises FileNotFoundError if there is no such file. By default it is copied.
        """
        async with self.open_write(digest) as writer, await trio.open_file(path, "rb") as file:
            while data := await file.read(_COPY_BYTES):
                await writer.write(data)

    async def uploaded_bytes(self, digest: Digest, upload: str) -> int:
        """How many bytes `open_upload` would go on behind. Raises Unavailable."""
        del digest, upload
        return 0

    def open_executable_paths(
        self, digests: Collection[Digest]
    ) -> AbstractAsyncContextManager[Mapping[Digest, Path]]:
        """As `open_paths`, of files with execute permission."""
        return _no_paths(digests)

    def scrub(self) -> AbstractAsyncContextManager[AsyncIterator[ScrubFinding]]:
        """Hash every blob once more, and drop those that are damaged.

        A finding for each blob as it is done with, in no order; blobs that come and go meanwhile
        may be told or not. Nothing counts as used by it. Work goes on as far as findings are
        asked for, and leaving the context ends it. Iterating raises Unavailable. Raises
        Unsupported by default: a store that stands on others leaves it to them.
        """
        raise Unsupported("this kind of blob store cannot be scrubbed")

    def open_paths(
        self, digests: Collection[Digest]
    ) -> AbstractAsyncContextManager[Mapping[Digest, Path]]:
        """Files of this machine that hold blobs, pinned while the context is open.

        Blobs that are absent, or have no file here, are left out. The files must only be read,
        and hard links may be made to them where processes cannot change them: they have mode
        0444, and were last modified on 2000-01-01, as inputs are (RUN-04). A `BlobPaths` saves
        time where there are many.
        """
        return _no_paths(digests)

    def open_locations(self, digests: Collection[Digest]) -> AbstractAsyncContextManager[Locate]:
        """As `open_paths`, but nobody need have looked. Of other digests nothing may be asked.

        A file may be absent or of another size, or have another time, all the same: whoever uses
        it looks, and asks `open_paths` where something is wrong, which sees to it. For ten
        thousand files, looking takes a third of the time of linking them. By default it is what
        `open_paths` finds.
        """
        return _locations(self, digests)


async def _read_whole(reader: BlobReader, size_bytes: int) -> bytes:
    pieces = []
    while piece := await reader.read(max(size_bytes, 1)):
        pieces.append(piece)
    return b"".join(pieces)


class _UnkeptUpload(BlobUpload):
    def __init__(self, writer: BlobWriter) -> None:
        self._writer = writer

    async def write(self, data: bytes | memoryview) -> None:
        await self._writer.write(data)

    async def read_kept(self, offset: int, max_bytes: int) -> bytes:
        del offset, max_bytes
        return b""

    async def restart(self) -> None:
        pass


@asynccontextmanager
async def _unkept_upload(store: BlobStore, digest: Digest, _: str) -> AsyncIterator[BlobUpload]:
    async with store.open_write(digest) as writer:
        yield _UnkeptUpload(writer)


@asynccontextmanager
async def _locations(store: BlobStore, digests: Collection[Digest]) -> AsyncIterator[Locate]:
    async with store.open_paths(digests) as paths:
        yield locate_in(paths)


@asynccontextmanager
async def _no_paths(_: Collection[Digest]) -> AsyncIterator[Mapping[Digest, Path]]:
    yield {}


class ActionKey(NamedTuple):
    """What an action result is filed under: one namespace never sees another's results."""

    namespace: str
    """The instance name; any text, never to be used as a path as it stands."""
    action: Digest


class ActionCache(abc.ABC):
    """Action results. Calls may overlap freely, also on one key; the last update wins."""

    @abc.abstractmethod
    async def get(self, key: ActionKey) -> ActionResult | None:
        """The result filed under `key`, or None. Raises Unavailable."""

    @abc.abstractmethod
    async def update(self, key: ActionKey, result: ActionResult) -> None:
        """File `result` under `key`, in place of what was there.

        A cancelled or failed update leaves the old result or the new one, whole.
        Raises StorageFull or Unavailable.
        """

    async def peek(self, key: ActionKey) -> ActionResult | None:
        """As `get`, for those who look after the cache: it does not count as a use.

        By default it is `get`, for caches that forget nothing. Raises Unavailable.
        """
        return await self.get(key)

    def open_entries(self) -> AbstractAsyncContextManager[AsyncIterator[ActionKey]]:
        """The keys of all entries, in no order, for those who look after the cache.

        Entries that come and go meanwhile may be told or not. Raises Unsupported by default.
        """
        raise Unsupported("this kind of action cache cannot list its entries")

    async def remove(self, keys: Collection[ActionKey]) -> None:
        """Remove these entries; no error for absent ones. Raises Unsupported by default."""
        raise Unsupported(f"this kind of action cache cannot remove {len(keys)} entries")


# --- execution -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a process may use, together with all that come of it; None for no bound."""

    cpus: float | None = None
    """Processors' worth of time: 1.5 is one and a half of them."""
    memory_bytes: int | None = None
    processes: int | None = None
    """Processes and threads at once."""


class ProcessUser(NamedTuple):
    """Whom a process runs as."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A process to be started. Its folders bear the same names inside any strategy or sandbox."""

    argv: tuple[str, ...]
    """The program and its arguments. A program without a slash is looked up in the PATH of
    `environment`, one with a slash is relative to the working directory (RUN-09)."""
    environment: Mapping[str, str]
    """All of it: nothing of the server's environment is added."""
    root: Path
    """The input root: the process may read and write below it."""
    working_directory: str = ""
    """Relative to `root`; empty for `root` itself. It exists."""
    temporary_directory: Path
    """Private to this process, and empty."""
    stderr: Path
    """The file to append stderr to."""
    stdout: Path | None = None
    """The file to write stdout to, with an empty stdin; or None to be given both as pipes."""
    properties: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The action's platform, for strategies and sandboxes that read some of it."""
    limits: Limits = Limits()
    """To be enforced as far as the machine allows; see `ExecutionStrategy.enforcement`."""
    root_changes: bool = False
    """Whether files below `root` are added, replaced and removed by the server while the process
    lives, as for a persistent worker; it must see that."""
    namespace: str = ""
    """The instance whose action it is: what a strategy keeps from one process for the next is
    never shared between two namespaces."""


class ResourceUsage(NamedTuple):
    """What a process used, with all that came of it as far as that could be measured."""

    user_seconds: float
    system_seconds: float
    peak_memory_bytes: int


class Exit(NamedTuple):
    """How a process ended."""

    code: int
    """0 to 255; for a process ended by a signal, 128 and the signal's number."""
    signal: int | None = None
    breach: str = ""
    """The limit that it ended by, if it did, as a sentence that names the limit and what was
    used: ``out of memory: the limit is 1073741824 bytes, …``."""
    usage: ResourceUsage | None = None


class Process(abc.ABC):
    """A process that was started."""

    name: str
    """For messages, such as ``process 4711``."""
    stdin: trio.abc.SendStream | None = None
    stdout: trio.abc.ReceiveStream | None = None
    """Pipes, where the specification asked for them."""
    started_ns: int | None = None
    """When it began, by the clock of time.monotonic_ns, where that was a while before its context
    was entered."""
    facts: Mapping[str, str] = MappingProxyType({})
    """What whoever sent the action may want to know of where it runs, such as the digest of its
    container's image: told in the action's auxiliary metadata (RUN-29). The server's own names
    there, such as ``worker``, are not to be used."""
    has_exited: bool = False
    """Whether `wait` would return at once. False says nothing."""

    @abc.abstractmethod
    async def wait(self) -> Exit:
        """Wait for the end of the process itself. May be called again, and by several tasks.

        Cancellation leaves the process alone.
        """

    @abc.abstractmethod
    def terminate(self) -> None:
        """Ask the whole process tree to end (SIGTERM), without waiting. No error if it is gone."""

    async def measure_memory(self) -> int | None:
        """How many bytes the process uses now, with all that came of it; None if nobody can tell.

        A measurement may take a moment and is asked for every few seconds. It raises nothing.
        """
        return None


Tell = Callable[[Mapping[str, str | float | bool]], None]
"""Tells facts to everybody who waits for an action, in place of those told before."""


class ExecutionStrategy(abc.ABC):
    """A way to start processes. Calls may overlap."""

    user: ProcessUser | None = None
    """Whom processes run as, where that is not the server's own user: the folders of the input
    root, and the temporary directory, are then made to belong to that user."""
    protects_inputs: bool = False
    """Whether processes cannot change content, permissions or times of files below their root
    that belong to the server's user, in whatever way. Inputs are then hard links to blobs; else
    they are copies."""
    keeps_containers: bool | None = None
    """Whether what a process runs in may serve one action after another, by decision of those who
    run the server. None where that is for an action's platform to say (``dockerReuse``), or where
    there are no containers. What may not be kept has no persistent worker."""

    def enforcement(self) -> Sequence[str]:
        """Sentences for those who run the server: how process trees are ended and limits
        enforced here, and what cannot be enforced: such a sentence begins with ``degraded:``.
        Logged at start and told by ``stoker check``.
        """
        return ()

    async def identify_surroundings(self, properties: Mapping[str, tuple[str, ...]]) -> str:
        """What else than its specification tells how a process of these properties runs, such as
        the digest of the image that their ``container-image`` stands for now.

        Persistent workers are never shared between surroundings that differ. Empty by default.
        Raises FailedPrecondition when the platform asks for what this strategy cannot give,
        Unavailable otherwise.
        """
        del properties
        return ""

    async def prepare(self, properties: Mapping[str, tuple[str, ...]], tell: Tell) -> None:
        """Fetch what processes of these properties need beside their inputs, such as an image,
        and tell how that goes on whenever there is something new. Nothing by default.

        Called before the inputs of an action are laid out. Raises as `identify_surroundings`.
        Cancellation leaves nothing, or what others can use.
        """
        del properties, tell

    @abc.abstractmethod
    def start(self, spec: ProcessSpec) -> AbstractAsyncContextManager[Process]:
        """Start a process, for one command or for a worker that lives long.

        Leaving the context, by whatever way, leaves no process of it alive.
        Raises ProgramNotStarted when the program is at fault, FailedPrecondition when the
        platform asks for what this strategy cannot give, Unavailable otherwise.
        """


class Sandbox(abc.ABC):
    """An enclosure around processes. Calls may overlap."""

    protects_inputs: bool = False
    """As for `ExecutionStrategy`, of enclosed processes whose root does not change."""

    def enforcement(self) -> Sequence[str]:
        """As for `ExecutionStrategy`."""
        return ()

    @abc.abstractmethod
    def enclose(self, spec: ProcessSpec) -> AbstractAsyncContextManager[ProcessSpec]:
        """Rewrite what is to be started so that it runs enclosed; clean up on leaving.

        Raises FailedPrecondition or Unavailable when it cannot enclose: never returns a
        specification that would run unenclosed. It may raise ProgramNotStarted as well, and any
        of the three on leaving, where the process was not started.
        """

    def read_exit(self, exit_: Exit) -> Exit:
        """How the enclosed process ended, when what was started in its place ended by `exit_`."""
        return exit_


# --- persistent workers --------------------------------------------------------------------------


class ResponseDecoder(abc.ABC):
    """Finds responses in what one worker process writes to its stdout."""

    @abc.abstractmethod
    def feed(self, data: bytes) -> list[WorkResponse]:
        """The responses that `data` completes, in order.

        `data` may be cut anywhere. Raises MalformedResponse, after which the decoder is of no
        more use.
        """

    @abc.abstractmethod
    def end(self) -> None:
        """Stdout has ended. Raises MalformedResponse if that was inside of a response."""


class WorkerProtocol(abc.ABC):
    """How work requests and responses become bytes. Without I/O, tasks or clocks."""

    @abc.abstractmethod
    def encode(self, request: WorkRequest) -> bytes:
        """`request` as the worker reads it from its stdin."""

    def encode_with(self, request: WorkRequest, inputs: Sequence[bytes]) -> bytes:
        """As `encode`, of `request` with more inputs: those of the serialized messages `inputs`.

        Thousands, as a rule, which were serialized once for many requests. A protocol whose frame
        is made of such bytes need not parse them.
        """
        whole = WorkRequest()
        whole.CopyFrom(request)
        whole.MergeFromString(b"".join(inputs))
        return self.encode(whole)

    @abc.abstractmethod
    def decoder(self, limit_bytes: int) -> ResponseDecoder:
        """A decoder for one process, which refuses a response of more than `limit_bytes`."""

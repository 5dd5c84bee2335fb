"""Uploading what a near store holds to a far one, behind the back of those who wrote it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from random import SystemRandom

import structlog
import trio

from stoker.digest import DIGEST_FUNCTIONS, Digest
from stoker.errors import InvalidRequest, StokerError, Unavailable, sole_cause
from stoker.spi import BlobStore

log = structlog.get_logger(__name__)

PIECE_BYTES = 1024 * 1024
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 30.0
# A journal of more lines than this, for each blob that waits, is written anew without the rest.
_LINES_PER_BLOB = 100


class WriteBack:
    """Blobs that wait to be uploaded from `near` to `far`, at most `max_pending`.

    A blob that waits is held open in `near`, which keeps it readable until it is uploaded. While
    `far` is not available it is tried again, after pauses that grow. A blob that `far` refuses
    for another reason is given up, with an error in the log: it stays in `near` alone. Tasks run
    in `nursery`. Calls may overlap.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        near: BlobStore,
        far: BlobStore,
        *,
        max_pending: int,
        max_uploads: int,
        journal: Journal | None = None,
    ) -> None:
        self._nursery = nursery
        self._near = near
        self._far = far
        self._max_pending = max_pending
        self._uploads = trio.CapacityLimiter(max_uploads)
        self._journal = journal
        self._pending: dict[Digest, None] = {}
        self._pinned: set[Digest] = set()
        self._trouble: StokerError | None = None
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def pending(self) -> int:
        """How many blobs wait."""
        return len(self._pending)

    async def add(self, digest: Digest) -> None:
        """Queue `digest`, which `near` holds. Returns once it is pinned and in the journal.

        Waits for room while uploads go on. Raises Unavailable when there is none because `far`
        fails, and when `near` has lost the blob already. Cancelled, it may have queued or not.
        """
        await trio.lowlevel.checkpoint()
        if await self._is_queued(digest):
            return
        if self._journal:
            self._journal.add(digest)
        if not await self._start(digest):
            raise Unavailable(f"blob {digest} left the near store before it was uploaded")

    async def resume(self) -> None:
        """Queue what the journal of an earlier run still holds, as far as `near` has it."""
        waiting = self._journal.pending() if self._journal else []
        # All of them at once: were one the last that waits, the journal would forget the others.
        self._pending.update(dict.fromkeys(waiting))
        for digest in waiting:
            if not await self._start(digest):
                log.warning("blob was lost before it was uploaded", digest=str(digest))

    async def wait_empty(self) -> None:
        """Wait until everything is uploaded or given up."""
        while self._pending:
            await self._changed.park()

    async def wait_room(self, digest: Digest) -> None:
        """Wait until `digest` may be queued; ask before the near store takes it.

        Nothing is set aside, so that `add` may have to wait again. Raises Unavailable when there
        is no room because `far` fails.
        """
        await trio.lowlevel.checkpoint()
        await self._is_queued(digest)

    async def _is_queued(self, digest: Digest) -> bool:
        """Wait until another call has queued `digest`, or there is room for it. Returns which."""
        while digest not in self._pinned:
            # One that another call is about to pin is not there yet: that call may be cancelled.
            if digest not in self._pending:
                if len(self._pending) < self._max_pending:
                    return False
                self._check_hope()
            await self._changed.park()
        return True

    def _check_hope(self) -> None:
        if self._trouble is not None:
            raise Unavailable(
                f"{len(self._pending)} blobs wait to be uploaded, as the far store fails: "
                f"{self._trouble}"
            )

    async def _start(self, digest: Digest) -> bool:
        # Before the first await, so that nobody else takes the same room.
        self._pending[digest] = None
        try:
            started: bool = await self._nursery.start(self._hold, digest)
        except trio.Cancelled:
            # Not from the journal: the near store has it, and the next run may upload it.
            self._pending.pop(digest, None)
            self._changed.unpark_all()
            raise
        return started

    async def _hold(self, digest: Digest, task_status: trio.TaskStatus[bool]) -> None:
        started = False
        try:
            async with self._near.open_read(digest):
                started = True
                self._pinned.add(digest)
                self._changed.unpark_all()
                task_status.started(value=True)
                await self._upload(digest)
            self._remove(digest)
        except Exception as error:  # noqa: BLE001 - one blob must not end the store
            self._give_up(digest, error)
            if not started:
                task_status.started(value=False)

    async def _upload(self, digest: Digest) -> None:
        pause_seconds = _FIRST_PAUSE_SECONDS
        while True:
            try:
                async with self._uploads:
                    await self._upload_once(digest)
            except Unavailable as error:
                self._note(error)
            else:
                self._note(None)
                return
            # Jitter: what failed together should not come back together.
            await trio.sleep(pause_seconds * SystemRandom().uniform(0.5, 1.0))
            pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)

    async def _upload_once(self, digest: Digest) -> None:
        if not await self._far.find_missing([digest]):
            return
        async with self._near.open_read(digest) as reader, self._far.open_write(digest) as writer:
            while piece := await reader.read(PIECE_BYTES):
                await writer.write(piece)

    def _note(self, trouble: StokerError | None) -> None:
        if trouble is not None and self._trouble is None:
            log.warning("uploads fail and are tried again", reason=str(trouble))
        self._trouble = trouble
        # Those who wait for room hear of trouble too: they have to be told no.
        self._changed.unpark_all()

    def _give_up(self, digest: Digest, error: Exception) -> None:
        cause = sole_cause(error)
        if isinstance(cause, StokerError):
            log.error("blob is not uploaded", digest=str(digest), reason=str(cause))
        else:
            log.error("blob is not uploaded, by a bug", digest=str(digest), exc_info=error)
        self._remove(digest)

    def _remove(self, digest: Digest) -> None:
        self._pending.pop(digest, None)
        self._pinned.discard(digest)
        if self._journal:
            self._journal.remove(digest, self._pending)
        self._changed.unpark_all()


class Journal:
    """A file that remembers which blobs wait to be uploaded, over restarts and kill -9.

    It is not synced to the disk: a loss of power may lose its last lines. It keeps short: most of
    its lines are of blobs that have gone. For one process.
    """

    def __init__(self, path: Path) -> None:
        """Open the journal at `path`, made if need be. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("a+b", buffering=0)
        self._file.seek(0)
        self._earlier = _waiting(self._file.read().decode(errors="replace").split("\n"))
        self._lines = 0
        self._compact(self._earlier)

    def pending(self) -> list[Digest]:
        """What waited when the journal was opened, in the order in which it came."""
        return self._earlier

    def add(self, digest: Digest) -> None:
        """Note that `digest` waits. Raises Unavailable."""
        try:
            self._append("+", digest)
        except OSError as error:
            raise Unavailable(f"the journal of uploads: {error}") from error

    def remove(self, digest: Digest, left: Collection[Digest]) -> None:
        """Note that `digest` waits no more, and that those `left` do."""
        # A line too many costs no more than a question to the far store.
        with suppress(OSError):
            if not left:
                self._file.truncate(0)
                self._lines = 0
            elif self._lines > _LINES_PER_BLOB * len(left):
                self._compact(left)
            else:
                self._append("-", digest)

    def close(self) -> None:
        self._file.close()

    def _append(self, sign: str, digest: Digest) -> None:
        self._file.write(f"{sign}{_line(digest)}".encode())
        self._lines += 1

    def _compact(self, waiting: Collection[Digest]) -> None:
        part = self._path.with_name(self._path.name + ".part")
        part.write_text("".join(f"+{_line(digest)}" for digest in waiting))
        # Renamed when whole: a crash before this leaves the longer journal.
        part.replace(self._path)
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
        self._lines = len(waiting)


def _line(digest: Digest) -> str:
    return f"{digest.function.name} {digest}\n"


def _waiting(lines: Iterable[str]) -> list[Digest]:
    waiting: dict[Digest, None] = {}
    for line in lines:
        if (digest := _parse(line[1:])) is None:
            continue
        if line.startswith("+"):
            waiting[digest] = None
        else:
            waiting.pop(digest, None)
    return [*waiting]


def _parse(text: str) -> Digest | None:
    """The digest in a line; None for one that was cut short."""
    name, _, digest = text.partition(" ")
    hash_, _, size = digest.partition("/")
    function = next((each for each in DIGEST_FUNCTIONS if each.name == name), None)
    if function is None or not size.isdecimal():
        return None
    try:
        return function.named(hash_, int(size))
    except InvalidRequest:
        return None

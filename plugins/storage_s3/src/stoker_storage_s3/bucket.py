"""One bucket: obstore's blocking calls in threads, bounded in number and in time.

Every call may overlap with every other, and raises Unavailable, or StorageFull where it writes,
once obstore has given up repeating the request. That happens within the settings' `retry_seconds`
and one request's time; a call that was sent is not cut short by cancellation if it writes, and is
left to end by itself if it only reads.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import obstore
import trio
from obstore.exceptions import AlreadyExistsError, PreconditionError

from stoker_storage_s3.failures import (
    LIBRARY_ERRORS,
    at_opening,
    is_unsatisfiable_range,
    proves_absence,
    unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obstore import ObjectMeta, PutMode
    from obstore.store import ObjectStore

Answer = TypeVar("Answer")

_LISTED_AT_ONCE = 1000
# obstore asks for the next part when fewer than these are on their way, and that is where uploads
# are given up: with one, there is none then that could arrive behind the request to abort, and
# stay in the bucket. The next one is collected meanwhile.
_PARTS_AT_ONCE = 1


class Found(NamedTuple):
    """What a bucket tells of an object."""

    size_bytes: int
    modified: float
    """When it was last written, in seconds since 1970, by the service's clock."""
    e_tag: str | None
    version: str | None


class Piece(NamedTuple):
    """A range of an object's bytes, and what is told of the whole."""

    found: Found
    data: memoryview


class Bucket:
    """The objects of `store`, which is called `name` in messages.

    `uploads` is the same bucket with more time for each request.
    """

    def __init__(
        self, name: str, store: ObjectStore, uploads: ObjectStore, *, max_connections: int
    ) -> None:
        self.name = name
        self.max_connections = max_connections
        self._store = store
        self._uploads = uploads
        self._limiter = trio.CapacityLimiter(max_connections)

    async def check(self) -> None:
        """Ask for an object that is not there, as only a bucket that can be used knows that.

        Raises ConfigurationError if the bucket does not exist or refuses, else Unavailable.
        """
        try:
            await self._in_thread(lambda: obstore.get(self._store, "stoker-was-here"))
        except LIBRARY_ERRORS as error:
            if not proves_absence(error):
                raise at_opening(error, self.name) from None

    async def head(self, key: str) -> Found | None:
        """What is told of object `key`; None if it, or the whole bucket, is absent."""
        try:
            meta = await self._in_thread(lambda: obstore.head(self._store, key))
        except FileNotFoundError:
            return None
        except LIBRARY_ERRORS as error:
            raise unavailable(error, self.name, f"asking for {key}") from None
        return _found(meta)

    async def confirm_absence(self, key: str) -> None:
        """Make sure that it is not the whole bucket, or the service, that `head` found absent."""
        await self.get(key, 0, 1)

    async def get(self, key: str, start: int, end: int) -> Piece | None:
        """Bytes `start` to `end`, or fewer if it ends before; None if the object is absent.

        A response that breaks is resumed where it broke. A range that begins at the object's
        end, or behind, is answered as one of no bytes.
        """
        try:
            return await self._in_thread(lambda: self._get(key, start, end))
        except LIBRARY_ERRORS as error:
            if proves_absence(error):
                return None
            if not is_unsatisfiable_range(error):
                raise unavailable(error, self.name, f"reading {key}") from None
        found = await self.head(key)
        return None if found is None else Piece(found, memoryview(b""))

    async def get_whole(self, key: str, size_bytes: int | None = None) -> Piece | None:
        """All of object `key`; but no bytes if it is not of `size_bytes`. None if absent."""
        try:
            return await self._in_thread(lambda: self._get_whole(key, size_bytes))
        except LIBRARY_ERRORS as error:
            if proves_absence(error):
                return None
            raise unavailable(error, self.name, f"reading {key}") from None

    async def create(self, key: str, data: bytes) -> bool:
        """Write object `key` unless there is one; whether it was written.

        False may also mean that somebody else changes it at this moment: look again.
        """
        work = partial(self._put, key, data, "create")
        try:
            await self._write(f"writing {key}", work, expected=(AlreadyExistsError,))
        except AlreadyExistsError:
            return False
        return True

    async def put(self, key: str, data: bytes) -> None:
        """Write object `key`, in place of any that is there."""
        await self._write(f"writing {key}", partial(self._put, key, data, "overwrite"))

    async def put_unchanged(self, key: str, data: bytes, found: Found) -> None:
        """Write object `key` anew, unless it is no longer the one that was `found`."""
        expected = (PreconditionError, AlreadyExistsError, FileNotFoundError)
        work = partial(self._put, key, data, _version(found))
        with suppress(*expected):
            await self._write(f"renewing {key}", work, expected=expected)

    async def upload(
        self, key: str, parts: Iterator[bytes], part_bytes: int, limiter: trio.CapacityLimiter
    ) -> None:
        """Write object `key` from `parts`, which is iterated in a thread that may use trio's.

        What `parts` raises is raised here, and then the bucket keeps neither object nor parts.
        """

        def work() -> None:
            obstore.put(
                self._uploads,
                key,
                parts,
                use_multipart=True,
                chunk_size=part_bytes,
                max_concurrency=_PARTS_AT_ONCE,
            )

        await self._write(f"writing {key}", work, limiter=limiter)

    async def copy(self, source: str, target: str) -> None:
        """Copy an object within the bucket, at the service."""
        await self._write(f"copying {source}", partial(obstore.copy, self._uploads, source, target))

    async def delete(self, key: str) -> None:
        """Remove object `key`; no error if it is absent, which S3 does not tell."""
        work = partial(obstore.delete, self._store, key)
        with suppress(FileNotFoundError):
            await self._write(f"removing {key}", work, expected=(FileNotFoundError,))

    async def list(self, prefix: str) -> AsyncGenerator[str, None]:
        """The keys of all objects below `prefix`, in no order."""
        stream = obstore.list(self._store, prefix, chunk_size=_LISTED_AT_ONCE)
        while True:
            try:
                listed: Sequence[ObjectMeta] | None = await self._in_thread(
                    lambda: next(stream, None)
                )
            except LIBRARY_ERRORS as error:
                raise unavailable(error, self.name, f"listing {prefix}") from None
            if listed is None:
                return
            for meta in listed:
                yield meta["path"]

    async def _in_thread(self, work: Callable[[], Answer]) -> Answer:
        # A dead service would otherwise hold up those who no longer wait for the answer.
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)

    async def _write(
        self,
        doing: str,
        work: Callable[[], object],
        *,
        expected: tuple[type[Exception], ...] = (),
        limiter: trio.CapacityLimiter | None = None,
    ) -> None:
        """Exceptions that are `expected` are left to the caller."""
        try:
            await trio.to_thread.run_sync(work, limiter=limiter or self._limiter)
        except expected:
            raise
        except LIBRARY_ERRORS as error:
            raise unavailable(error, self.name, doing) from None

    def _get(self, key: str, start: int, end: int) -> Piece:
        result = obstore.get(self._store, key, options={"range": (start, end)})
        return Piece(_found(result.meta), memoryview(result.bytes()))

    def _get_whole(self, key: str, size_bytes: int | None) -> Piece:
        result = obstore.get(self._store, key)
        found = _found(result.meta)
        if size_bytes not in (None, found.size_bytes):
            return Piece(found, memoryview(b""))
        return Piece(found, memoryview(result.bytes()))

    def _put(self, key: str, data: bytes, mode: PutMode) -> None:
        obstore.put(self._uploads, key, data, mode=mode, use_multipart=False)


def _version(found: Found) -> PutMode:
    # obstore refuses keys whose value is None.
    version: dict[str, str] = {}
    if found.e_tag is not None:
        version["e_tag"] = found.e_tag
    if found.version is not None:
        version["version"] = found.version
    return cast("PutMode", version)


def _found(meta: ObjectMeta) -> Found:
    return Found(meta["size"], meta["last_modified"].timestamp(), meta["e_tag"], meta["version"])

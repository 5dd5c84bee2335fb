"""What goes into a batch of blobs and what comes out: limits, compression, a status for each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from stoker.digest import Digest, DigestFunction
from stoker.errors import DataLoss, DigestMismatch, InvalidRequest, StokerError
from stoker.frontend.capabilities import MAX_BATCH_BYTES, MAX_RESPONSE_BYTES
from stoker.frontend.instances import Instance, name_subject
from stoker.frontend.status import to_status
from stoker.frontend.zstd import THREAD_BYTES, Compressor, decompress
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import StatusCode
from stoker.spi import BlobStore
from stoker.storage.threads import run

IDENTITY, ZSTD = reapi.Compressor.IDENTITY, reapi.Compressor.ZSTD

# A frame of zstd has about 10 bytes beside its content: below this nothing gets shorter.
_MIN_COMPRESSED_BYTES = 64

Update = reapi.BatchUpdateBlobsRequest.Request


def check_batch(size_bytes: int) -> None:
    """Raise InvalidRequest for a batch of more bytes of blobs than is advertised (BUB-03)."""
    if size_bytes > MAX_BATCH_BYTES:
        raise InvalidRequest(
            f"the batch holds {size_bytes} bytes, more than the {MAX_BATCH_BYTES} that are taken "
            "at once; use ByteStream for large blobs"
        )


# --- updates -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Received:
    """One blob of a batch that came in, and why it is refused where it is."""

    data: bytes = b""
    digest: Digest | None = None
    refusal: StokerError | None = None


async def receive_batch(
    instance: Instance, function: DigestFunction, updates: Collection[Update]
) -> list[Received]:
    """Decode and judge each blob of a batch, all but its hash (BUB-02).

    Raises InvalidRequest for a batch that is too large; nothing of it is to be stored (BUB-03).
    """
    check_batch(sum(_size_bytes(update) for update in updates))
    compressed_bytes = sum(_size_bytes(u) for u in updates if u.compressor != IDENTITY)
    return await run(
        lambda: [_receive(instance, function, update) for update in updates],
        inline=compressed_bytes < THREAD_BYTES,
    )


async def store_batch(blobs: BlobStore, batch: Sequence[Received]) -> None:
    """Publish all blobs of `batch` that are not refused, and note those that failed."""
    accepted: dict[Digest, bytes] = {}
    for digest, received in _not_refused(batch):
        # Of two that claim one digest and differ, at most one can be right (BUB-11).
        other = accepted.setdefault(digest, received.data)
        if other != received.data and digest.function.digest(received.data) == digest:
            accepted[digest] = received.data
    for digest, received in _not_refused(batch):
        if received.data != accepted[digest]:
            received.refusal = DigestMismatch(digest, "other data came")
    failures = await blobs.write_many(accepted)
    for digest, received in _not_refused(batch):
        received.refusal = failures.get(digest)


def _not_refused(batch: Sequence[Received]) -> list[tuple[Digest, Received]]:
    return [(r.digest, r) for r in batch if r.digest and not r.refusal]


def update_response(
    instance: Instance, updates: Collection[Update], batch: Sequence[Received]
) -> reapi.BatchUpdateBlobsResponse:
    """One entry for each blob, in their order (BUB-01)."""
    response = reapi.BatchUpdateBlobsResponse()
    for update, received in zip(updates, batch, strict=True):
        if received.refusal:
            name_subject(received.refusal, f"instance {instance.name!r}")
        response.responses.add(digest=update.digest, status=to_status(received.refusal))
    return response


def _size_bytes(update: Update) -> int:
    """What a blob counts: uncompressed, and by what it has rather than by what it claims."""
    if update.compressor == IDENTITY:
        return len(update.data)
    return max(len(update.data), update.digest.size_bytes)


def _receive(instance: Instance, function: DigestFunction, update: Update) -> Received:
    received = Received()
    try:
        received.digest = function.parse(update.digest)
        instance.check_size(received.digest)
        received.data = _decode(received.digest, update)
        if len(received.data) != received.digest.size_bytes:
            raise DigestMismatch(received.digest, f"{len(received.data)} bytes came")
    except StokerError as error:
        name_subject(error, f"blob {update.digest.hash}/{update.digest.size_bytes}")
        received.refusal = error
    return received


def _decode(digest: Digest, update: Update) -> bytes:
    if update.compressor == IDENTITY:
        return update.data
    if update.compressor == ZSTD:
        return decompress(update.data, digest.size_bytes)
    raise InvalidRequest(
        f"blob {digest} is compressed with number {update.compressor}; zstd is what is offered"
    )


# --- reads ---------------------------------------------------------------------------------------


async def read_batch(
    blobs: BlobStore, digests: Sequence[Digest], acceptable: Collection[int]
) -> reapi.BatchReadBlobsResponse:
    """One entry for each of `digests`, in their order (BRB-01, BRB-06).

    Raises InvalidRequest for too many bytes, or so many digests that they alone are too much.
    """
    check_batch(sum(digest.size_bytes for digest in digests))
    room = MAX_RESPONSE_BYTES - sum(_entry_bytes(digest) for digest in digests)
    if room < 0:
        raise InvalidRequest(f"{len(digests)} digests are too many for one answer; ask for fewer")
    found, damaged = await _read(blobs, set(digests))
    packed: Mapping[Digest, bytes] = {}
    if ZSTD in acceptable:
        inline = sum(map(len, found.values())) < THREAD_BYTES
        packed = await run(_compress, found, inline=inline)
    response = reapi.BatchReadBlobsResponse()
    for digest in digests:
        entry = response.responses.add(digest=digest.to_proto())
        if digest not in found:
            # Without a message, which would weigh more than the digest that says it all.
            entry.status.code = StatusCode.DATA_LOSS if digest in damaged else StatusCode.NOT_FOUND
            continue
        data = packed.get(digest, found[digest])
        if room < len(data):
            # To be asked for again: digests beside many tiny blobs weigh more than they (BRB-07).
            entry.status.code = StatusCode.RESOURCE_EXHAUSTED
            continue
        room -= len(data)
        entry.data = data
        entry.compressor = ZSTD if digest in packed else IDENTITY
    return response


async def _read(blobs: BlobStore, digests: set[Digest]) -> tuple[dict[Digest, bytes], set[Digest]]:
    """The blobs that are there, and those that are damaged (BRB-08)."""
    try:
        return await blobs.read_many(digests), set()
    except DataLoss:
        pass
    found: dict[Digest, bytes] = {}
    damaged: set[Digest] = set()
    for digest in digests:
        try:
            found |= await blobs.read_many([digest])
        except DataLoss:
            damaged.add(digest)
    return found, damaged


def _compress(blobs: Mapping[Digest, bytes]) -> dict[Digest, bytes]:
    """Those that get shorter (BRB-04)."""
    compressor = Compressor()
    large = ((d, data) for d, data in blobs.items() if len(data) >= _MIN_COMPRESSED_BYTES)
    packed = ((digest, compressor.compress(data)) for digest, data in large)
    return {digest: data for digest, data in packed if len(data) < digest.size_bytes}


def _entry_bytes(digest: Digest) -> int:
    """What one entry weighs at the most beside its data: digest, status, tags and lengths."""
    return len(digest.hash) + 40

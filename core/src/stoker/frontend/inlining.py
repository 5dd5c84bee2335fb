"""Contents of outputs inside of a result, where a client asks for them and they are small."""

from __future__ import annotations

from collections.abc import Collection

from stoker.digest import DigestFunction
from stoker.frontend.capabilities import MAX_RESPONSE_BYTES
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import BlobStore

MAX_INLINED_BYTES = 1024 * 1024
"""What is inlined in one result at the most, to keep messages small (ACG-07)."""


async def inline_contents(
    result: reapi.ActionResult,
    blobs: BlobStore,
    function: DigestFunction,
    *,
    stdout: bool,
    stderr: bool,
    files: Collection[str],
) -> reapi.ActionResult:
    """A copy of `result` with what was asked for filled in, as far as it is there and fits.

    Digests stay set. Contents that were filed with the result are left out unless asked for
    (ACG-06). Paths that are no outputs are passed over (ACG-08).
    """
    copy = reapi.ActionResult()
    copy.CopyFrom(result)
    wanted = _strip(copy, stdout=stdout, stderr=stderr, files=files)
    if not wanted:
        return copy
    room = min(MAX_INLINED_BYTES, MAX_RESPONSE_BYTES - copy.ByteSize())
    digests = {}
    for field, message in wanted:
        digest = function.parse(message)
        if digest.size_bytes <= room:
            room -= digest.size_bytes
            digests[field] = digest
    contents = await blobs.read_many(set(digests.values()))
    for field, digest in digests.items():
        _fill(copy, field, contents.get(digest, b""))
    return copy


def _strip(
    result: reapi.ActionResult, *, stdout: bool, stderr: bool, files: Collection[str]
) -> list[tuple[str | int, reapi.Digest]]:
    """Drop all inlined contents; returns where they are wanted, by field or by file index."""
    wanted: list[tuple[str | int, reapi.Digest]] = []
    if result.HasField("stdout_digest"):
        result.stdout_raw = b""
        if stdout:
            wanted.append(("stdout_raw", result.stdout_digest))
    if result.HasField("stderr_digest"):
        result.stderr_raw = b""
        if stderr:
            wanted.append(("stderr_raw", result.stderr_digest))
    for index, file in enumerate(result.output_files):
        file.contents = b""
        if file.path in files:
            wanted.append((index, file.digest))
    return wanted


def _fill(result: reapi.ActionResult, field: str | int, data: bytes) -> None:
    if isinstance(field, int):
        result.output_files[field].contents = data
    else:
        setattr(result, field, data)

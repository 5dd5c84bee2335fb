"""Hashing every blob of a folder once more."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple

from stoker.spi import DIGEST_FUNCTIONS, Digest, InvalidRequest, ScrubFinding
from stoker_storage_disk.bounded import BoundedFolder
from stoker_storage_disk.folder import read_exactly
from stoker_storage_disk.upkeep import FoundFile, Upkeep, found_files

_PIECE_BYTES = 1024 * 1024
# What one trip to a thread hashes: tens of milliseconds, after which it can be cancelled.
_TRIP_BYTES = 32 * 1024 * 1024
_TRIP_FILES = 500

_FUNCTIONS = {function.name.lower(): function for function in DIGEST_FUNCTIONS}


class _Judged(NamedTuple):
    digest: Digest
    damage: str | None


@asynccontextmanager
async def open_findings(upkeep: Upkeep) -> AsyncIterator[AsyncIterator[ScrubFinding]]:
    """What `BlobStore.scrub` promises; besides, files that the index does not know are noted.

    While the index is still being filled from the files this waits: filling drops files of a
    wrong size too, and what it had dropped would be missing from the findings.
    """
    async with aclosing(_findings(upkeep)) as findings:
        yield findings


async def _findings(upkeep: Upkeep) -> AsyncGenerator[ScrubFinding, None]:
    await upkeep.wait_complete()
    steps = _steps(upkeep)
    checked = 0
    while (judged := await upkeep.threads.read(_trip, steps)) is not None:
        for digest, damage in judged:
            checked += 1
            yield ScrubFinding(digest, f"{damage}, and was dropped" if damage else "", checked)


def _trip(steps: Iterator[tuple[int, _Judged | None]]) -> list[_Judged] | None:
    findings = []
    hashed = 0
    for count, (size_bytes, finding) in enumerate(steps):
        hashed += size_bytes
        if finding is not None:
            findings.append(finding)
        if hashed >= _TRIP_BYTES or count >= _TRIP_FILES:
            return findings
    return findings or None


def _steps(upkeep: Upkeep) -> Iterator[tuple[int, _Judged | None]]:
    """Bytes that were hashed, and what was found out if they were the last of a file."""
    for found in found_files(upkeep.files.folder):
        if not found:
            yield 0, None
            continue
        for file in found:
            digest = _digest(file)
            if digest is not None:
                yield from _hash(upkeep.files, file, digest)
        upkeep.note_found(found)


def _digest(file: FoundFile) -> Digest | None:
    function, _, name = file.original.split("/")
    hash_, _, _ = name.partition("-")
    try:
        return _FUNCTIONS[function].named(hash_, file.size_in_name)
    except (KeyError, InvalidRequest):
        # Not a name that this stoker gives; it never looks there either.
        return None


def _hash(
    files: BoundedFolder, file: FoundFile, digest: Digest
) -> Iterator[tuple[int, _Judged | None]]:
    descriptor = files.folder.open_file(file.name)
    if descriptor is None:
        return
    try:
        hasher = digest.function.new()
        offset = 0
        while piece := read_exactly(file.name, descriptor, offset, _PIECE_BYTES):
            hasher.update(piece)
            offset += len(piece)
            yield len(piece), None
        # What was read only to be hashed need not push out what is used.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        damage = _damage(digest, offset, hasher.hexdigest())
        if damage is not None:
            _drop(files, file, descriptor, damage)
        if damage is not None or not file.is_copy:
            yield 0, _Judged(digest, damage)
    finally:
        os.close(descriptor)


def _damage(digest: Digest, size_bytes: int, actual: str) -> str | None:
    if size_bytes != digest.size_bytes:
        return f"it has {size_bytes} bytes"
    return None if actual == digest.hash else f"its bytes hash to {actual}"


def _drop(files: BoundedFolder, file: FoundFile, descriptor: int, damage: str) -> None:
    if file.is_copy:
        files.remove_copy(file.original)
    else:
        files.remove_damaged(file.name, os.fstat(descriptor), damage)

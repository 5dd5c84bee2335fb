"""Files of Directory messages, known by the very bytes that tell of them.

Of a directory in which one file has changed, every other file is told of by the same bytes as
before. To find them takes a tenth of the time that it takes to parse them.

Source: https://protobuf.dev/programming-guides/encoding. Each entry of a repeated field is a record
of its own, with its tag and its length before it: without the record, a message is the same but for
that entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from stoker.digest import Digest, DigestFunction
from stoker.protos import remote_execution_pb2 as reapi
from stoker.storage.input_tree import FileEntry
from stoker.storage.tree import parse_directory

MOST_KNOWN = 20_000
"""How many files used last are known for each digest function, and up to as many before these;
they take some 400 bytes each."""

# Field 1 of Directory, `files`, with a length.
_TAG = 1 << 3 | 2
_MORE = 0x80

NamedEntry = tuple[str, FileEntry]


class Listing(NamedTuple):
    """A Directory message, read."""

    files: list[NamedEntry]
    """In the order of the message. Names are as the client wrote them, sound or not."""
    rest: reapi.Directory
    """The message; it may lack files."""


class FileRecords:
    """Reads Directory messages, and remembers their files. One task at a time."""

    def __init__(self, most_known: int = MOST_KNOWN) -> None:
        self._most_known = most_known
        self._known: dict[DigestFunction, _Known] = {}

    def read(
        self,
        digest: Digest,
        data: bytes,
        parse: Callable[[Digest, Iterable[reapi.FileNode]], Iterable[NamedEntry]],
    ) -> Listing:
        """The Directory `digest`, which is `data`. Files that are not known are given to `parse`.

        Raises InvalidRequest for what is no such message, and what `parse` raises.
        """
        known = self._known.setdefault(digest.function, _Known(self._most_known))
        records, end = split_records(data)
        files = known.find(records)
        new = [record for record, file in zip(records, files, strict=True) if file is None]
        # No copy of a large message that is new.
        parts = data if len(new) == len(records) else b"".join((*new, data[end:]))
        rest = parse_directory(digest, parts)
        parsed = [*parse(digest, rest.files)]
        known.add(zip(new, parsed, strict=False))
        following = iter(parsed)
        whole = [next(following) if file is None else file for file in files]
        return Listing([*whole, *following], rest)


class _Known:
    """Files by their records. Those that were not asked for go, in two steps."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._recent: dict[bytes, NamedEntry] = {}
        self._older: dict[bytes, NamedEntry] = {}

    def find(self, records: list[bytes]) -> list[NamedEntry | None]:
        """What is known of each."""
        found = [*map(self._recent.get, records)]
        if self._older and None in found:
            for number, record in enumerate(records):
                if found[number] is None and (file := self._older.get(record)) is not None:
                    found[number] = self._recent[record] = file
        return found

    def add(self, files: Iterable[tuple[bytes, NamedEntry]]) -> None:
        self._recent.update(files)
        if len(self._recent) > self._most:
            self._recent, self._older = {}, self._recent


def split_records(data: bytes) -> tuple[list[bytes], int]:
    """The records of files that Directory message `data` begins with, and where they end.

    What is not in its shortest form, or no message at all, is left to whoever parses the rest.
    """
    records = []
    start, size = 0, len(data)
    while start + 2 < size and data[start] == _TAG:
        length, stop = data[start + 1], start + 2
        if length >= _MORE:
            high = data[stop]
            if high >= _MORE:
                break
            length += (high << 7) - _MORE
            stop += 1
        stop += length
        if stop > size:
            break
        records.append(data[start:stop])
        start = stop
    return records, start

"""Files of this machine that hold blobs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from stoker.digest import Digest


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

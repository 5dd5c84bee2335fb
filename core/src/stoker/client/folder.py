"""A folder of this machine as an input root: Directory messages and files by digest.

Source: build.bazel.remote.execution.v2, message Directory, whose canonical form this produces.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import trio

from stoker.digest import Digest, DigestFunction
from stoker.errors import InvalidRequest
from stoker.protos import remote_execution_pb2 as reapi

_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class MerkleTree:
    """A folder by content: what has to be uploaded for it to be an input root."""

    root: Digest
    directories: Mapping[Digest, bytes]
    """Serialised Directory messages, the root's among them."""
    files: Mapping[Digest, Path]
    """For each content one file that has it."""


async def digest_folder(
    folder: Path, function: DigestFunction, exclude: Sequence[str] = ()
) -> MerkleTree:
    """Digest all of `folder`. Symbolic links are kept as such, wherever they lead.

    `exclude` holds glob patterns; what one of them matches by its name, or by its path relative
    to `folder`, is left out with all below it. Raises OSError for what cannot be read, and
    InvalidRequest for what no input root can hold: names that are not UTF-8, sockets, devices.
    A cancelled call leaves nothing behind.
    """
    return await trio.to_thread.run_sync(_FolderWalk(folder, function, exclude).tree)


async def digest_file(path: Path, function: DigestFunction) -> Digest:
    """The digest of a file's content. Raises OSError."""
    return await trio.to_thread.run_sync(_digest_file, path, function)


def _digest_file(path: Path, function: DigestFunction) -> Digest:
    hasher = function.new()
    size_bytes = 0
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            # A large file must not hold up the end of the program that was interrupted.
            trio.from_thread.check_cancelled()
            hasher.update(data)
            size_bytes += len(data)
    return Digest(hasher.hexdigest(), size_bytes, function)


@dataclass(slots=True)
class _FolderWalk:
    folder: Path
    function: DigestFunction
    exclude: Sequence[str]
    directories: dict[Digest, bytes] = field(default_factory=dict)
    files: dict[Digest, Path] = field(default_factory=dict)

    def tree(self) -> MerkleTree:
        """Digest from the leaves up, without recursion: folders may be deep."""
        digests: dict[str, Digest] = {}
        for path, names in reversed(self._list()):
            digests[path] = self._add_directory(path, names, digests)
        return MerkleTree(digests[""], self.directories, self.files)

    def _list(self) -> list[tuple[str, list[str]]]:
        """Every folder with the names in it, parents first. Paths are relative."""
        found = []
        unvisited = [""]
        while unvisited:
            path = unvisited.pop()
            entries = [
                entry
                for entry in os.scandir(self.folder / path)
                if not self._is_excluded(os.path.join(path, entry.name), entry.name)
            ]
            found.append((path, sorted(entry.name for entry in entries)))
            unvisited += [
                os.path.join(path, entry.name)
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
            ]
        return found

    def _is_excluded(self, path: str, name: str) -> bool:
        return any(
            fnmatchcase(path, pattern) or fnmatchcase(name, pattern) for pattern in self.exclude
        )

    def _add_directory(
        self, path: str, names: Sequence[str], digests: Mapping[str, Digest]
    ) -> Digest:
        directory = reapi.Directory()
        for name in names:
            self._add_entry(directory, os.path.join(path, name), name, digests)
        data = directory.SerializeToString(deterministic=True)
        digest = self.function.digest(data)
        self.directories[digest] = data
        return digest

    def _add_entry(
        self, directory: reapi.Directory, path: str, name: str, digests: Mapping[str, Digest]
    ) -> None:
        whole = self.folder / path
        _check_text(name, whole)
        mode = whole.lstat().st_mode
        if stat.S_ISLNK(mode):
            target = os.readlink(whole)  # noqa: PTH115  # a Path would lose "./" and a last slash
            _check_text(target, whole)
            directory.symlinks.add(name=name, target=target)
        elif path in digests:
            directory.directories.add(name=name, digest=digests[path].to_proto())
        elif stat.S_ISREG(mode):
            self._add_file(directory, whole, name, executable=bool(mode & stat.S_IXUSR))
        else:
            raise InvalidRequest(f"{whole} is neither a file, nor a folder, nor a symbolic link")

    def _add_file(
        self, directory: reapi.Directory, path: Path, name: str, *, executable: bool
    ) -> None:
        digest = _digest_file(path, self.function)
        self.files[digest] = path
        directory.files.add(name=name, digest=digest.to_proto(), is_executable=executable)


def _check_text(text: str, path: Path) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{str(path)!r} or its target is not UTF-8") from error

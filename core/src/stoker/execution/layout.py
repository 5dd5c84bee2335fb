"""Carrying out the changes of a layout on the disk. These functions block; call them in a thread.

A whole tree is one piece of work as long as little is copied: for links, several threads are
slower than one.
"""

# Strings and descriptors: for ten thousand files, making Paths would take half of the time.

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from stat import ST_MTIME
from types import MappingProxyType
from typing import NamedTuple

import structlog

from stoker.digest import Digest
from stoker.execution.arrangement import (
    FOLDER_MODE,
    LINKED_EXECUTABLE_MODE,
    FileState,
    FolderChange,
    Form,
    LaidFolder,
    form_of,
)
from stoker.execution.cleaning import stamp_folder, state_of
from stoker.execution.disk import write_all
from stoker.execution.input_files import (
    INPUT_MTIME,
    PartialFile,
    Target,
    copy_bytes,
    link_file,
    open_source,
    write_file,
)
from stoker.execution.open_folders import OpenFolders
from stoker.execution.removal import remove_entry
from stoker.spi import Locate, ProcessUser
from stoker.storage.input_tree import FileEntry

_log = structlog.get_logger(__name__)

# One trip to a thread, which cancellation has to wait for.
_FILES_AT_ONCE = 20_000
_BYTES_AT_ONCE = 64 * 2**20

# Folders and files that take less than the way to a thread and back.
_FEW = 8
_FEW_BYTES = 16 * 2**10

# A file that has as many names as it may have; a blob on another file system; one without links.
_NO_LINK = frozenset({errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EACCES})


class Policy(NamedTuple):
    """How files are laid out."""

    link: bool
    """Files are links to the blobs' own files where that is possible."""
    user: ProcessUser | None
    """Whose the folders are, and the files that may be written to."""

    def form(self, file: FileEntry) -> Form:
        """How `file` is laid out."""
        return form_of(file, link=self.link)

    def owner(self, file: FileEntry) -> ProcessUser | None:
        """Whose `file` is: among links, only permissions that somebody asked for are given to
        the user, who might have none otherwise."""
        return self.user if not self.link or file.unix_mode is not None else None


class DistantFile(NamedTuple):
    """A file whose blob is not on this machine."""

    change: FolderChange
    place: tuple[str, ...]
    """The names that lead to its folder."""
    name: str
    file: FileEntry


class Sources(NamedTuple):
    """Files of this machine that hold blobs."""

    plain: Locate
    """Where they would be: nobody need have looked."""
    executable: Locate
    held: Mapping[Digest, bytes] = MappingProxyType({})
    """Blobs that are in memory."""

    def path(self, form: Form) -> str | None:
        """The file to make a link to, or a copy of."""
        if form.mode == LINKED_EXECUTABLE_MODE:
            found = self.executable(form.digest)
            if found is not None:
                return found
        return self.plain(form.digest)

    def can_link(self, form: Form) -> bool:
        """Whether the file at `path` looks as wanted."""
        return form.is_linkable and (
            form.mode != LINKED_EXECUTABLE_MODE or self.executable(form.digest) is not None
        )


class Layout:
    """The changes that bring the folder at `top` to a tree."""

    def __init__(self, top: str, changes: Sequence[FolderChange], policy: Policy) -> None:
        self._top = top
        self._changes = changes
        self._policy = policy
        self.distant: list[DistantFile] = []
        """Files that `run` could not lay out, for want of a source."""
        self._files = 0
        self._bytes = 0

    @property
    def is_tiny(self) -> bool:
        """Whether it is done sooner than a thread is asked to, once all sources are in memory."""
        changes = [change for change in self._changes if change.is_needed]
        files = [file for change in changes for file in change.files.values()]
        return (
            len(changes) + len(files) <= _FEW
            and not any(change.remove for change in changes)
            and sum(file.digest.size_bytes for file in files) <= _FEW_BYTES
        )

    def digests(self) -> tuple[set[Digest], set[Digest]]:
        """The blobs that are needed: as they are, and executable to be linked."""
        plain: set[Digest] = set()
        executable: set[Digest] = set()
        for change in self._changes:
            for file in change.files.values():
                digest, is_executable, _, mtime_ns, unix_mode = file
                if not digest.size_bytes:
                    continue
                if mtime_ns is None and unix_mode is None:
                    (executable if is_executable and self._policy.link else plain).add(digest)
                    continue
                form = self._policy.form(file)
                linked = self._policy.link and form.is_linkable
                is_program = linked and form.mode == LINKED_EXECUTABLE_MODE
                (executable if is_program else plain).add(file.digest)
        return plain, executable

    def run(self, sources: Sources) -> Iterator[None]:
        """Do all that can be done. Yields where work has taken long enough for one trip."""
        with OpenFolders(self._top) as folders:
            place: list[str] = []
            for change in self._changes:
                folders.enter(change.depth, change.name)
                place[max(change.depth - 1, 0) :] = [change.name] if change.depth else []
                if change.is_needed:
                    yield from self._change_folder(change, folders, tuple(place), sources)

    def _change_folder(
        self,
        change: FolderChange,
        folders: OpenFolders,
        place: tuple[str, ...],
        sources: Sources,
    ) -> Iterator[None]:
        descriptor = folders.descriptor
        self._arrange(change, descriptor)
        for name, file in self._link_plainly(change, descriptor, sources):
            if not self._lay_file(change, descriptor, name, file, sources):
                self.distant.append(DistantFile(change, place, name, file))
            if self._is_long():
                yield
        self._stamp(descriptor, change.laid)

    def _stamp(self, descriptor: int, laid: LaidFolder) -> None:
        is_new = laid.stamp is None
        if is_new and self._policy.user is not None:
            os.fchown(descriptor, *self._policy.user)
        stamp_folder(descriptor, laid)
        assert laid.stamp is not None, "it was taken just now"
        # The umask may have taken something away, or the top may be somebody else's work.
        if is_new and stat.S_IMODE(laid.stamp.mode) != FOLDER_MODE:
            os.fchmod(descriptor, FOLDER_MODE)
            stamp_folder(descriptor, laid)

    def _arrange(self, change: FolderChange, descriptor: int) -> None:
        for name in change.remove:
            remove_entry(name, descriptor)
        for name in change.folders:
            os.mkdir(name, FOLDER_MODE, dir_fd=descriptor)
        for name, target in change.symlinks.items():
            os.symlink(target, name, dir_fd=descriptor)
            change.laid.symlinks[name] = target

    def _link_plainly(
        self, change: FolderChange, descriptor: int, sources: Sources
    ) -> Collection[tuple[str, FileEntry]]:
        """Make links, where they are new and as all others. Returns the rest.

        Most files are like that: what is done for each decides how long a layout takes.
        """
        if not self._policy.link:
            return change.files.items()
        rest = []
        plain, programs, _ = sources
        held, replaced, link, look = change.laid.files, change.replaced, os.link, os.stat
        for name, file in change.files.items():
            digest, is_executable, _, mtime_ns, unix_mode = file
            size_bytes = digest.size_bytes
            is_plain = mtime_ns is None and unix_mode is None and name not in replaced
            source = None
            if size_bytes and is_plain:
                source = programs(digest) if is_executable else plain(digest)
            if source:
                try:
                    link(source, name, dst_dir_fd=descriptor)
                    # A short name in a folder that is in use: half of the price of `source`.
                    status = look(name, dir_fd=descriptor, follow_symlinks=False)
                except OSError:
                    # The long way knows what to do about it.
                    pass
                else:
                    if status.st_size == size_bytes and status[ST_MTIME] == INPUT_MTIME:
                        held[name] = status.st_ino
                        continue
                    os.unlink(name, dir_fd=descriptor)
            rest.append((name, file))
        self._files += len(change.files) - len(rest)
        return rest

    def _lay_file(
        self,
        change: FolderChange,
        descriptor: int,
        name: str,
        file: FileEntry,
        sources: Sources,
    ) -> bool:
        form = self._policy.form(file)
        target = Target(name, descriptor, form, name in change.replaced, self._policy.owner(file))
        self._files += 1
        if not form.digest.size_bytes:
            self._note(change, file, name, write_file(target, _write_nothing))
            return True
        if form.digest in sources.held:
            fill = partial(write_all, data=sources.held[form.digest])
            self._note(change, file, name, write_file(target, fill))
            return True
        path = sources.path(form)
        if self._policy.link and path is not None and sources.can_link(form):
            try:
                change.laid.files[name] = link_file(target, path)
            except FileNotFoundError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                _log_no_link(error)
            else:
                return True
        return self._copy(change, target, file, path)

    def _copy(
        self, change: FolderChange, target: Target, file: FileEntry, path: str | None
    ) -> bool:
        with open_source(path) as source:
            if source is None:
                return False
            digest = file.digest
            self._bytes += digest.size_bytes
            self._note(
                change,
                file,
                target.name,
                write_file(target, lambda descriptor: copy_bytes(source, descriptor, digest)),
            )
            return True

    def _note(
        self, change: FolderChange, file: FileEntry, name: str, status: os.stat_result
    ) -> None:
        state: int | FileState = state_of(status)
        if self._policy.link:
            if file.unix_mode is None:
                state = status.st_ino
            else:
                change.laid.has_copies = True
        change.laid.files[name] = state

    # --- files whose blobs are not where they might have been

    def try_again(self, sources: Sources) -> Iterator[None]:
        """Do what `run` could not, as far as there are sources now. Yields as `run` does."""
        distant, self.distant = self.distant, []
        for file in distant:
            with self._opened(file) as folders:
                laid = self._lay_file(
                    file.change, folders.descriptor, file.name, file.file, sources
                )
                stamp_folder(folders.descriptor, file.change.laid)
            if not laid:
                self.distant.append(file)
            elif self._is_long():
                yield

    def _is_long(self) -> bool:
        """Whether this trip to a thread has been long enough."""
        if self._files < _FILES_AT_ONCE and self._bytes < _BYTES_AT_ONCE:
            return False
        self._files = self._bytes = 0
        return True

    def write(self, files: Sequence[DistantFile], blobs: Mapping[Digest, bytes]) -> None:
        """Write those of `files`, all in memory, whose blobs are in `blobs`."""
        for file in files:
            if file.file.digest in blobs:
                self._fill(file, partial(write_all, data=blobs[file.file.digest]))

    def _fill(self, file: DistantFile, fill: Callable[[int], None]) -> None:
        with self._opened(file) as folders:
            status = write_file(self._target(file, folders.descriptor), fill)
            self._note(file.change, file.file, file.name, status)
            stamp_folder(folders.descriptor, file.change.laid)

    def begin(self, file: DistantFile) -> Streamed:
        """Begin to write a file piece by piece."""
        folders = self._opened(file)
        try:
            part = PartialFile(self._target(file, folders.descriptor))
        except BaseException:
            folders.close()
            raise
        return Streamed(part, folders)

    def end(self, file: DistantFile, streamed: Streamed) -> None:
        """All of `file` was written."""
        self._note(file.change, file.file, file.name, streamed.part.finish())
        stamp_folder(streamed.folders.descriptor, file.change.laid)
        streamed.folders.close()

    def _opened(self, file: DistantFile) -> OpenFolders:
        folders = OpenFolders(self._top)
        for depth, name in enumerate(file.place, 1):
            folders.enter(depth, name)
        return folders

    def _target(self, file: DistantFile, descriptor: int) -> Target:
        return Target(
            file.name,
            descriptor,
            self._policy.form(file.file),
            file.name in file.change.replaced,
            self._policy.owner(file.file),
        )


class Streamed(NamedTuple):
    """A file that is written piece by piece, in its folder."""

    part: PartialFile
    folders: OpenFolders

    def discard(self) -> None:
        """Give up."""
        self.part.discard()
        self.folders.close()


def _write_nothing(_: int) -> None:
    pass


def _log_no_link(error: OSError) -> None:
    _log.debug("an input is copied, as it cannot be linked", reason=error.strerror)

"""Undoing what an action did to a folder, as far as that needs no blob. These functions block.

What is not as it was laid out is removed, from the folder and from what is remembered of it. The
next layout makes it again, if it is still wanted.
"""

# Strings and descriptors: for ten thousand files, making Paths would take half of the time.

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping, Set

from stoker.execution.arrangement import FOLDER_MODE, FileState, LaidFolder
from stoker.execution.attributes import strip_attributes
from stoker.execution.folder_watch import FolderWatch
from stoker.execution.open_folders import OpenFolders
from stoker.execution.removal import remove_entry
from stoker.spi import ProcessUser

# The time that file systems note goes on in steps of up to 10 ms. A folder that was changed so
# shortly before its stamp was taken may have been changed once more since without showing it.
_STEP_NS = 20 * 10**6

# A few looks cost less than a trip to a thread.
_FEW_LOOKS = 16


def is_untouched(
    top: str, laid: LaidFolder, *, links: bool, watch: FolderWatch | None = None
) -> bool:
    """Whether a folder is as it was laid out, so that `Cleaning` would do nothing.

    Takes a few looks at the most, and returns False for what takes more: for what is neither small
    nor known to a `watch`.
    """
    if watch is not None:
        watch.refresh()
    looks, waiting = 0, [(top, laid)]
    while waiting:
        path, folder = waiting.pop()
        waiting += [(f"{path}/{name}", below) for name, below in folder.folders.items()]
        touched = None if watch is None else watch.touched(folder.watch)
        if touched is not None and not touched:
            continue
        files = _files_in_doubt(folder, touched, links=links)
        if files is None:
            return False
        looks += 1 + len(files)
        if looks > _FEW_LOOKS or not _are_as_laid(path, folder, files):
            return False
    return True


def _files_in_doubt(
    folder: LaidFolder, touched: Set[str] | None, *, links: bool
) -> Mapping[str, FileState | int | None] | None:
    """The files that must be looked at where the folder itself is the same; None for a name of
    which there should be none.

    None as a whole where files alone do not tell. `touched` are the only names that must be
    looked at, if those are known.
    """
    if touched is not None:
        is_file = touched.isdisjoint(folder.folders) and touched.isdisjoint(folder.symlinks)
        return {name: folder.files.get(name) for name in touched} if is_file else None
    if not _is_settled(folder):
        return None
    # The folder is the same, and so are the links in it.
    return {} if links and not folder.has_copies else folder.files


def _are_as_laid(
    path: str, folder: LaidFolder, files: Mapping[str, FileState | int | None]
) -> bool:
    return _is_same_at(path, folder.stamp) and all(
        _is_same_at(f"{path}/{name}", state)
        for name, state in files.items()
        if not isinstance(state, int)
    )


def _is_same_at(path: str, state: FileState | None) -> bool:
    try:
        return state_of(os.lstat(path)) == state
    except FileNotFoundError:
        return state is None
    except OSError:
        return False


class Cleaning:
    """Brings the folder at `top` back to a part of `laid`, which then tells which part.

    With `links`, files are links whose content, permissions and times nobody can change: then a
    folder whose stamp is the same holds the same, and is not looked into. Time grows with folders
    and changes. Otherwise every file is looked at: an input may have been written to in place,
    which no folder tells, but its time does, which was set to long ago; or a watch that has looked
    at the folder before.
    """

    def __init__(
        self,
        top: str,
        laid: LaidFolder,
        *,
        links: bool,
        user: ProcessUser | None,
        watch: FolderWatch | None = None,
    ) -> None:
        """`watch` is asked, and told, of folders of copies."""
        self._watch = watch
        self._top = top
        self._laid = laid
        self._links = links
        self._user = user
        self._device = -1
        self._has_met_link = False
        self._looks_at_all = watch is None

    def run(self) -> None:
        """Raises OSError where something withstands; then the folder is in doubt."""
        if self._watch is not None:
            self._watch.refresh()
        self._clean_all()
        if self._has_met_link and not self._looks_at_all:
            # By which an input may have been written to, without its own folder being told.
            self._looks_at_all = True
            self._clean_all()

    def _clean_all(self) -> None:
        with OpenFolders(self._top) as folders:
            waiting = [(0, "", self._laid)]
            path: list[tuple[LaidFolder, str]] = []
            while waiting:
                depth, name, laid = waiting.pop()
                folders.enter(depth, name)
                del path[depth:]
                if not self._clean(folders, laid):
                    for above, _ in path:
                        above.is_exact = False
                path.append((laid, name))
                waiting += [(depth + 1, below, child) for below, child in laid.folders.items()]

    def _clean(self, folders: OpenFolders, laid: LaidFolder) -> bool:
        """Whether the folder itself still holds all that it held."""
        found = os.lstat(folders.path)
        stamp = state_of(found)
        if self._device < 0:
            self._device = found.st_dev
        touched = self._touched(laid)
        if stamp == laid.stamp:
            if touched is not None and not touched:
                return True
            if touched is None and _is_settled(laid):
                if self._links and not laid.has_copies:
                    return True
                self._begin_to_watch(folders.descriptor, laid)
                return self._check_copies(folders.descriptor, laid)
        if stamp != laid.stamp:
            self._restore(folders.descriptor, found)
        before = len(laid.files) + len(laid.symlinks) + len(laid.folders)
        if touched:
            self._look_into(folders.descriptor, laid, touched)
        else:
            self._begin_to_watch(folders.descriptor, laid)
            self._look_into(folders.descriptor, laid)
        stamp_folder(folders.descriptor, laid)
        whole = before == len(laid.files) + len(laid.symlinks) + len(laid.folders)
        laid.is_exact &= whole
        return whole

    def _touched(self, laid: LaidFolder) -> Set[str] | None:
        """The names in a folder that alone must be looked at; None if that is not known."""
        if self._watch is None or self._looks_at_all:
            return None
        return self._watch.take_touched(laid.watch)

    def _begin_to_watch(self, descriptor: int, laid: LaidFolder) -> None:
        """Before the look: what happens meanwhile counts as after it."""
        if self._watch is not None and not self._links:
            laid.watch = self._watch.add(descriptor)

    def _check_copies(self, descriptor: int, laid: LaidFolder) -> bool:
        """Remove the copies that were touched, in a folder that has the names that it had.

        It is done for thousands of files between two requests to a worker, and decides what that
        costs: one look each.
        """
        look, touched = os.stat, []
        for name, state in laid.files.items():
            if isinstance(state, FileState):
                status = look(name, dir_fd=descriptor, follow_symlinks=False)
                if not _is_same(status, state):
                    touched.append(name)
        for name in touched:
            remove_entry(name, descriptor)
            del laid.files[name]
        if touched:
            laid.is_exact = False
            stamp_folder(descriptor, laid)
        return not touched

    def _restore(self, descriptor: int, found: os.stat_result) -> None:
        if stat.S_IMODE(found.st_mode) != FOLDER_MODE:
            os.fchmod(descriptor, FOLDER_MODE)
        if self._user is not None and (found.st_uid, found.st_gid) != self._user:
            os.fchown(descriptor, *self._user)
        strip_attributes(descriptor)

    def _look_into(self, descriptor: int, laid: LaidFolder, names: Set[str] | None = None) -> None:
        """Remove what is not as it was laid out, and forget what is not there.

        With `names`, nothing else was touched.
        """
        sound = set()
        with os.scandir(descriptor) as scan:
            entries = [entry for entry in scan if names is None or entry.name in names]
        for entry in entries:
            if self._is_sound(entry, descriptor, laid):
                sound.add(entry.name)
            else:
                self._has_met_link |= not self._links and _has_another_name(entry)
                remove_entry(entry.name, descriptor)
        for held in (laid.files, laid.symlinks, laid.folders):
            for gone in (held.keys() if names is None else held.keys() & names) - sound:
                del held[gone]

    def _is_sound(self, entry: os.DirEntry[str], descriptor: int, laid: LaidFolder) -> bool:
        name = entry.name
        if name in laid.files:
            return self._is_same_file(entry, laid)
        if name in laid.symlinks:
            return entry.is_symlink() and (
                os.readlink(name, dir_fd=descriptor) == laid.symlinks[name]
            )
        if name in laid.folders:
            return self._is_same_folder(entry, laid.folders[name])
        return False

    def _is_same_folder(self, entry: os.DirEntry[str], laid: LaidFolder) -> bool:
        if not entry.is_dir(follow_symlinks=False) or laid.stamp is None:
            return False
        status = entry.stat(follow_symlinks=False)
        return (status.st_dev, status.st_ino) == (laid.stamp.device, laid.stamp.inode)

    def _is_same_file(self, entry: os.DirEntry[str], laid: LaidFolder) -> bool:
        held = laid.files[entry.name]
        if not entry.is_file(follow_symlinks=False):
            return False
        if isinstance(held, FileState):
            return _is_same(entry.stat(follow_symlinks=False), held)
        if entry.inode() != held:
            return False
        return self._is_same_link(entry.stat(follow_symlinks=False), entry.name, laid)

    def _is_same_link(self, status: os.stat_result, name: str, laid: LaidFolder) -> bool:
        """Whether a file with the number of the link is that link.

        If the store has dropped the blob meanwhile, and the action the link, the number may be
        that of a new file. A new file is the user's own; its inode was changed since the layout;
        and it has no name in the store.
        """
        if status.st_dev != self._device:
            return False
        if self._user is not None:
            return status.st_uid != self._user.uid
        is_old = status.st_ctime_ns < laid.stamped_ns - _STEP_NS
        return is_old or (
            status.st_nlink > 1 and status.st_size == laid.directory.files[name].digest.size_bytes
        )


def _has_another_name(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_nlink > 1


def _is_settled(laid: LaidFolder) -> bool:
    return laid.stamp is not None and laid.stamp.ctime_ns < laid.stamped_ns - _STEP_NS


def _is_same(status: os.stat_result, state: FileState) -> bool:
    """Whether a file is in `state`. Making another state to compare takes as long as the look."""
    return (
        status.st_ctime_ns == state.ctime_ns
        and status.st_ino == state.inode
        and status.st_mtime_ns == state.mtime_ns
        and status.st_size == state.size_bytes
        and status.st_mode == state.mode
        and status.st_dev == state.device
    )


def state_of(status: os.stat_result) -> FileState:
    """The part of `status` that tells whether something was touched."""
    return FileState(
        status.st_dev,
        status.st_ino,
        # A folder's size says nothing that its times do not.
        0 if stat.S_ISDIR(status.st_mode) else status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_mode,
    )


def stamp_folder(descriptor: int, laid: LaidFolder) -> None:
    """Note the state of an open folder, all changes of which are done."""
    laid.stamp = state_of(os.fstat(descriptor))
    laid.stamped_ns = time.time_ns()

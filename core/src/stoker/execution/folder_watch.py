"""Being told by the kernel what was touched in folders, so that not every file must be looked at.

Source: inotify(7). An event is there to be read before the call that caused it has returned. There
is none for a write to memory that a file is mapped to, until the mapping has gone and the file is
closed: a tool that keeps an input of one request mapped for writing, and writes to it in the next
one, is seen late. And there is none for a write by another name of the same file, in whatever
folder: where such a name is found, all is to be looked at; one that has gone again is not seen.

These functions block for no longer than a system call takes, and may be called from any thread.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress

import structlog

_log = structlog.get_logger(__name__)

MAX_WATCHES = 20_000
"""How many folders are watched at once; the kernel keeps about a kilobyte for each."""

_MODIFY, _ATTRIB, _CLOSE_WRITE = 0x2, 0x4, 0x8
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_OVERFLOW, _IGNORED, _ONLY_DIRECTORIES = 0x4000, 0x8000, 0x01000000
_TOUCHED = (
    _MODIFY
    | _ATTRIB
    | _CLOSE_WRITE
    | _MOVED_FROM
    | _MOVED_TO
    | _CREATE
    | _DELETE
    | _DELETE_SELF
    | _MOVE_SELF
)
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_READ_BYTES = 2**16
_MAX_NAMES = 1_000


class FolderWatch:
    """What was touched in folders, and by which names, since they were looked at.

    Without a `descriptor`, or where the kernel refuses, it knows of none: then all is looked at.
    """

    def __init__(self, descriptor: int | None) -> None:
        """Use `descriptor`, of an inotify instance that does not block."""
        self._descriptor = descriptor
        self._touched: dict[int, set[str]] = {}
        """Of the folders of which all that was touched is known."""
        self._watches: set[int] = set()
        self._last = 0  # the highest number that was given
        self._before = 0  # the same, by earlier instances, each of which counts from 1
        self._lock = threading.Lock()

    def add(self, folder: int) -> int:
        """Watch the open `folder`, which counts as untouched from now on: look at it next.

        Returns a number for it, and 0 if it cannot be watched.
        """
        with self._lock:
            if len(self._watches) >= MAX_WATCHES:
                self._read()  # some may have gone
            if self._descriptor is None or len(self._watches) >= MAX_WATCHES:
                return 0
            before = self._before
            # By its descriptor, and so not what somebody has put in its place.
            path = f"/proc/self/fd/{folder}".encode()
            watch = int(
                _libc().inotify_add_watch(self._descriptor, path, _TOUCHED | _ONLY_DIRECTORIES)
            )
            if watch <= 0:
                return 0
            self._read()  # what has happened before the look says nothing of what comes after
            if before != self._before:
                return 0  # it was given up with all others
            number = before + watch
            self._last = max(self._last, number)
            self._watches.add(number)
            self._touched[number] = set()
            return number

    def touched(self, watch: int) -> Set[str] | None:
        """As `take_touched`, but they go on counting as touched."""
        with self._lock:
            names = self._touched.get(watch)
            return None if names is None else frozenset(names)

    def take_touched(self, watch: int) -> Set[str] | None:
        """The names in the folder that were touched, as far as `refresh` has been told; they count
        as untouched from now on: look at them next.

        None where only a look at the whole folder can tell.
        """
        with self._lock:
            names = self._touched.get(watch)
            if names is not None:
                self._touched[watch] = set()
            return names

    def refresh(self) -> None:
        """Learn what has been touched."""
        with self._lock:
            self._read()

    def close(self) -> None:
        """Know of nothing any more."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None
            self._touched.clear()

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while self._descriptor is not None:
                self._note(os.read(self._descriptor, _READ_BYTES))

    def _note(self, events: bytes) -> None:
        position = 0
        while position < len(events):
            watch, mask, _, length = _EVENT.unpack_from(events, position)
            position += _EVENT.size + length
            if mask & _OVERFLOW:
                self._begin_anew()
                return
            number = self._before + watch
            self._note_name(number, events[position - length : position].rstrip(b"\0"))
            if mask & _IGNORED:  # the folder is gone, and its number is not used again
                self._watches.discard(number)

    def _begin_anew(self) -> None:
        """Events were lost. Folders may have gone, and would count as watched for good."""
        assert self._descriptor is not None, "it was read from"
        os.close(self._descriptor)
        self._descriptor = _open_instance()
        self._before = self._last
        self._watches.clear()
        self._touched.clear()

    def _note_name(self, number: int, name: bytes) -> None:
        names = self._touched.get(number)
        if names is None:
            return
        # What has no name happened to the folder itself.
        if name and len(names) < _MAX_NAMES:
            names.add(os.fsdecode(name))
        else:
            del self._touched[number]


@contextmanager
def open_folder_watch() -> Iterator[FolderWatch]:
    """A watch that knows of nothing yet, and of nothing at all where there is no inotify."""
    watch = FolderWatch(_open_instance())
    try:
        yield watch
    finally:
        watch.close()


def _open_instance() -> int | None:
    descriptor = int(_libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor >= 0:
        return descriptor
    reason = os.strerror(ctypes.get_errno())
    _log.info("workers' inputs are looked at one by one, as inotify fails", reason=reason)
    return None


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)

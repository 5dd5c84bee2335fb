"""A view of an input root that can be written at will, and how its changes become the root's.

The view is an overlay file system: the root below, and above it a folder beside the root on the
same file system. It is mounted within the enclosure and gone with it. What was written, replaced
or touched is then found in the upper folder, always as new files: those of the root, which may be
hard links to blobs, are never written to. These functions work on the disk; call them in a thread,
while no process of the enclosure lives.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from stoker import spi

_OPAQUE = "user.overlay.opaque"
_OWN = stat.S_IRWXU


class _Folder(NamedTuple):
    path: str
    status: os.stat_result


def prepare(private: str, root: str, user: spi.ProcessUser) -> None:
    """Make the folders of an overlay over `root` in the folder `private`, for `user`."""
    upper = os.path.join(private, "upper")
    for name in ("upper", "work", "merged"):
        path = os.path.join(private, name)
        os.mkdir(path)  # noqa: PTH102  # hot
        give(path, user)
    # The mount is asked for in words in which a comma or a colon of the path would mean something.
    os.symlink(root, os.path.join(private, "lower"))  # noqa: PTH211  # hot
    status = os.stat(root)  # noqa: PTH116  # hot
    os.chmod(upper, stat.S_IMODE(status.st_mode))  # noqa: PTH101  # hot
    _set_times(upper, status)


def give(path: str, user: spi.ProcessUser) -> None:
    """Make `path` belong to `user`, where this process may do so."""
    if user != (os.geteuid(), os.getegid()):
        os.chown(path, *user)


def apply(private: str, root: str) -> None:
    """Make the changes in the upper folder those of `root`, by renames and removals alone.

    What is removed goes into `private`. Raises OSError, after which the root is in doubt.
    """
    discards = (os.path.join(private, f"discarded-{number}") for number in itertools.count())
    merged: list[_Folder] = []
    pending = [(os.path.join(private, "upper"), root)]
    while pending:
        upper, lower = pending.pop()
        status = os.stat(upper)  # noqa: PTH116  # hot
        if _is_untouched(upper, status, lower):
            continue
        merged.append(_Folder(lower, status))
        _open_up(upper)
        _open_up(lower)
        pending += _apply_folder(upper, lower, discards)
    # Inner ones first: an outer one may be closed to this very process.
    for folder in reversed(merged):
        _restore(folder)


def _is_untouched(upper: str, status: os.stat_result, lower: str) -> bool:
    if status.st_mode & _OWN != _OWN:
        # It may be closed to this very process.
        return False
    return _same(status, os.stat(lower)) and not os.listdir(upper)  # noqa: PTH116, PTH208  # hot


def _apply_folder(upper: str, lower: str, discards: Iterator[str]) -> list[tuple[str, str]]:
    """Apply one folder. Returns the pairs of folders below that are there on both sides."""
    both = []
    for name in os.listdir(upper):  # noqa: PTH208  # hot
        source, target = os.path.join(upper, name), os.path.join(lower, name)
        status = os.lstat(source)
        if _is_whiteout(status):
            _discard(target, discards)
        elif not stat.S_ISDIR(status.st_mode):
            _discard(target, discards)
            os.rename(source, target)  # noqa: PTH104  # hot
        elif _is_folder(target) and not _is_opaque(source):
            both.append((source, target))
        else:
            _discard(target, discards)
            _move_folder(source, target, status)
    return both


def _is_whiteout(status: os.stat_result) -> bool:
    """Whether this stands for the absence of what lies below."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_folder(path: str) -> bool:
    with suppress(FileNotFoundError):
        return stat.S_ISDIR(os.lstat(path).st_mode)
    return False


def _is_opaque(path: str) -> bool:
    with suppress(OSError):
        return os.getxattr(path, _OPAQUE) == b"y"
    return False


def _discard(path: str, discards: Iterator[str]) -> None:
    with suppress(FileNotFoundError):
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            _move_folder(path, next(discards), status)
        else:
            os.unlink(path)  # noqa: PTH108  # hot


def _move_folder(source: str, target: str, status: os.stat_result) -> None:
    # Moving a folder changes its "..", for which it must be writable.
    _open_up(source)
    with suppress(OSError):
        os.removexattr(source, _OPAQUE)
    os.rename(source, target)  # noqa: PTH104  # hot
    _restore(_Folder(target, status))


def _open_up(path: str) -> None:
    mode = stat.S_IMODE(os.stat(path).st_mode)  # noqa: PTH116  # hot
    if mode & _OWN != _OWN:
        os.chmod(path, mode | _OWN)  # noqa: PTH101  # hot


def _restore(folder: _Folder) -> None:
    """Give a folder the permissions and the time that the process saw and may have set."""
    mode = stat.S_IMODE(folder.status.st_mode)
    if stat.S_IMODE(os.stat(folder.path).st_mode) != mode:  # noqa: PTH116  # hot
        os.chmod(folder.path, mode)  # noqa: PTH101  # hot
    _set_times(folder.path, folder.status)


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_mode, one.st_mtime_ns) == (other.st_mode, other.st_mtime_ns)


def _set_times(path: str, status: os.stat_result) -> None:
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

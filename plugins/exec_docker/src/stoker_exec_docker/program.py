"""Which file of a container a command names, and why it could not be started (RUN-09, RUN-17).

Looked at from outside, before anything of the action runs: engines tell of such trouble in words
that differ from version to version.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from stoker import spi
from stoker_exec_docker.inside import Inside

DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
"""Where a bare program name is looked up when the environment sets no PATH."""

_ABSENT: Final = 127
_NOT_EXECUTABLE: Final = 126
_ELF_HEAD: Final = struct.Struct("=4s3B9xHH")


def find_env(inside: Inside) -> str | None:
    """A program that starts others with fewer variables, if it is there."""
    return next((path for path in ("/usr/bin/env", "/bin/env") if inside.status(path)), None)


class _Candidate(NamedTuple):
    path: str
    """As it is named, absolute."""
    status: os.stat_result


def find_program(inside: Inside, spec: spi.ProcessSpec, user: spi.ProcessUser) -> str:
    """The program's absolute path, as `spec` names it.

    Raises ProgramNotStarted, and ProcessLookupError if the container has ended.
    """
    name = spec.argv[0]
    if "\0" in "".join(spec.argv):
        raise spi.ProgramNotStarted(
            name.replace("\0", "?"), "a null character in its arguments", exit_code=_NOT_EXECUTABLE
        )
    candidate = _find(inside, spec, user)
    reason = _obstacle(inside, candidate, user)
    if reason:
        raise spi.ProgramNotStarted(name, reason, exit_code=_NOT_EXECUTABLE)
    return candidate.path


def _find(inside: Inside, spec: spi.ProcessSpec, user: spi.ProcessUser) -> _Candidate:
    name = spec.argv[0]
    if "/" in name:
        path = os.path.join(spec.root, spec.working_directory, name)
        candidate = _candidate(inside, path)
        if candidate is None:
            raise spi.ProgramNotStarted(name, "not found", exit_code=_ABSENT)
        return candidate
    search_path = spec.environment.get("PATH") or DEFAULT_PATH
    found = [
        candidate
        for candidate in _candidates(inside, spec, search_path)
        if stat.S_ISREG(candidate.status.st_mode)
    ]
    runnable = (candidate for candidate in found if _may_execute(candidate.status, user))
    # A file that cannot be executed is still the better answer than none: it says more.
    choice = next(runnable, None) or next(iter(found), None)
    if choice is None:
        reason = f"not found in PATH {search_path[:500]}"
        raise spi.ProgramNotStarted(name or "''", reason, exit_code=_ABSENT)
    return choice


def _candidates(inside: Inside, spec: spi.ProcessSpec, search_path: str) -> Iterator[_Candidate]:
    for folder in search_path.split(":") if spec.argv[0] else ():
        # The engine looks nothing up in a folder that is not absolute.
        if folder.startswith("/"):
            candidate = _candidate(inside, f"{folder}/{spec.argv[0]}")
            if candidate is not None:
                yield candidate


def _candidate(inside: Inside, path: str) -> _Candidate | None:
    status = inside.status(path)
    return None if status is None else _Candidate(path, status)


def _obstacle(inside: Inside, candidate: _Candidate, user: spi.ProcessUser) -> str:
    mode = candidate.status.st_mode
    if stat.S_ISDIR(mode):
        return "a directory, not a program"
    if not stat.S_ISREG(mode):
        return "not a regular file"
    if not _may_execute(candidate.status, user):
        return "not executable by this user" if mode & 0o111 else "not executable"
    try:
        start = inside.first_bytes(candidate.path)
    except ProcessLookupError:
        raise
    except OSError as error:
        return f"not to be reached: {error.strerror}"
    return _obstacle_in(inside, start)


def _obstacle_in(inside: Inside, start: bytes) -> str:
    if start.startswith(b"#!"):
        words = start[2:].split(b"\n")[0].split()
        interpreter = os.fsdecode(words[0]) if words else ""
        if interpreter.startswith("/") and inside.status(interpreter) is None:
            return f"its interpreter {interpreter} is not there"
        return ""
    if not _is_elf(start):
        return "its format is not one that this machine executes"
    return ""


def _is_elf(start: bytes) -> bool:
    if len(start) < _ELF_HEAD.size:
        return False
    magic, width, order, version, kind, _ = _ELF_HEAD.unpack_from(start)
    # Executable or shared object, 32 or 64 bits. Which machine is the kernel's affair.
    return (
        magic == b"\x7fELF"
        and width in (1, 2)
        and order in (1, 2)
        and version == 1
        and (kind in (2, 3, 0x200, 0x300))
    )


def _may_execute(status: os.stat_result, user: spi.ProcessUser) -> bool:
    mode = status.st_mode
    if user.uid == 0:
        return bool(mode & 0o111)
    if status.st_uid == user.uid:
        return bool(mode & 0o100)
    return bool(mode & (0o010 if status.st_gid == user.gid else 0o001))

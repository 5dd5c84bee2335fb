"""Which file a command names, and why it could not be started (RUN-09, RUN-17).

These functions run in the folder of the command: as its user in a process that was to become it, or
in the launcher itself, where it has no user of its own.
"""

# ruff: noqa: PTH110, PTH112, PTH113, PTH114
# Unlike those of Path, these functions say no to a name that is too long, rather than raise.

from __future__ import annotations

import errno
import os
import stat

from stoker_exec_local.launcher.messages import AT_FAULT, UNAVAILABLE, UNMET, Start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_PATH = b"/usr/local/bin:/usr/bin:/bin"
"""Where a bare program name is looked up when the environment sets no PATH."""

ABSENT = 127
NOT_EXECUTABLE = 126

_LONGEST_SHOWN = 500

_FAULTS_OF_THE_MACHINE = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})


class NotStarted(Exception):
    """Why there is no process: what follows NOT_STARTED in a message."""

    def __init__(self, *facts: str | int) -> None:
        self.facts = facts
        super().__init__(*facts)


def find_program(start: Start) -> bytes:
    """The file that the first argument stands for, absolute or relative to the current folder.

    Raises NotStarted for a name that no directory of the PATH holds.
    """
    program = start.argv[0]
    if b"/" in program:
        return program
    search_path = start.environment.get(b"PATH") or DEFAULT_PATH
    found = [path for path in _candidates(search_path, program) if os.path.isfile(path)]
    runnable = (path for path in found if os.access(path, os.X_OK))
    # A file that cannot be executed is still the better answer than none: it says more.
    choice = next(runnable, None) or next(iter(found), None)
    if choice is None:
        reason = f"not found in PATH {_shown(search_path)}"
        raise NotStarted(AT_FAULT, _shown(program) or "''", reason, ABSENT)
    return choice


def _candidates(search_path: bytes, program: bytes) -> Iterator[bytes]:
    for directory in search_path.split(b":") if program else ():
        yield os.path.join(directory or b".", program)


def why_not_entered(error: OSError, start: Start) -> NotStarted:
    """Why the working directory of a command could not be entered."""
    if not os.path.isdir(start.root):
        return NotStarted(UNAVAILABLE, f"there is no input root {_shown(start.root)}")
    folder = _shown(start.working_directory) or "."
    if error.errno in (errno.EACCES, errno.EPERM):
        reason = f"the working directory {folder} may not be entered"
        return NotStarted(UNMET if start.working_directory else UNAVAILABLE, reason)
    # All that can be made of folders has been: an input is in the way, such as a link to nothing.
    return NotStarted(UNMET, f"the working directory {folder} leads to no directory")


def why_not_executed(error: OSError | ValueError, argv0: bytes, program: bytes) -> NotStarted:
    """Why the system did not execute `program`, which the command calls `argv0`."""
    name = _shown(argv0)
    if isinstance(error, ValueError):
        return NotStarted(AT_FAULT, name, str(error), NOT_EXECUTABLE)
    if error.errno in _FAULTS_OF_THE_MACHINE:
        return NotStarted(UNAVAILABLE, f"no process can be started now: {error.strerror}")
    if error.errno == errno.ETXTBSY:
        reason = f"{name}: another process holds the program open for writing"
        return NotStarted(UNAVAILABLE, reason)
    return NotStarted(AT_FAULT, name, *_diagnosis(error, program))


def _diagnosis(error: OSError, path: bytes) -> tuple[str, int]:
    if error.errno == errno.ENOENT and os.path.exists(path):
        return f"{_interpreter(path)} is not there", NOT_EXECUTABLE
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "a symbolic link to nothing" if os.path.islink(path) else "not found", ABSENT
    if error.errno == errno.EACCES:
        return _why_refused(path), NOT_EXECUTABLE
    if error.errno == errno.ENOEXEC:
        return "its format is not one that this machine executes", NOT_EXECUTABLE
    return error.strerror or str(error), NOT_EXECUTABLE


def _why_refused(path: bytes) -> str:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  # no pathlib here
    except OSError as error:
        return f"not to be reached: {error.strerror}"
    if stat.S_ISDIR(mode):
        return "a directory, not a program"
    if not stat.S_ISREG(mode):
        return "not a regular file"
    if os.access(path, os.X_OK):
        return f"{_interpreter(path)} may not be executed"
    return "not executable" if not mode & 0o111 else "not executable by this user"


def _interpreter(path: bytes) -> str:
    """What the kernel starts in place of the file itself, for a message."""
    try:
        start = _first_bytes(path)
    except OSError:
        return "its interpreter"
    words = start[2:].split(b"\n")[0].split() if start.startswith(b"#!") else []
    return f"its interpreter {os.fsdecode(words[0])}" if words else "its interpreter or loader"


def _first_bytes(path: bytes) -> bytes:
    """The beginning of a regular file. Without O_NONBLOCK, a fifo in its place would hang."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, 256) if is_regular else b""
    finally:
        os.close(descriptor)


def _shown(name: bytes) -> str:
    text = os.fsdecode(name)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"

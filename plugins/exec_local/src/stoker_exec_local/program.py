"""Which file a command names, and why it could not be started (RUN-09, RUN-17).

These functions look at the disk; call them in a thread.
"""

# ruff: noqa: PTH110, PTH112, PTH113, PTH114
# Unlike those of Path, these functions say no to a name that is too long, rather than raise.

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from stoker import spi

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
"""Where a bare program name is looked up when the environment sets no PATH."""

ABSENT = 127
NOT_EXECUTABLE = 126

_LONGEST_SHOWN = 500

_FAULTS_OF_THE_MACHINE = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})


def find_program(spec: spi.ProcessSpec, folder: Path) -> str:
    """What a program without a slash stands for, absolute or relative to the working directory.

    Raises ProgramNotStarted for a name that no directory of the PATH holds.
    """
    program = spec.argv[0]
    search_path = spec.environment.get("PATH") or DEFAULT_PATH
    found = [path for path in _candidates(search_path, program) if os.path.isfile(folder / path)]
    runnable = (path for path in found if os.access(folder / path, os.X_OK))
    # A file that cannot be executed is still the better answer than none: it says more.
    choice = next(runnable, None) or next(iter(found), None)
    if choice is None:
        raise spi.ProgramNotStarted(
            _shown(program) or "''", f"not found in PATH {_shown(search_path)}", exit_code=ABSENT
        )
    return choice


def _candidates(search_path: str, program: str) -> Iterator[str]:
    for directory in search_path.split(":") if program else ():
        yield os.path.join(directory or ".", program)


def why_not_started(
    error: OSError | ValueError, spec: spi.ProcessSpec, program: str, folder: Path
) -> spi.StokerError:
    """The error to raise when the system refused to start `program` in `folder`."""
    name = _shown(program)
    if isinstance(error, ValueError):
        return spi.ProgramNotStarted(name, str(error), exit_code=NOT_EXECUTABLE)
    if error.errno in _FAULTS_OF_THE_MACHINE:
        return spi.Unavailable(f"no process can be started now: {error.strerror}")
    if error.errno == errno.ETXTBSY:
        return spi.Unavailable(f"{name}: another process holds the program open for writing")
    if not os.path.isdir(folder):
        return _no_working_directory(spec)
    reason, exit_code = _diagnosis(error, folder / program)
    return spi.ProgramNotStarted(name, reason, exit_code=exit_code)


def _no_working_directory(spec: spi.ProcessSpec) -> spi.StokerError:
    if not os.path.isdir(spec.root):
        return spi.Unavailable(f"there is no input root {spec.root}")
    # All that can be made of folders has been: an input is in the way, such as a link to nothing.
    return spi.FailedPrecondition(
        f"the working directory {_shown(spec.working_directory)} leads to no directory"
    )


def _diagnosis(error: OSError, path: Path) -> tuple[str, int]:
    if error.errno == errno.ENOENT and os.path.exists(path):
        return f"{_interpreter(path)} is not there", NOT_EXECUTABLE
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "a symbolic link to nothing" if os.path.islink(path) else "not found", ABSENT
    if error.errno == errno.EACCES:
        return _why_refused(path), NOT_EXECUTABLE
    if error.errno == errno.ENOEXEC:
        return "its format is not one that this machine executes", NOT_EXECUTABLE
    return error.strerror or str(error), NOT_EXECUTABLE


def _why_refused(path: Path) -> str:
    if os.path.isdir(path):
        return "a directory, not a program"
    if not os.path.isfile(path):
        return "not a regular file"
    if os.access(path, os.X_OK):
        return f"{_interpreter(path)} may not be executed"
    return "not executable"


def _interpreter(path: Path) -> str:
    """What the kernel starts in place of the file itself, for a message."""
    try:
        start = _first_bytes(path)
    except OSError:
        return "its interpreter"
    words = start[2:].split(b"\n")[0].split() if start.startswith(b"#!") else []
    return f"its interpreter {os.fsdecode(words[0])}" if words else "its interpreter or loader"


def _first_bytes(path: Path) -> bytes:
    """The beginning of a regular file. Without O_NONBLOCK, a fifo in its place would hang."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, 256) if is_regular else b""
    finally:
        os.close(descriptor)


def _shown(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"

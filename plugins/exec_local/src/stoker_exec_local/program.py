"""Which file a command names, and why it could not be started (RUN-09, RUN-17)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from stoker import spi

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
"""Where a bare program name is looked up when the environment sets no PATH."""

ABSENT = 127
NOT_EXECUTABLE = 126

_FAULTS_OF_THE_MACHINE = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})


def find_program(spec: spi.ProcessSpec, folder: Path) -> str:
    """The path to execute, absolute or relative to `folder`, the working directory.

    Raises ProgramNotStarted for a bare name that no directory of the PATH holds.
    """
    program = spec.argv[0]
    if "/" in program:
        return program
    search_path = spec.environment.get("PATH") or DEFAULT_PATH
    found = [path for path in _candidates(search_path, program) if (folder / path).is_file()]
    runnable = (path for path in found if os.access(folder / path, os.X_OK))
    # A file that cannot be executed is still the better answer than none: it says more.
    choice = next(runnable, None) or next(iter(found), None)
    if choice is None:
        raise spi.ProgramNotStarted(
            program or "''", f"not found in PATH {search_path}", exit_code=ABSENT
        )
    return choice


def _candidates(search_path: str, program: str) -> Iterator[str]:
    for directory in search_path.split(":") if program else ():
        yield os.path.join(directory or ".", program)


def why_not_started(error: OSError | ValueError, program: str, folder: Path) -> spi.StokerError:
    """The error to raise when the system refused to start `program` in `folder`."""
    if isinstance(error, ValueError):
        return spi.ProgramNotStarted(program, str(error), exit_code=NOT_EXECUTABLE)
    if error.errno in _FAULTS_OF_THE_MACHINE:
        return spi.Unavailable(f"no process can be started now: {error.strerror}")
    if error.errno == errno.ETXTBSY:
        return spi.Unavailable(f"{program}: another process holds the program open for writing")
    if not folder.is_dir():
        return spi.Unavailable(f"there is no working directory {folder}")
    reason, exit_code = _diagnosis(error, folder / program)
    return spi.ProgramNotStarted(program, reason, exit_code=exit_code)


def _diagnosis(error: OSError, path: Path) -> tuple[str, int]:
    if error.errno == errno.ENOENT and path.exists():
        return f"{_interpreter(path)} is not there", NOT_EXECUTABLE
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "a symbolic link to nothing" if path.is_symlink() else "not found", ABSENT
    if error.errno == errno.EACCES:
        return _why_refused(path), NOT_EXECUTABLE
    if error.errno == errno.ENOEXEC:
        return "its format is not one that this machine executes", NOT_EXECUTABLE
    return error.strerror or str(error), NOT_EXECUTABLE


def _why_refused(path: Path) -> str:
    if path.is_dir():
        return "a directory, not a program"
    if os.access(path, os.X_OK):
        return f"{_interpreter(path)} may not be executed"
    return "not executable"


def _interpreter(path: Path) -> str:
    """What the kernel starts in place of the file itself, for a message."""
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError:
        return "its interpreter"
    words = start[2:].split(b"\n")[0].split() if start.startswith(b"#!") else []
    return f"its interpreter {os.fsdecode(words[0])}" if words else "its interpreter or loader"

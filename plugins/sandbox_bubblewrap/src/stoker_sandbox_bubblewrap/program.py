"""Whether a program can be started inside, told before it is tried (RUN-09, RUN-17).

Bubblewrap itself would only say so in words. These functions look at the disk; call them in a
thread. What they do not find out is told by the exit codes of the shells, 127 and 126.
"""

# ruff: noqa: PTH110, PTH112, PTH113
# Unlike those of Path, these functions say no to a name that is too long, rather than raise.

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from stoker import spi

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
"""Where a bare program name is looked up when the environment sets no PATH."""

ABSENT = 127
NOT_EXECUTABLE = 126

_PATH_OF_LIBC = ("/bin", "/usr/bin")
"""Where execvp looks without a PATH."""
_MAX_WORD_BYTES = 128 * 1024
_MAX_TOTAL_BYTES = 6 * 1024 * 1024
_HEADER_BYTES = 256
_LONGEST_SHOWN = 500
_BINFMT = "/proc/sys/fs/binfmt_misc"
# What tells an ELF file's machine: class and byte order, and the number of the machine.
_CLASS = slice(4, 6)
_MACHINE = slice(18, 20)
_OF_32_BITS = b"\x01\x01"

Seen = Callable[[str], bool]


def check_program(spec: spi.ProcessSpec, seen: Seen) -> str:
    """What to start inside for the program of `spec`; `seen` tells which real paths are there.

    Raises ProgramNotStarted.
    """
    folder = spec.root / spec.working_directory
    program = spec.argv[0]
    if "/" not in program:
        path = _look_up(spec, folder, seen)
        _check_file(program, path, folder, seen)
        return program if _is_found_by_libc(spec, path) else path
    _check_file(program, program, folder, seen)
    return program


def check_words(spec: spi.ProcessSpec) -> None:
    """Raise ProgramNotStarted for arguments and variables that no process can be given."""
    variables = [f"{name}={value}" for name, value in spec.environment.items()]
    sizes = [len(os.fsencode(word)) + 1 for word in (*spec.argv, *variables)]
    # The kernel counts a pointer to each, too.
    if max(sizes) > _MAX_WORD_BYTES or sum(sizes) + 8 * len(sizes) > _max_total_bytes():
        reason = "the list of its arguments and variables is too long"
    elif any("\0" in word for word in (*spec.argv, *variables)):
        reason = "an argument or variable holds a null byte"
    elif any(not name or "=" in name for name in spec.environment):
        reason = "a variable has a name that none can have"
    else:
        return
    raise spi.ProgramNotStarted(_shown(spec.argv[0]), reason, exit_code=NOT_EXECUTABLE)


def _max_total_bytes() -> int:
    """What the kernel takes: a quarter of the stack's limit, and never more than 6 MiB."""
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return _MAX_TOTAL_BYTES if soft == resource.RLIM_INFINITY else min(soft // 4, _MAX_TOTAL_BYTES)


def _look_up(spec: spi.ProcessSpec, folder: Path, seen: Seen) -> str:
    search_path = spec.environment.get("PATH") or DEFAULT_PATH
    program = spec.argv[0]
    paths = _candidates(search_path, program)
    found = [path for path in paths if _is_seen_file(folder / path, seen)]
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


def _is_found_by_libc(spec: spi.ProcessSpec, path: str) -> bool:
    return bool(spec.environment.get("PATH")) or os.path.dirname(path) in _PATH_OF_LIBC  # noqa: PTH120  # a string


def _is_seen_file(path: Path, seen: Seen) -> bool:
    return os.path.isfile(path) and seen(os.path.realpath(path))


def _check_file(program: str, name: str, folder: Path, seen: Seen) -> None:
    path = folder / name
    if not os.path.exists(path) or not seen(os.path.realpath(path)):
        # The same, whatever lies outside: what is there is not for clients to find out.
        reason = "not found in the sandbox"
        raise spi.ProgramNotStarted(_shown(program), reason, exit_code=ABSENT)
    if reason := _why_not_executable(path, seen):
        raise spi.ProgramNotStarted(_shown(program), reason, exit_code=NOT_EXECUTABLE)


def _why_not_executable(path: Path, seen: Seen) -> str:
    if os.path.isdir(path):
        return "a directory, not a program"
    if not os.path.isfile(path):
        return "not a regular file"
    if not _any_may_execute(path):
        return "not executable"
    try:
        start = _first_bytes(path)
    except OSError:
        # Whoever runs it may have rights that this process has not.
        return ""
    return _why_refused_by_kernel(start, path.parent, seen)


def _any_may_execute(path: Path) -> bool:
    # Not os.access: the process may run as another user than this one.
    return bool(path.stat().st_mode & 0o111)


def _why_refused_by_kernel(start: bytes, folder: Path, seen: Seen) -> str:
    if start.startswith(b"#!"):
        words = start[2:].split(b"\n")[0].split()
        interpreter = os.fsdecode(words[0]) if words else ""
        there = os.path.exists(folder / interpreter) and seen(os.path.realpath(interpreter))
        return "" if there else f"its interpreter {_shown(interpreter)} is not there"
    if _is_for_this_machine(start) or _has_other_formats():
        return ""
    return "its format is not one that this machine executes"


def _is_for_this_machine(start: bytes) -> bool:
    own = _first_bytes(Path("/proc/self/exe"))
    if not start.startswith(b"\x7fELF") or len(start) < _MACHINE.stop:
        return False
    # A 32-bit program may well run; whether it does is the kernel's to say.
    return start[_CLASS] == _OF_32_BITS or start[_MACHINE] == own[_MACHINE]


def _has_other_formats() -> bool:
    """Whether the kernel was told of more formats, such as those of other machines."""
    try:
        return bool(set(os.listdir(_BINFMT)) - {"register", "status"})  # noqa: PTH208  # names only
    except OSError:
        return False


def _first_bytes(path: Path) -> bytes:
    """The beginning of a regular file. Without O_NONBLOCK, a fifo in its place would hang."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, _HEADER_BYTES) if is_regular else b""
    finally:
        os.close(descriptor)


def _shown(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"

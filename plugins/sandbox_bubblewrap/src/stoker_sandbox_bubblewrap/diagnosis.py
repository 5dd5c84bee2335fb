"""What the programs of the enclosure said when they could not start the command.

Their words are on the command's stderr. A command that imitates them deceives nobody but its own
client: such an outcome is never cached.
"""

from __future__ import annotations

import os
from pathlib import Path

from stoker import spi
from stoker_sandbox_bubblewrap.command_line import ENV, READY, RUN_COMMAND_FILE

_SPEAKERS_OUTSIDE = (b"bwrap: ", b"unshare: ", b"mount: ", b"sh: ")
_SPEAKERS_INSIDE = (f"{ENV}: ".encode(), f"{RUN_COMMAND_FILE[1]}: ".encode())
_NO_FOLDER = b"Can't chdir to"
_BUSY = b": Text file busy"
_ABSENT = b": No such file or directory"
_EXCERPT_BYTES = 2_000


def size_of(path: Path) -> int:
    """How much is in the file at `path` before the process is started."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def check_started(spec: spi.ProcessSpec, private: str, offset: int) -> None:
    """Raise what kept the ended process of `spec` from being started enclosed, if anything did.

    Raises Unavailable where the enclosure failed, FailedPrecondition where the working directory
    is none, and ProgramNotStarted where the program is at fault.
    """
    said = _read(spec.stderr, offset)
    if not os.path.exists(os.path.join(private, READY)):  # noqa: PTH110  # a string
        if said.startswith(_SPEAKERS_OUTSIDE):
            raise spi.Unavailable(f"the sandbox cannot be made: {_text(said)}")
    elif said.startswith(b"bwrap: " + _NO_FOLDER) and _is_one_line(said):
        raise spi.FailedPrecondition(
            f"the working directory {spec.working_directory[:500]} leads to no directory"
        )
    elif said.startswith(_SPEAKERS_INSIDE) and _is_one_line(said):
        raise _not_started(spec, said.strip())


def _not_started(spec: spi.ProcessSpec, said: bytes) -> spi.StokerError:
    if said.endswith(_BUSY):
        return spi.Unavailable(f"{spec.argv[0][:500]}: another process holds it open for writing")
    code = 127 if said.endswith(_ABSENT) else 126
    return spi.ProgramNotStarted(spec.argv[0][:500], _text(said), exit_code=code)


def _is_one_line(said: bytes) -> bool:
    return said.endswith(b"\n") and said.count(b"\n") == 1


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(_EXCERPT_BYTES)
    except FileNotFoundError:
        return b""


def _text(said: bytes) -> str:
    return said.decode(errors="replace").strip()

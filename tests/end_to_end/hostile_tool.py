"""A tool that does its worst to its inputs, or tells what they are. It needs nothing but Python.

``vandalise``, ``look`` and ``spy PATH…`` as arguments, or as a request to a persistent worker that
speaks JSON. What there is to tell is JSON on stderr, or the worker's answer.
"""

# What is tried is one system call or the other, which pathlib would hide.
# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH108, PTH112, PTH115, PTH116, PTH120, PTH123, PTH208, PTH211

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VANDAL = b"vandal"
INPUT_MTIME = 946_684_800


def write(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(VANDAL)


def write_after_chmod(path: str) -> None:
    os.chmod(path, 0o777)
    write(path)


def write_unseen(path: str) -> None:
    before = os.stat(path)
    with suppress(OSError):
        os.chmod(path, 0o777)
    with open(path, "r+b") as file:
        file.write(VANDAL)
    os.chmod(path, stat.S_IMODE(before.st_mode))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_through_a_descriptor(path: str) -> None:
    reading = os.open(path, os.O_RDONLY)
    writing = os.open(f"/proc/self/fd/{reading}", os.O_RDWR)
    os.pwrite(writing, VANDAL, 0)


def write_through_a_map(path: str) -> None:
    with suppress(OSError):
        os.chmod(path, 0o777)
    file = os.open(path, os.O_RDWR)
    mapped = mmap.mmap(file, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    mapped[: len(VANDAL)] = VANDAL
    mapped.flush()


def write_through_a_link(path: str) -> None:
    os.link(path, f"{path}.link")
    write_after_chmod(f"{path}.link")


def write_after_rename(path: str) -> None:
    os.rename(path, f"{path}.renamed")
    write_after_chmod(f"{path}.renamed")


def truncate(path: str) -> None:
    with suppress(OSError):
        os.chmod(path, 0o777)
    os.truncate(path, 0)


def lengthen(path: str) -> None:
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 100_000)


def replace(path: str) -> None:
    os.unlink(path)
    with open(path, "wb") as file:
        file.write(VANDAL)


def replace_by_a_rename(path: str) -> None:
    with open(f"{path}.new", "wb") as file:
        file.write(VANDAL)
    os.utime(f"{path}.new", (INPUT_MTIME, INPUT_MTIME))
    os.rename(f"{path}.new", path)


def replace_by_a_link(path: str) -> None:
    os.unlink(path)
    os.symlink("../write/file", path)


def replace_by_a_folder(path: str) -> None:
    os.unlink(path)
    os.mkdir(path)
    replace_by_a_rename(f"{path}/below")


def remove(path: str) -> None:
    os.unlink(path)


def date(path: str) -> None:
    os.utime(path, (1, 1))


def own(path: str) -> None:
    os.chown(path, os.getuid(), os.getgid())
    os.chmod(path, 0)


def annotate(path: str) -> None:
    os.setxattr(path, "user.vandal", VANDAL)


def remove_the_folder(path: str) -> None:
    shutil.rmtree(os.path.dirname(path))


def replace_the_folder_by_a_link(path: str) -> None:
    remove_the_folder(path)
    os.symlink("write", os.path.dirname(path))


def replace_the_folder_by_a_file(path: str) -> None:
    folder = os.path.dirname(path)
    os.rename(folder, f"{folder}.renamed")
    with open(folder, "wb") as file:
        file.write(VANDAL)


def exchange_the_folder(path: str) -> None:
    folder = os.path.dirname(path)
    os.rename(folder, f"{folder}.renamed")
    shutil.copytree(f"{folder}.renamed", folder)
    os.utime(folder, (INPUT_MTIME, INPUT_MTIME))


def close_the_folder(path: str) -> None:
    os.chmod(os.path.dirname(path), 0)


def litter_the_folder(path: str) -> None:
    folder = os.path.dirname(path)
    before = os.stat(folder)
    os.mkfifo(f"{folder}/fifo")
    os.makedirs(f"{folder}/deep/er")
    os.symlink("/", f"{folder}/deep/link")
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


ATTACKS: dict[str, Callable[[str], None]] = {
    function.__name__: function
    for function in (
        write,
        write_after_chmod,
        write_unseen,
        write_through_a_descriptor,
        write_through_a_map,
        write_through_a_link,
        write_after_rename,
        truncate,
        lengthen,
        replace,
        replace_by_a_rename,
        replace_by_a_link,
        replace_by_a_folder,
        remove,
        date,
        own,
        annotate,
        remove_the_folder,
        replace_the_folder_by_a_link,
        replace_the_folder_by_a_file,
        exchange_the_folder,
        close_the_folder,
        litter_the_folder,
    )
}


def vandalise() -> dict[str, str]:
    """Each attack on a file of its own. Returns how each went."""
    outcomes = {}
    for name, attack in ATTACKS.items():
        try:
            attack(f"inputs/{name}/file")
            outcomes[name] = ""
        except OSError as error:
            outcomes[name] = errno.errorcode[error.errno or 0]
    with open(f"{os.environ['TMPDIR']}/left", "wb") as file:
        file.write(VANDAL)
    return outcomes


def linger() -> dict[str, str]:
    """Leave a process behind that goes on writing into an input, in a session of its own."""
    reading, writing = os.pipe()
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        with suppress(OSError):
            os.chmod("inputs/write/file", 0o777)
        while True:
            with suppress(OSError):
                write("inputs/write/file")
            os.write(writing, b".")
    os.read(reading, 1)
    return {}


def look() -> dict[str, list[object]]:
    """What the working directory holds, and the temporary one."""
    found: dict[str, list[object]] = {}
    for folder, folders, files in os.walk("."):
        for name in (*folders, *files):
            path = os.path.normpath(f"{folder}/{name}")
            found[path] = describe(path)
    return found


def describe(path: str) -> list[object]:
    status = os.lstat(path)
    if stat.S_ISDIR(status.st_mode):
        return ["folder"]
    if stat.S_ISLNK(status.st_mode):
        return ["link", os.readlink(path)]
    if not stat.S_ISREG(status.st_mode):
        return ["special"]
    if status.st_mtime != INPUT_MTIME:
        return ["dated", status.st_mtime]
    if status.st_mode & 0o444 != 0o444:
        return ["closed", oct(status.st_mode)]
    with open(path, "rb") as file:
        return ["file", bool(status.st_mode & 0o100), hashlib.sha256(file.read()).hexdigest()]


def look_at_temporary() -> list[str]:
    return os.listdir(os.environ["TMPDIR"])


def spy(places: list[str]) -> dict[str, str]:
    """What can be read of files and folders, of all processes, and of what lies about."""
    seen = {}
    for place in (*places, *process_places()):
        text = "".join(read_all(place))
        if text:
            seen[place] = text
        with suppress(OSError):
            if place.endswith("/root"):
                replace_by_a_rename(f"{place}/planted")
    return seen


def process_places() -> Iterator[str]:
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid():
            yield from (f"/proc/{pid}/environ", f"/proc/{pid}/cwd", f"/proc/{pid}/cmdline")


def read_all(place: str) -> Iterator[str]:
    with suppress(OSError):
        if not os.path.isdir(place):
            with open(place, errors="replace") as file:
                yield file.read(100_000)
            return
        for name in os.listdir(place)[:100]:
            path = f"{place}/{name}"
            if stat.S_ISREG(os.stat(path).st_mode):
                yield from read_all(path)


def perform(words: list[str]) -> object:
    if words[0] == "vandalise":
        return vandalise()
    if words[0] == "linger":
        return linger()
    if words[0] == "temporary":
        return look_at_temporary()
    if words[0] == "spy":
        return spy(words[1:])
    return look()


def main() -> None:
    if "--persistent_worker" not in sys.argv:
        sys.stderr.write(json.dumps(perform(sys.argv[1:])))
        return
    for line in sys.stdin:
        output = json.dumps(perform(json.loads(line)["arguments"]))
        print(json.dumps({"exitCode": 0, "output": output}), flush=True)


main()

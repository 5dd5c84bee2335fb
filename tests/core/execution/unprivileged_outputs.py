"""Collect outputs as a user without privileges, in the folder given by actions.

A program, to be started by root.
"""

from __future__ import annotations

import ctypes
import encodings.ascii  # noqa: F401 -- which opening a file would look for too late
import os
import sys
from pathlib import Path

import trio

from stoker.digest import SHA256

from .test_giving_outputs import CONTENT, DIGEST, NOBODY, collect, facts, open_disk, status_of_blob

FOLDER = Path(sys.argv[1])
_PR_SET_DUMPABLE = 4


def make_outputs() -> None:
    (FOLDER / "d" / "e").mkdir(parents=True)
    (FOLDER / "o").mkdir()
    for name in ("d/e/f", "o/h"):
        (FOLDER / name).write_text("small")
        (FOLDER / name).chmod(0)
    (FOLDER / "mine").write_bytes(CONTENT)
    for name in ("mine", "d/e", "d", "o"):
        (FOLDER / name).chmod(0)


async def main() -> None:
    foreign = facts(FOLDER / "foreign")
    make_outputs()
    (FOLDER / "stores").mkdir()
    async with open_disk(FOLDER / "stores") as store:
        # Another user's file cannot be taken, nor watched: its bytes are sent.
        await collect(store, FOLDER, "foreign")
        assert (await status_of_blob(store)).st_ino != foreign[0]
        assert facts(FOLDER / "foreign") == foreign
    (FOLDER / "others").mkdir()
    async with open_disk(FOLDER / "others") as store:
        # OUT-20
        mine = (FOLDER / "mine").stat()
        result = await collect(store, FOLDER, "d", "mine", "o/h")
        assert [file.digest for file in result.output_files] == [
            DIGEST.to_proto(),
            SHA256.digest(b"small").to_proto(),
        ]
        blob = await status_of_blob(store)
        assert (blob.st_ino, blob.st_mode & 0o7777) == (mine.st_ino, 0o444)
    print("all is well")


# Imported by now: what is private to root is out of reach from here on.
os.setgroups([])
os.setgid(NOBODY)
os.setuid(NOBODY)
# As after starting a program; it is this process's own /proc that it may not read otherwise.
ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1)
trio.run(main)

"""A tool that does what it is told, one thing a line, alone or as a persistent worker.

As a worker it reads JSON by the line, answers without a newline, and takes several requests at a
time. What harms workers (`exit`, `die`, `say`, `silent`, `close`, `hold`) it does as one only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IS_WORKER = "--persistent_worker" in sys.argv
# As a compiler that has its rules in memory: it goes on with those that it began with.
_rules = Path("rules")
VERSION = _rules.read_text() if _rules.exists() else ""
HELD: list[bytearray] = []

_answering = threading.Lock()


def write(folder: Path, path: str, text: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


def wait_for(folder: Path, place: str, count: str) -> None:
    """Wait until as many have come to `place` as are to meet there."""
    (Path(place) / f"{os.getpid()}-{threading.get_ident()}").touch()
    while len(os.listdir(place)) < int(count):  # noqa: PTH208
        time.sleep(0.005)


def note(folder: Path, place: str) -> None:
    with Path(place).open("a") as file:
        file.write(f"{'worker' if IS_WORKER else 'alone'}\n")


def harm(doing: Callable[[Path, str], object]) -> Callable[..., None]:
    """Only a worker does it, and one that is told of a place does it once."""

    def does(folder: Path, text: str = "", once: str = "") -> None:
        if IS_WORKER and not (once and Path(once).exists()):
            if once:
                Path(once).touch()
            doing(folder, text)

    return does


def die(folder: Path, text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def replace_cwd(folder: Path, text: str) -> None:
    here = os.getcwd()  # noqa: PTH109
    shutil.rmtree(here)
    os.mkdir(here)  # noqa: PTH102


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def hold(folder: Path, text: str) -> None:
    HELD.append(bytearray(b"1" * int(text)))


VERBS: dict[str, Callable[..., object]] = {
    "write": write,
    "meet": wait_for,
    "note": note,
    "clear": clear,
    "read": lambda folder, path: (folder / path).read_text(),
    "version": lambda _: VERSION,
    "pid": lambda _: str(os.getpid()),
    "inode": lambda _: f"{os.stat('.').st_ino} {os.getcwd() != ''}",  # noqa: PTH109, PTH116
    "environment": lambda _: Path("/proc/self/environ").read_text(),
    "exit": harm(lambda _, code: os._exit(int(code))),
    "die": harm(die),
    "say": harm(lambda _, text: sys.stdout.write(text.replace("_", " ")) and sys.stdout.flush()),
    "silent": harm(lambda *_: threading.Event().wait() and None),
    "close": harm(lambda *_: os.close(1)),
    "replace-cwd": harm(replace_cwd),
    "hold": harm(hold),
}


def work(lines: list[str], folder: Path) -> str:
    said = []
    for line in lines:
        verb, *words = line.split(" ")
        said.append(VERBS[verb](folder, *words))
    return "\n".join(text for text in said if isinstance(text, str))


def answer(request: dict[str, Any]) -> None:
    output = work(request["arguments"], Path(request.get("sandboxDir") or "."))
    with _answering:
        sys.stdout.write(json.dumps({"requestId": request.get("requestId", 0), "output": output}))
        sys.stdout.flush()


def main() -> None:
    if not IS_WORKER:
        (flags,) = (word[1:] for word in sys.argv[1:] if word.startswith("@"))
        sys.stderr.write(work(Path(flags).read_text().splitlines(), Path()))
        return
    while line := sys.stdin.readline():
        threading.Thread(target=answer, args=[json.loads(line)], daemon=True).start()


main()

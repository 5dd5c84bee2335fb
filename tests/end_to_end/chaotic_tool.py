"""A tool that writes the SHA-256 of a file, alone or as a persistent worker that is bad at times.

It speaks JSON, singleplex or multiplex, with and without folders of requests. What it does with a
request is told by the request's third argument and chance; alone it always does what is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

CHANCE = 0.6
"""How likely it is that it is as bad as it is told to be: what is tried again may succeed."""

LEAK_BYTES = 8 * 2**20

_writing = threading.Lock()
_leaked: list[bytes] = []


def main() -> None:
    if "--persistent_worker" in sys.argv:
        serve()
    else:
        (flags,) = (argument[1:] for argument in sys.argv[1:] if argument.startswith("@"))
        print(work(Path(flags).read_text().splitlines(), Path()), end="", file=sys.stderr)


def work(arguments: list[str], folder: Path) -> str:
    source, target, _ = arguments
    digest = hashlib.sha256((folder / source).read_bytes()).hexdigest()
    (folder / target).write_text(digest)
    return f"done {digest}"


def serve() -> None:
    random.seed(os.urandom(8))
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("cancel"):
            continue
        if request.get("requestId"):
            threading.Thread(target=answer, args=[request], daemon=True).start()
        else:
            answer(request)


def answer(request: dict[str, Any]) -> None:
    arguments = request["arguments"]
    mood = arguments[2] if random.random() < CHANCE else "well"
    if mood == "crash":
        os._exit(3)
    if mood == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mood == "hang":
        threading.Event().wait()
    if mood == "garbage":
        say("warning: 3 files are deprecated\n")
    if mood == "half":
        say('{"exitCode": 0, "out')
        os._exit(0)
    if mood == "leak":
        _leaked.append(bytes(LEAK_BYTES))
    output = work(arguments, Path(request.get("sandboxDir", "")))
    response = {"exitCode": 0, "output": output, "requestId": request.get("requestId", 0)}
    if mood == "wrong-id":
        response["requestId"] += 1000
    say((json.dumps(response) + "\n") * (2 if mood == "twice" else 1))
    if mood == "close":
        os.close(1)


def say(text: str) -> None:
    with _writing:
        sys.stdout.write(text)
        sys.stdout.flush()


main()

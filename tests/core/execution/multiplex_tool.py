#!/usr/bin/env python3
"""A persistent worker that does several requests at once, heeds ``sandboxDir`` and cancel requests.

Speaks JSON. The arguments of a request are what it is to do, one thing after the other.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

answering = threading.Lock()
cancelled: dict[int, threading.Event] = {}


def answer(request_id: int, **fields: Any) -> None:
    with answering:
        print(json.dumps({"requestId": request_id, **fields}), flush=True)


def work(line: str, folder: Path, stop: threading.Event, out: list[str]) -> None:
    verb, _, rest = line.partition(" ")
    path, _, text = rest.partition(" ")
    if verb == "write":
        (folder / path).write_text(text)
    elif verb == "read":
        out.append((folder / path).read_text())
    elif verb == "pid":
        out.append(str(os.getpid()))
    elif verb == "where":
        out.append(os.path.relpath(folder))
    elif verb == "inode":
        out.append(str(Path().stat().st_ino))
    elif verb == "list":
        found = (str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())
        out += sorted(found)
    elif verb == "temporary":
        place = Path(os.environ["TMPDIR"])
        out.append(" ".join(sorted(p.name for p in place.iterdir())))
        (place / rest).touch()
    elif verb == "meet":
        # All who are told to meet are there once each has said so.
        place, count = Path(path), int(text)
        (place / f"{threading.get_ident()}").touch()
        while len(list(place.iterdir())) < count and not stop.wait(0.005):
            pass
    elif verb == "hang":
        Path(path).touch()
        stop.wait()
    elif verb == "finish":
        # It is told to stop, and completes what it has begun.
        (folder / path).write_text("half")
        stop.wait()
        (folder / path).write_text("whole")
    elif verb == "die":
        print("dying words", file=sys.stderr, flush=True)
        os._exit(3)


def serve(request: dict[str, Any]) -> None:
    request_id = request.get("requestId", 0)
    stop = cancelled[request_id]
    out: list[str] = []
    for line in request["arguments"]:
        work(line, Path(request.get("sandboxDir") or "."), stop, out)
    if stop.is_set():
        answer(request_id, wasCancelled=True)
    else:
        answer(request_id, output="\n".join(out))


for line in sys.stdin:
    request = json.loads(line)
    request_id = request.get("requestId", 0)
    if request.get("cancel"):
        if request_id in cancelled:
            cancelled[request_id].set()
    else:
        cancelled[request_id] = threading.Event()
        threading.Thread(target=serve, args=(request,), daemon=True).start()

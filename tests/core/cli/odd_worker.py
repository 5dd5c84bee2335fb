"""Workers that speak JSON, each with a fault of its own. The first argument names it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FAULT = sys.argv[1]
DECODER = json.JSONDecoder()


def answer(request: dict[str, Any], **fields: Any) -> None:
    response = {"exitCode": 0, "output": "", "requestId": request.get("requestId", 0), **fields}
    if FAULT == "sparse":
        response = {"exitCode": 0, "output": ""}
    os.write(1, json.dumps({**response, **fields}).encode())


def serve(request: dict[str, Any]) -> None:
    unknown = any("no-such-option" in argument for argument in request.get("arguments", ()))
    if FAULT == "cancel-is-a-request" or not request.get("cancel"):
        if FAULT == "wrong-number" and request.get("requestId"):
            answer(request, requestId=request["requestId"] + 1)
        else:
            answer(request)
    if FAULT == "once" or (FAULT == "dies-of-failure" and unknown):
        sys.exit(3)
    if FAULT == "closes-stdout":
        os.close(1)
        signal.pause()


def leave_a_child(mark: str) -> None:
    """One that has left the session, the environment and its parent."""
    code = (
        "import os, sys, time\nos.setsid()\nif os.fork(): os._exit(0)\n"
        f"open({mark!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    )
    subprocess.run([sys.executable, "-ISc", code], env={}, check=True)
    while not Path(mark).exists() or not Path(mark).read_text():
        time.sleep(0.01)


def main() -> None:
    if FAULT == "leaves-a-child":
        leave_a_child(sys.argv[2])
    if FAULT in ("never-ends", "hangs"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if FAULT == "hangs":
        time.sleep(600)
    held = ""
    while data := os.read(0, 1 << 20):
        held += data.decode()
        while held.strip():
            try:
                request, end = DECODER.raw_decode(held.lstrip())
            except ValueError:
                if FAULT == "wants-whole-requests":
                    raise
                break
            held = held.lstrip()[end:]
            serve(request)
            if FAULT == "one-a-read":
                break
    if FAULT == "last-words":
        answer({})
    if FAULT == "never-ends":
        time.sleep(600)


main()

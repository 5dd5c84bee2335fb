"""A tool of the kit. Its first argument says what it does, `--threads=N` with how many."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

from stoker.worker_kit import Request, serve

print("printed before there is a worker")

together = threading.Barrier(20)


def work(request: Request) -> int | None:
    command, *rest = [each for each in request.arguments if not each.startswith("--threads=")]
    return COMMANDS[command](request, *rest)


def tell(request: Request, *rest: str) -> None:
    """What the function was given."""
    inputs = sorted((path, digest.decode()) for path, digest in request.inputs.items())
    place = request.path("a.txt")
    print(rest, inputs, request.request_id, request.verbosity, place, file=request.output)


def noise(request: Request) -> int:
    """Everything that might reach stdout."""
    print("a print")
    sys.stdout.buffer.write("in bytes: ü\n".encode())
    print("to stderr", file=sys.stderr)
    os.write(1, b"a raw write\n")
    subprocess.run(["/bin/echo", "a child"], check=True)
    subprocess.run(["/bin/echo", "a child, told where"], check=True, stdout=sys.stdout)
    sys.__stdout__.write("through what was there before\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]
    nothing = subprocess.run(["/bin/cat"], check=True, capture_output=True).stdout + os.read(0, 10)
    threading.Thread(target=print, args=["a thread"], kwargs={"file": request.output}).run()
    return len(nothing)


def meet(request: Request) -> None:
    """Ends once twenty requests are here."""
    together.wait(60)
    print("met", request.request_id)


def fail(_: Request, how: str) -> int:
    if how == "exception":
        raise ValueError("so it goes ü")
    if how == "no code":
        return "three"  # type: ignore[return-value]
    codes: dict[str, int | str | None] = {"7": 7, "text": "no such file", "none": None, "512": 512}
    sys.exit(codes[how])


def wait_for_cancel(request: Request, how: str, mark: str) -> int:
    """Tell that it has begun by the file `mark`, and end only by being cancelled."""
    cancelled = threading.Event()
    if how == "child":
        with subprocess.Popen(["/bin/sleep", "600"]) as child:
            request.on_cancel(lambda: 1 / 0)
            request.on_cancel(child.kill)
            Path(mark).touch()
        return 0
    request.on_cancel(cancelled.set)
    Path(mark).touch()
    cancelled.wait()
    request.on_cancel(lambda: print("late", file=request.output))
    if how == "return":
        return 0
    try:
        request.raise_if_cancelled()
    except Exception:  # noqa: BLE001 - it is not one
        return 0
    raise AssertionError("not cancelled")


def large(_: Request, size: str) -> None:
    print("x" * int(size), end="")


def sleep(_: Request, mark: str, left: str) -> NoReturn:
    """Until the process is ended. Cleans up."""
    Path(mark).touch()
    try:
        threading.Event().wait()
        raise AssertionError
    finally:
        Path(left).touch()


COMMANDS = {
    function.__name__: function
    for function in (tell, noise, meet, fail, wait_for_cancel, large, sleep)
}

if __name__ == "__main__":
    threads = [each.partition("=")[2] for each in sys.argv if each.startswith("--threads=")]
    serve(work, threads=int(threads[0]) if threads else 1)

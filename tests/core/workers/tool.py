"""A tool that can be a persistent worker, and a bad one. It needs nothing but Python.

Start-up arguments say how it speaks, the arguments of a request what it does with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

STARTUP = sys.argv[1:]
INPUT = sys.stdin.buffer
OUTPUT = sys.stdout.buffer
state = {"count": 0}
held: dict[int, list[str]] = {}


def read_varint(read: Callable[[int], bytes]) -> int | None:
    value = shift = 0
    while True:
        byte = read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return value


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    position = 0

    def read(length: int) -> bytes:
        nonlocal position
        position += length
        return data[position - length : position]

    while position < len(data):
        tag = read_varint(read) or 0
        value = read_varint(read) or 0
        yield tag >> 3, read(value) if tag & 7 == 2 else value


def read_proto() -> dict[str, Any] | None:
    length = read_varint(INPUT.read)
    if length is None:
        return None
    if "--eager" in STARTUP:
        write(encode(output="e" * 1_000_000))
    request: dict[str, Any] = {"arguments": [], "inputs": [], "requestId": 0, "cancel": False}
    for number, value in fields(INPUT.read(length)):
        if number == 1:
            request["arguments"].append(value.decode())
        elif number == 2:
            entry = dict(fields(value))
            request["inputs"].append([entry[1].decode(), entry[2].decode()])
        elif number == 3:
            request["requestId"] = value
        elif number == 4:
            request["cancel"] = bool(value)
    return request


def read_json() -> dict[str, Any] | None:
    line = INPUT.readline()
    if not line:
        return None
    request = json.loads(line)
    inputs = [[entry["path"], entry["digest"]] for entry in request.get("inputs", ())]
    return {"arguments": [], "requestId": 0, "cancel": False, **request, "inputs": inputs}


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def encode(
    exit_code: int = 0, output: str = "", request_id: int = 0, cancelled: bool = False
) -> bytes:
    if "--json" in STARTUP:
        response = {
            "exitCode": exit_code,
            "output": output,
            "requestId": request_id,
            "wasCancelled": cancelled,
        }
        return json.dumps(response, indent=2 if "--pretty" in STARTUP else None).encode()
    message = b""
    for tag, value in ((8, exit_code), (24, request_id), (32, int(cancelled))):
        message += bytes([tag]) + varint(value) if value else b""
    if output:
        message += b"\x12" + varint(len(output.encode())) + output.encode()
    return varint(len(message)) + message


def write(data: bytes) -> None:
    OUTPUT.write(data)
    OUTPUT.flush()


def sleep_forever() -> NoReturn:
    while True:
        signal.pause()


def report(request: dict[str, Any]) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        **state,
        "arguments": request["arguments"],
        "inputs": request["inputs"],
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "argv": sys.argv,
    }


def serve(request: dict[str, Any]) -> None:
    command, *rest = request["arguments"] or ["report"]
    if command == "report":
        write(encode(output=json.dumps(report(request)), request_id=request["requestId"]))
    elif command == "exit-code":
        write(encode(exit_code=int(rest[0]), output="as asked"))
    elif command == "nothing":
        write(encode())
    elif command == "die":
        print("dying words", file=sys.stderr, flush=True)
        os._exit(int(rest[0]))
    elif command == "kill-itself":
        os.kill(os.getpid(), signal.SIGKILL)
    elif command == "half":
        write(encode(output="x" * 100)[:50])
        os._exit(0)
    elif command == "answer-and-die":
        write(encode(output="last words"))
        os._exit(0)
    elif command == "garbage":
        write(b"Compiling 3 files, this may take a while, please wait until it is done ...\n" * 5)
        sleep_forever()
    elif command == "wrong-id":
        write(encode(request_id=77))
    elif command == "twice":
        write(encode() + encode())
    elif command == "cancelled":
        write(encode(cancelled=True))
    elif command == "unasked":
        write(encode())
        # Told apart from an answer in one piece: the request has been answered by now.
        Path(rest[0]).read_bytes()
        write(encode(output="and another thing"))
    elif command == "trailing-newline":
        write(encode() + b"\n")
    elif command == "close-stdout":
        os.close(1)
        sleep_forever()
    elif command == "close-stdin-and-hang":
        os.close(0)
        write(encode())
        sleep_forever()
    elif command == "flood-stderr":
        for _ in range(int(rest[0])):
            os.write(2, bytes(2**20))
        sleep_forever()
    elif command == "hang":
        sleep_forever()
    elif command == "hold":
        held[request["requestId"]] = rest
    elif command == "release":
        # The last comes first, and all in one piece.
        answers = [encode(output=words[0], request_id=number) for number, words in held.items()]
        held.clear()
        write(
            b"".join([encode(output="released", request_id=request["requestId"]), *answers[::-1]])
        )
    elif command == "flood-until-emptied":
        write(encode(output=json.dumps(flood(int(rest[0]))), request_id=request["requestId"]))
    elif command == "large":
        write(encode(output="x" * int(rest[0])))
    elif command == "child-keeps-stdout":
        child = subprocess.Popen([sys.executable, "-ISc", "import signal; signal.pause()"])
        Path(rest[0]).write_text(str(child.pid))
        os._exit(5)


def flood(times: int) -> dict[str, int]:
    """Write to stderr until that was emptied so often by somebody else."""
    written = emptied = size = largest = 0
    while emptied < times:
        written += os.write(2, b"x" * 1_000_000)
        last, size = size, os.fstat(2).st_size
        emptied += size < last
        largest = max(largest, size)
    os.write(2, b"the end")
    return {"written": written, "emptied": emptied, "largest": largest}


def cancel(request: dict[str, Any]) -> None:
    """Heed a cancel request as the start-up arguments say; pass over it where they say nothing."""
    number = request["requestId"]
    if "--cancel=never-mind" in STARTUP:
        serve({**request, "arguments": []})  # as if it were any other request
    elif number in held and "--cancel=finish" in STARTUP:
        write(encode(output=held.pop(number)[0], request_id=number))
    elif number in held and "--cancel=heed" in STARTUP:
        del held[number]
        write(encode(request_id=number, cancelled=True))


def leave_word(argument: str) -> None:
    Path(argument.partition("=")[2]).write_text(f"{os.getpid()}\n")


def heed(argument: str, *_: Any) -> NoReturn:
    leave_word(argument)
    os._exit(0)


def main() -> None:
    if "--persistent_worker" not in STARTUP or "--knows-no-worker" in STARTUP:
        print("unknown option --persistent_worker", file=sys.stderr, flush=True)
        sys.exit(2)
    if "--ignore-term" in STARTUP:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for argument in STARTUP:
        if argument.startswith("--heeds-term="):
            signal.signal(signal.SIGTERM, partial(heed, argument))
    if "--greets" in STARTUP:
        write(
            b"Welcome to the tool, version 1.2.3, made for you with care and with diligence!\n" * 2
        )
    for argument in STARTUP:
        if argument.startswith("--gate="):
            Path(argument.partition("=")[2]).read_bytes()
    while True:
        request = read_json() if "--json" in STARTUP else read_proto()
        if request is None:
            break
        if request["cancel"]:
            cancel(request)
            continue
        state["count"] += 1
        if "--eager" not in STARTUP:
            serve(request)
    for argument in STARTUP:
        if argument.startswith("--farewell="):
            leave_word(argument)
    if "--ignore-eof" in STARTUP:
        sleep_forever()


main()

"""The process around the server: child processes, and the allocator."""

import subprocess
import sys
from typing import Any

import trio

from stoker.rpc import ServerCall, open_channel, unary_unary


async def test_processes_start_while_calls_are_in_flight(serve: Any) -> None:
    async def run(request: bytes, call: ServerCall) -> bytes:
        done = await trio.run_process(
            [sys.executable, "-c", "print('child')"], capture_stdout=True, stdin=request
        )
        return bytes(done.stdout)

    running = await serve({"Run": unary_unary(run, bytes, bytes)})
    outputs = []
    async with open_channel(running.target) as channel:

        async def call() -> None:
            outputs.append(await channel.unary_unary("/test.Service/Run", b"", bytes))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(call)
    assert outputs == [b"child\n"] * 8


TUNED = """
from stoker.rpc import tune_allocator
assert tune_allocator() in (True, False)
assert len(bytes(8 * 1024 * 1024)) == 8388608
"""


def test_the_allocator_is_tuned_or_left_alone() -> None:
    subprocess.run([sys.executable, "-c", TUNED], check=True, timeout=60)


ON_GLIBC = """
import platform, resource
from stoker.rpc import tune_allocator
if platform.libc_ver()[0] != "glibc":
    raise SystemExit
assert tune_allocator()
bytes(24 * 1024 * 1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    bytearray(b"x") * (24 * 1024 * 1024)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# Mapped anew each time, that would be six thousand faults a buffer.
assert faults < 30_000, faults
"""


def test_large_buffers_are_kept_on_glibc() -> None:
    subprocess.run([sys.executable, "-c", ON_GLIBC], check=True, timeout=60)

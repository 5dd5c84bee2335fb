"""Bazel's ExampleWorker: it says what it is given, and fails on demand in every way it can.

Its switches are for a worker only: a process of its own refuses them. So where an action comes to
be run without a worker, that refusal is what it ends with.
"""

from __future__ import annotations

from base64 import b64encode

import pytest

from stoker.digest import SHA256

from ..end_to_end.actions import Tree
from .workbench import Done, Workbench

PROTOCOLS = ["proto", "json"]
OUTPUT = "out/said"


def order(*flags: str, **files: bytes) -> Tree:
    """What one request asks for, in a flag file."""
    lines = [f"--output_file={OUTPUT}", *flags]
    return Tree({**files, "flags": "".join(f"{line}\n" for line in lines).encode()})


def said(done: Done) -> list[str]:
    assert (done.status, done.exit_code) == (0, 0), done
    return done.outputs[OUTPUT].decode().splitlines()


class Shift:
    """A worker with its switches, to be asked one thing after the other."""

    def __init__(
        self, bench: Workbench, program: list[str], protocol: str, switches: list[str]
    ) -> None:
        self._bench = bench
        self._protocol = protocol
        self._command = [*program, f"--worker_protocol={protocol}", *switches, "@flags"]

    async def work(self, *flags: str, **files: bytes) -> Done:
        return await self._bench.work(
            self._command,
            order(*flags, **files),
            [OUTPUT],
            protocol=self._protocol,
            environment={"LC_ALL": "C.UTF-8"},
        )


# PWK-05, PWK-07 and PWK-17
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_is_told_of_every_input_and_serves_again(
    bench: Workbench, example_worker: list[str], protocol: str
) -> None:
    shift = Shift(bench, example_worker, protocol, [])
    files = {"source/a=b": b"one", "source/<ü>": b"two"}
    asked = ["--write_uuid", "--write_counter", "--print_inputs", "'hello' & <world>"]
    first = said(await shift.work(*asked, **files))
    edited = {**files, "source/a=b": b"three"}
    done = await shift.work(*asked, **edited)
    second = said(done)
    assert done.served == 2
    assert first[0] == second[0]  # the UUID of the process
    assert (first[1:3], second[1:3]) == (
        ["COUNTER 1", "'hello' & <world>"],
        ["COUNTER 2", "'hello' & <world>"],
    )
    inputs = order(*asked, **edited).files
    assert sorted(second[3:]) == sorted(
        f"INPUT {path} {as_told(data, protocol)}" for path, data in inputs.items()
    )


def as_told(data: bytes, protocol: str) -> str:
    """Its digest. This worker keeps bytes as they come, and JSON has them in base64."""
    text = SHA256.digest(data).hash
    return text if protocol == "proto" else b64encode(text.encode()).decode()


# PWK-08 and PWK-17
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_gives_what_a_process_of_its_own_gives(
    bench: Workbench, example_worker: list[str], protocol: str
) -> None:
    tree = order("--uppercase", "loud", "words")
    # Of the protocol a process of its own may not be told.
    once = await bench.run_once([*example_worker, "@flags"], tree, [OUTPUT])
    done = await Shift(bench, example_worker, protocol, []).work("--uppercase", "loud", "words")
    assert done.result == once.result
    assert said(done) == ["LOUD WORDS"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_is_not_asked_again_once_it_has_printed_garbage(
    bench: Workbench, example_worker: list[str], protocol: str
) -> None:
    # PWK-09
    shift = Shift(bench, example_worker, protocol, ["--poison_after=1"])
    first = await shift.work("--write_counter")
    assert said(first)[0] == "COUNTER 1"
    poisoned = await shift.work("--write_counter")
    assert "I'm a poisoned worker" in poisoned.message
    assert first.worker is not None
    assert first.worker in poisoned.message
    # It has answered something, so that it may have done something, and is not asked anew.
    assert poisoned.worker is None
    assert (poisoned.exit_code, "--worker_protocol" in poisoned.said) == (1, True)
    third = await shift.work("--write_counter")
    assert said(third)[0] == "COUNTER 1"
    assert third.worker != first.worker


# PWK-10
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("switches", "why"),
    [
        (["--poison_after=1", "--hard_poison"], "I'm a very poisoned worker"),
        (["--exit_during=2"], "exited with status 0 before it answered"),
    ],
    ids=["crash", "exit"],
)
async def test_what_one_leaves_unanswered_another_does(
    bench: Workbench, example_worker: list[str], protocol: str, switches: list[str], why: str
) -> None:
    shift = Shift(bench, example_worker, protocol, switches)
    first = await shift.work("--write_counter")
    second = await shift.work("--write_counter")
    assert said(first)[0] == "COUNTER 1"
    # Nothing is left of what the one that failed may have written.
    assert said(second)[0] == "COUNTER 1"
    assert why in second.message
    assert first.worker is not None
    assert first.worker in second.message
    assert (second.worker != first.worker, second.served) == (True, 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_may_go_when_it_has_done_its_work(
    bench: Workbench, example_worker: list[str], protocol: str
) -> None:
    # It may end before it has answered or after, as its threads race each other.
    shift = Shift(bench, example_worker, protocol, ["--exit_after=1"])
    workers = set()
    for _ in range(3):
        done = await shift.work("--write_counter", "--write_uuid")
        assert said(done)[1].startswith("COUNTER ")
        workers.add(done.worker)
    assert None not in workers
    assert len(workers) > 1

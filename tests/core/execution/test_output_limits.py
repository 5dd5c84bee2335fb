"""Actions that leave more than they may."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stoker.action import Outcome
from stoker.digest import SHA256
from stoker.errors import FailedPrecondition
from stoker.execution.settings import ExecutionSettings
from stoker.spi import ExecutionStrategy

Rig = Any
Cas = Any
OpenRig = Callable[..., AbstractAsyncContextManager[Rig]]


def refusal(outcome: Outcome, *words: str) -> None:
    assert isinstance(outcome.error, FailedPrecondition)
    for word in (*words, "executor-1"):
        assert word in str(outcome.error)
    assert outcome.result is not None
    assert not outcome.result.output_files
    assert not outcome.result.output_directories


@pytest.mark.parametrize("output", ["big", "d"])
async def test_a_sparse_giant_is_refused_before_it_is_read(rig: Rig, output: str) -> None:
    # OUT-25: by default
    action = await rig.cas.shell(
        "echo told; mkdir d; truncate -s 100G big d/big", output_paths=[output]
    )
    outcome = await rig.run(action)
    refusal(outcome, "big'", "max_output_bytes", str(100 * 2**30), str(16 * 2**30))
    assert await rig.cas.get(outcome.result.stdout_digest) == b"told\n"
    assert rig.leftovers() == []


async def test_the_number_of_outputs(
    cas: Cas, strategy: ExecutionStrategy, tmp_path: Path, open_rig: OpenRig
) -> None:
    # OUT-25: files, folders and links are counted, stdout is not.
    settings = ExecutionSettings(max_output_files=4)
    async with open_rig(cas, strategy, tmp_path, settings) as rig:
        await rig.shell("echo; mkdir d; touch d/a f; ln -s f l", output_paths=["d", "f", "l"])
        action = await cas.shell("mkdir d; touch d/a d/b d/c d/d", output_paths=["d"])
        refusal(await rig.run(action), "max_output_files", "4", "output 'd/d'")


@pytest.mark.parametrize(("stream", "redirection"), [("stdout", ""), ("stderr", ">&2")])
async def test_streams_count(
    cas: Cas,
    strategy: ExecutionStrategy,
    tmp_path: Path,
    open_rig: OpenRig,
    stream: str,
    redirection: str,
) -> None:
    # OUT-25
    settings = ExecutionSettings(max_output_bytes=1000)
    async with open_rig(cas, strategy, tmp_path, settings) as rig:
        script = f"head -c 600 /dev/zero {redirection}; head -c 400 /dev/zero > f"
        await rig.shell(script, output_paths=["f"])
        outcome = await rig.run(await cas.shell(f"{script}; echo >> f", output_paths=["f"]))
        refusal(outcome, "max_output_bytes", "output 'f' has 401", "600")
        digest = getattr(outcome.result, f"{stream}_digest")
        assert await cas.get(digest) == bytes(600), "what it said is not lost by that"
        script = f"head -c 1001 /dev/zero {redirection}"
        outcome = await rig.run(await cas.shell(script))
        refusal(outcome, "max_output_bytes", stream, "1001")
        assert not outcome.result.HasField("stdout_digest")
        assert not outcome.result.HasField("stderr_digest")


@pytest.mark.parametrize(
    ("script", "culprit"),
    [
        ("head -c 301 /dev/zero > d/f", "output 'd/f' has 301"),
        ("head -c 301 /dev/zero", "stdout has 301"),
        ("for i in 0 1 2 3; do echo $i > d/$i; done", "the Tree of output 'd'"),
    ],
)
async def test_an_output_larger_than_blobs_may_be(rig: Rig, script: str, culprit: str) -> None:
    # OUT-24
    action = await rig.cas.shell(script, inputs={"d": {}}, output_paths=["d"])
    assert (await rig.run(action)).error is None
    outcome = await rig.run(replace(action, max_blob_bytes=300))
    assert isinstance(outcome.error, FailedPrecondition)
    for word in (culprit, "max_blob_bytes", "300", "executor-1"):
        assert word in str(outcome.error)


async def test_large_streams_are_whole(rig: Rig) -> None:
    # RUN-13, RUN-14
    result = await rig.shell("head -c 5000000 /dev/zero; head -c 3000000 /dev/zero >&2")
    assert result.stdout_digest == SHA256.digest(bytes(5_000_000)).to_proto()
    assert await rig.cas.get(result.stdout_digest) == bytes(5_000_000)
    assert await rig.cas.get(result.stderr_digest) == bytes(3_000_000)
    assert rig.leftovers() == []

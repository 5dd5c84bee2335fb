"""Fill the small file system at the path given by actions, and see what becomes of them.

A program.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from stoker.errors import StorageFull
from stoker.execution.disk import RESERVE_BYTES
from stoker_exec_local import open_local

from .conftest import Cas, Rig, open_rig

FOLDER = Path(sys.argv[1])


async def wait_and_be_refused(rig: Rig, go: Path) -> None:
    script = f"while ! test -e {go}; do sleep 0.01; done; echo o > o"
    with pytest.raises(StorageFull, match="was full while the action ran"):
        await rig.shell(script, output_paths=["o"])


async def main() -> None:
    cas = Cas()
    async with open_local() as strategy, open_rig(cas, strategy, FOLDER) as rig:
        assert await rig.stdout("echo room") == "room\n"
        # The tool takes no notice of the failure, and the action exits with 0.
        action = await cas.shell(
            "echo begin > o; head -c 100000000 /dev/zero >> o 2> /dev/null; true",
            output_paths=["o"],
        )
        with pytest.raises(StorageFull, match=f"{FOLDER}.*{RESERVE_BYTES}"):
            await rig.run(action)
        assert rig.leftovers() == []
        # The same, while another action writes and notices nothing, and has room when it ends.
        go = FOLDER / "go"
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_and_be_refused, rig, go)
                while len(rig.started) < 3:
                    await trio.sleep(0.01)
                with pytest.raises(StorageFull):
                    await rig.run(action)
                go.touch()
        assert await rig.stdout("echo room") == "room\n"
        # What is in the way from the start is told before anything runs.
        with (FOLDER / "filler").open("wb") as filler:
            filler.write(bytes(30_000_000))
        before = len(rig.started)
        with pytest.raises(StorageFull, match=str(FOLDER)):
            await rig.shell("echo too late")
        assert len(rig.started) == before
        (FOLDER / "filler").unlink()
        assert await rig.stdout("echo room") == "room\n"
    print("all is well")


trio.run(main)

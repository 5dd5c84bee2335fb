"""A program that is to run without rights: it opens a strategy, tries it, and prints what came.

Arguments: a folder. It prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import trio

from stoker import spi
from stoker.testing.execution_strategy_laws import Witness, Workplace, run
from stoker_exec_local import Settings, open_strategy

MANY = "n=0; while [ $n -lt 60 ]; do sleep 1000 & n=$((n+1)); done; echo all"


async def main() -> None:
    folder = Path(sys.argv[1])
    place = Workplace(folder)
    witness = Witness(place.root / "witness")
    async with open_strategy(Settings(), spi.Context("here", folder, {})) as strategy:
        fine = await run(strategy, place.script("exit 3"))
        held = f"exec 9>{witness.path}; {MANY}"
        processes = await run(strategy, place.script(held, limits=spi.Limits(processes=20)))
        limits = spi.Limits(memory_bytes=64 * 1024 * 1024)
        text = "head -c 400000000 /dev/zero | tail -n 1"
        memory = await run(strategy, place.script(text, limits=limits))
        await witness.wait_until_all_are_gone()
        enforcement = strategy.enforcement()
    print(
        json.dumps(
            {
                "enforcement": list(enforcement),
                "fine": fine.code,
                "processes": processes.code,
                "memory": memory.code,
                "stdout": place.stdout.read_text(),
            }
        )
    )


trio.run(main)

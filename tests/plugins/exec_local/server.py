"""A program that opens a strategy as a server does, and starts what it is told.

Arguments: the mode of control groups, a folder, and the script of the one process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from stoker import spi
from stoker.testing.execution_strategy_laws import Workplace
from stoker_exec_local import Settings, open_strategy


async def main() -> None:
    mode, folder, script = sys.argv[1:]
    settings = Settings(cgroups=mode)  # type: ignore[arg-type]  # one of them
    place = Workplace(Path(folder))
    async with (
        open_strategy(settings, spi.Context("here", Path(folder), {})) as strategy,
        strategy.start(place.script(script)),
    ):
        await trio.sleep_forever()


trio.run(main)

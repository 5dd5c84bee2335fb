"""A server with busy containers, to be killed: ``busy_server.py ENDPOINT IMAGE FOLDER NUMBER``.

It says ``busy`` once all are.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from stoker import spi
from stoker.testing.execution_strategy_laws import Workplace
from stoker_exec_docker import DockerSettings, open_strategy


async def main(endpoint: str, image: str, folder: Path, number: int) -> None:
    settings = DockerSettings(
        endpoint=endpoint, default_image=image, pull="never", keep_containers="always"
    )
    started = trio.Semaphore(0)
    async with (
        open_strategy(settings, spi.Context("docker", folder, {})) as strategy,
        trio.open_nursery() as nursery,
    ):

        async def run_one(name: str) -> None:
            place = Workplace(_made(folder / "actions" / name))
            place.give_to(strategy.user)
            script = place.script("echo on; sleep 1000", pipes=True)
            async with strategy.start(script) as process:
                assert process.stdout is not None
                assert await process.stdout.receive_some() == b"on\n"
                started.release()
                await process.wait()

        for each in range(number):
            nursery.start_soon(run_one, str(each))
        for _ in range(number):
            await started.acquire()
        sys.stdout.write("busy\n")
        sys.stdout.flush()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))

"""What containers cost: the same action on executors of one server, against a local executor.

The executors differ in where they start processes: as another user of this machine, in a container
for each action, in a container that serves one action after another, and on a persistent worker in
either place. The action does nothing, so that its time is what lies between a client and a process.
It is the same tool as in `bench/warm_worker.py`, of an image made of this machine's own Python.

Needs a container engine: that of ``DOCKER_HOST``, or one of its own, started by root.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from bench.actions import Actions
from bench.measurement import Row
from bench.servers import open_stoker_of
from stoker.client import RemoteInstance, open_remote
from stoker.digest import Digest
from tests.docker_engine import PYTHON, NoEngine, some_endpoint

TOOL = Path(__file__).with_name("worker_tool.py")
COMMAND = ["python3", "-IS", "tool.py", "@flags"]

AT_MOST = 1.5
"""A warm worker action in a container, by the same on a worker of the machine's own."""

_WARM = {"persistentWorkerKey": "bench"}
_KEPT = {"dockerReuse": "True"}
_INPUTS = 100

_CONFIGURATION = """
[server]
listen = ["127.0.0.1:0"]
drain_seconds = 1.0
state_directory = "state"
[log]
level = "warning"
[blob_stores.main]
kind = "disk"
path = "cas"
[action_caches.main]
kind = "disk"
path = "actions"
[strategies.boxes]
kind = "docker"
endpoint = "{endpoint}"
default_image = "{image}"
pull = "never"
[executors.local]
strategy = "local"
slots = 1
cpus = 1
memory_bytes = 1_000_000_000
properties = {{ where = "local" }}
[executors.boxes]
strategy = "boxes"
slots = 1
cpus = 1
memory_bytes = 1_000_000_000
properties = {{ where = "boxes", dockerReuse = "*", container-image = "*" }}
[instances.""]
blob_store = "main"
action_cache = "main"
executors = ["local", "boxes"]
"""

_LOCAL = {"where": "local"}
_BOXES = {"where": "boxes", "container-image": f"docker://{PYTHON}"}


def measure(*, quick: bool) -> list[Row]:
    """A row for each way of containers, or none where there is no engine, which is said."""
    try:
        with some_endpoint() as endpoint:
            return trio.run(_measure, endpoint, quick)
    except NoEngine as error:
        print(f"containers: not measured, as there is no container engine: {error}")
        return []


async def _measure(endpoint: str, quick: bool) -> list[Row]:
    cold_count, warm_count, rounds = (2, 4, 2) if quick else (8, 40, 5)
    ways: dict[str, tuple[Mapping[str, str], int]] = {
        "local": (_LOCAL, cold_count),
        "own": (_BOXES, cold_count),
        "kept": (_BOXES | _KEPT, cold_count),
        "local worker": (_LOCAL | _WARM, warm_count),
        "worker": (_BOXES | _KEPT | _WARM, warm_count),
    }
    actions = Actions()
    batches = {
        way: [
            [_add(actions, f"{way} {batch} {number}", platform) for number in range(count)]
            for batch in range(rounds + 1)
        ]
        for way, (platform, count) in ways.items()
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    configuration = _CONFIGURATION.format(endpoint=endpoint, image=PYTHON)
    with open_stoker_of(configuration) as server:
        async with open_remote(server.address) as remote:
            await actions.upload(remote)
            for batch in range(rounds + 1):
                for way in ways:
                    latency_ms = await _latency_ms(remote, batches[way][batch])
                    # The first makes containers and workers that then stay.
                    if batch:
                        taken[way].append(latency_ms)
    return _rows(taken)


def _rows(taken: Mapping[str, Sequence[float]]) -> list[Row]:
    def row(what: str, way: str, against: str, other: str, at_most: float | None = None) -> Row:
        return Row(
            what=what,
            unit="ms",
            ours=taken[way],
            against=against,
            theirs=taken[other],
            at_most=at_most,
        )

    return [
        row("container for each action", "own", "the same action, local", "local"),
        row("container kept, an action", "kept", "the same action, local", "local"),
        row("container kept, an action", "kept", "a container for each action", "own"),
        row("container of a worker, a warm action", "worker", "the same action, local", "local"),
        row(
            "container of a worker, a warm action",
            "worker",
            "the same worker, local",
            "local worker",
            AT_MOST,
        ),
    ]


def _add(actions: Actions, salt: str, platform: Mapping[str, str]) -> Digest:
    files = {f"source/file{number}": b"%d" % number for number in range(_INPUTS)}
    files |= {"source/file0": salt.encode(), "flags": b"--do\n--it\n"}
    # Where the server runs is another Python than that of the image, but the same release.
    return actions.add(
        COMMAND,
        {"tool.py": TOOL.read_bytes(), **files},
        environment={"PATH": f"{Path(sys.base_prefix, 'bin')}:/usr/bin:/bin"},
        platform=platform,
    )


async def _latency_ms(remote: RemoteInstance, actions: Sequence[Digest]) -> float:
    """The median of single actions."""
    taken = []
    for action in actions:
        start = time.perf_counter()
        response = await remote.run(action)
        taken.append((time.perf_counter() - start) * 1e3)
        assert not response.status.code, response.status.message
        assert not response.result.exit_code
        assert not response.cached_result
        # What could not be given to a worker has a message that says why.
        assert not response.message, response.message
    return statistics.median(taken)

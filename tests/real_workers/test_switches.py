"""Bazel's ExampleWorker with switches that are the operator's: rules give them to workers only.

So what a worker cannot do, a process of its own then can, by the very same command line.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from stoker.client import Operations, open_remote, response_of
from stoker.protos import remote_execution_pb2 as reapi

from ..end_to_end.remains import marked, wait_ended
from ..end_to_end.server_process import ServerProcess, open_server_process
from .conftest import CONFIGURATION
from .test_example_worker import OUTPUT, order, said
from .workbench import Workbench

CANCELLED = 1
RULES = """
[[executors.local.workers.rules]]
mnemonics = ["Json"]
use = "always"
protocol = "json"
extra_flags = ["--worker_protocol=json"]
[[executors.local.workers.rules]]
mnemonics = ["Poisoned"]
extra_flags = ["--poison_after=1"]
[[executors.local.workers.rules]]
mnemonics = ["Waiting*"]
extra_flags = ["--wait_for_cancel"]
"""


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with open_server_process(tmp_path_factory.mktemp("server"), CONFIGURATION + RULES) as opened:
        yield opened


@pytest.fixture
async def bench(ruled: ServerProcess, request: pytest.FixtureRequest) -> AsyncIterator[Workbench]:
    """For actions of the mnemonic that the test is given."""
    metadata = reapi.RequestMetadata(action_mnemonic=request.param)
    async with open_remote(ruled.address, metadata=metadata) as remote:
        yield Workbench(remote)


# PWK-17
@pytest.mark.parametrize("bench", ["Json"], indirect=True)
async def test_operator_says_what_protocol_a_tool_speaks(
    bench: Workbench, example_worker: list[str]
) -> None:
    command = [*example_worker, "@flags"]
    # Nothing of it asks for a worker.
    action = await bench.upload(command, order("--write_counter", "a"), [OUTPUT], {})
    other = await bench.upload(command, order("--write_counter", "b"), [OUTPUT], {})
    first, second = await bench.run(action), await bench.run(other)
    assert (said(first), said(second)) == (["COUNTER 1", "a"], ["COUNTER 2", "b"])
    assert (second.worker, second.served) == (first.worker, 2)
    once = await bench.run(
        await bench.upload(
            command, order("--write_counter", "a"), [OUTPUT], {"supports-workers": "0"}
        )
    )
    assert once.worker is None
    assert first.result == once.result


# PWK-09
@pytest.mark.parametrize("bench", ["Poisoned"], indirect=True)
async def test_action_is_done_whose_worker_prints_garbage(
    bench: Workbench, example_worker: list[str]
) -> None:
    command = [*example_worker, "@flags"]
    first = await bench.work(command, order("--write_counter"), [OUTPUT])
    second = await bench.work(command, order("--write_counter"), [OUTPUT])
    assert "I'm a poisoned worker" in second.message
    assert (said(first), said(second)) == (["COUNTER 1", ""], ["COUNTER 1", ""])
    assert (first.served, second.worker) == (1, None)


# PWK-15
@pytest.mark.parametrize("bench", ["WaitingForEver"], indirect=True)
@pytest.mark.parametrize("cancellation", ["0", "1"])
async def test_what_waits_for_a_cancel_is_gone_after_one(
    bench: Workbench, example_worker: list[str], cancellation: str
) -> None:
    # It takes the cancel request for another one, and so never answers: it is ended in the end.
    mark = f"waits for a cancel, {cancellation}"
    action = await bench.upload(
        [*example_worker, "@flags"],
        order(),
        [OUTPUT],
        {"persistentWorkerKey": "any", "supports-worker-cancellation": cancellation},
        {"MARK": mark},
    )
    async with bench.remote.execute(action) as operations:
        name = await _wait_started(operations)
        processes = marked(mark)
        assert processes
        await bench.remote.cancel(name)
        async for operation in operations:
            if operation.done:
                assert response_of(operation).status.code == CANCELLED
    assert not await trio.to_thread.run_sync(wait_ended, processes, 20.0)


async def _wait_started(operations: Operations) -> str:
    async for operation in operations:
        metadata = reapi.ExecuteOperationMetadata()
        operation.metadata.Unpack(metadata)
        if metadata.partial_execution_metadata.HasField("execution_start_timestamp"):
            return operation.name
    raise AssertionError("it was never started")

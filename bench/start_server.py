"""A server that starts ``true`` for every call: what stoker cannot do without, and no more.

It has stoker's gRPC and its local strategy. It loads no action, queues nothing, lays out no inputs,
takes no outputs and files no result; every answer is the same. It prints its address.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio
from google.longrunning import operations_pb2

from stoker import spi
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Server, ServerCall, Service, tune_allocator, unary_stream
from stoker_exec_local import Settings, open_strategy

PROGRAM = "/bin/true"


class _Starts:
    def __init__(self, strategy: spi.ExecutionStrategy, folder: Path) -> None:
        self._strategy = strategy
        self._spec = spi.ProcessSpec(
            argv=(PROGRAM,),
            environment={},
            root=folder,
            temporary_directory=folder,
            stdout=folder / "stdout",
            stderr=folder / "stderr",
        )

    async def execute(
        self, _request: reapi.ExecuteRequest, _call: ServerCall
    ) -> operations_pb2.Operation:
        async with self._strategy.start(self._spec) as process:
            ended = await process.wait()
        message = operations_pb2.Operation(name="operation", done=True)
        result = reapi.ActionResult(exit_code=ended.code)
        message.response.Pack(reapi.ExecuteResponse(result=result))
        return message


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as name:
        context = spi.Context("here", Path(name), {})
        async with open_strategy(Settings(), context) as strategy, trio.open_nursery() as nursery:
            method = unary_stream(
                _Starts(strategy, Path(name)).execute,
                reapi.ExecuteRequest,
                operations_pb2.Operation,
            )
            server = Server(
                [Service("build.bazel.remote.execution.v2.Execution", {"Execute": method})]
            )
            port = server.add_listener("127.0.0.1:0")
            await nursery.start(server.serve)
            print(f"127.0.0.1:{port}", flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    tune_allocator()
    trio.run(main)

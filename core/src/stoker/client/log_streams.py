"""Reading output that grows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from google.longrunning import operations_pb2

from stoker.protos import bytestream_pb2
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import ClientStream


class OutputNames(NamedTuple):
    """The names that stdout and stderr of an operation can be read by; empty where there are
    none."""

    stdout: str
    stderr: str


def output_names_of(operation: operations_pb2.Operation) -> OutputNames:
    """What the server says of the streams of `operation` (OPS-16)."""
    metadata = reapi.ExecuteOperationMetadata()
    operation.metadata.Unpack(metadata)
    return OutputNames(metadata.stdout_stream_name, metadata.stderr_stream_name)


class LogChunks(AsyncIterator[bytes]):
    """The pieces of a log stream, each as soon as it is there."""

    def __init__(self, stream: ClientStream[bytestream_pb2.ReadResponse]) -> None:
        self._stream = stream

    async def __anext__(self) -> bytes:
        """The next piece, of at least one byte."""
        while (response := await self._stream.receive()) is not None:
            if response.data:
                return response.data
        raise StopAsyncIteration

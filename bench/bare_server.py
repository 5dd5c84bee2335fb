"""A server on grpc.aio that does nothing but answer: the peer of stoker's whole server.

It hashes nothing and stores nothing: it reads from memory, counts what is written, and answers
other calls with the same bytes each time. Messages are raw bytes, so it decodes nothing either.
No server on grpc.aio can do less.

Its arguments: how many bytes one answer has, and how many a blob. It prints its address.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from stoker.protos import bytestream_pb2
from stoker.rpc.protos import health_pb2

CHUNK_BYTES = 1024 * 1024


def _bare(answer: bytes) -> Any:
    async def respond(_request: bytes, _context: Any) -> bytes:
        return answer

    return grpc.method_handlers_generic_handler(
        "bench.Bare", {"Answer": grpc.unary_unary_rpc_method_handler(respond)}
    )


def _echo() -> Any:
    async def echo(request: Any, _context: Any) -> Any:
        return request

    message = health_pb2.HealthCheckRequest
    handler = grpc.unary_unary_rpc_method_handler(
        echo,
        request_deserializer=message.FromString,
        response_serializer=message.SerializeToString,
    )
    return grpc.method_handlers_generic_handler("bench.Unary", {"Echo": handler})


def _byte_stream(blob_bytes: int) -> Any:
    chunk = bytestream_pb2.ReadResponse(data=bytes(CHUNK_BYTES)).SerializeToString()

    async def read(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        for _ in range(blob_bytes // CHUNK_BYTES):
            yield chunk

    async def write(requests: AsyncIterator[bytes], _context: Any) -> bytes:
        received = 0
        async for request in requests:
            received += len(request)
        response = bytestream_pb2.WriteResponse(committed_size=received)
        return response.SerializeToString()

    return grpc.method_handlers_generic_handler(
        "google.bytestream.ByteStream",
        {
            "Read": grpc.unary_stream_rpc_method_handler(read),
            "Write": grpc.stream_unary_rpc_method_handler(write),
        },
    )


async def main(answer_bytes: int, blob_bytes: int) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([_bare(bytes(answer_bytes)), _echo(), _byte_stream(blob_bytes)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))

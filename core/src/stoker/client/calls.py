"""Calls to one instance of one server, with what every call carries."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from google.protobuf.message import Message

from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import Channel, ClientStream

METADATA_KEY = "build.bazel.remote.execution.v2.requestmetadata-bin"

REAPI = "/build.bazel.remote.execution.v2"

ResponseT = TypeVar("ResponseT", bound=Message)


class Calls:
    """A channel, the instance name, and the metadata of the client. Calls may overlap."""

    def __init__(
        self, channel: Channel, target: str, instance_name: str, metadata: reapi.RequestMetadata
    ) -> None:
        self.target = target
        self.instance_name = instance_name
        self._channel = channel
        self._metadata = ((METADATA_KEY, metadata.SerializeToString()),)

    async def unary(
        self, method: str, request: Message, response_type: type[ResponseT]
    ) -> ResponseT:
        """Call a method with one request and one response. Raises RpcError."""
        return await self._channel.unary_unary(
            method, request, response_type, metadata=self._metadata
        )

    def stream(
        self, method: str, response_type: type[ResponseT], only_request: Message | None = None
    ) -> AbstractAsyncContextManager[ClientStream[ResponseT]]:
        """Call a method message by message, with one request if it is given here. Leaving the
        context cancels what is not over."""
        return self._channel.open_stream(
            method, response_type, metadata=self._metadata, only_request=only_request
        )

"""One instance of a REAPI server, as a client uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import NamedTuple

from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty

from stoker import __version__
from stoker.client.blobs import Blobs
from stoker.client.calls import REAPI, Calls
from stoker.client.execution import Operations
from stoker.client.log_streams import LogChunks
from stoker.digest import DIGEST_FUNCTIONS, Digest, DigestFunction
from stoker.errors import FailedPrecondition, InvalidRequest
from stoker.protos import bytestream_pb2, explain_pb2
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import ClientTlsCredentials, RpcError, StatusCode, open_channel

_OPERATIONS = "/google.longrunning.Operations"

# What gRPC adds to a failed TLS handshake in which no certificate was looked at.
_SAYING_NOTHING = frozenset({"", "OK", "Invalid certificate verification context"})


class Target(NamedTuple):
    """Where a server listens."""

    address: str
    """``host:port`` or ``unix:/path``."""
    tls: bool


def parse_target(text: str) -> Target:
    """Read ``grpc://host:port``, ``grpcs://host:port``, ``host:port`` or ``unix:/path``.

    Raises InvalidRequest.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "grpc", text
    if scheme == "unix":
        rest = f"unix:{rest}"
    elif scheme not in ("grpc", "grpcs"):
        raise InvalidRequest(f"{text!r} is no server's address: {scheme}:// is not known here")
    if not (rest.startswith("unix:") or rest.rpartition(":")[2].isdigit()):
        raise InvalidRequest(f"{text!r} is no server's address: expected host:port or unix:/path")
    return Target(rest, tls=scheme == "grpcs")


@asynccontextmanager
async def open_remote(
    target: str,
    instance_name: str = "",
    *,
    credentials: ClientTlsCredentials | None = None,
    metadata: reapi.RequestMetadata | None = None,
) -> AsyncIterator[RemoteInstance]:
    """Talk to the instance `instance_name` of the server at `target` (see `parse_target`).

    Asks for its capabilities first, and so raises RpcError if there is no such server or
    instance. An RpcError UNAVAILABLE names the server, in the body too. `metadata` goes with
    every call; by default it names stoker as the tool. On leaving, calls that still run are
    cancelled.
    """
    address, tls = parse_target(target)
    if tls and credentials is None:
        credentials = ClientTlsCredentials()
    with _naming_the_server(target):
        async with open_channel(address, credentials=credentials) as channel:
            calls = Calls(channel, target, instance_name, metadata or own_metadata())
            yield RemoteInstance(calls, await _capabilities(calls))


@contextmanager
def _naming_the_server(target: str) -> Iterator[None]:
    try:
        yield
    except RpcError as error:
        if error.code is not StatusCode.UNAVAILABLE:
            raise
        message = f"the server at {target} is not available: {_reason_of(error.message)}"
        raise RpcError(error.code, message, error.details) from error


def _reason_of(message: str) -> str:
    """What gRPC says nests the failures of its layers; the innermost that says something."""
    if "WRONG_VERSION_NUMBER" in message:
        return "it does not speak TLS, which grpcs:// asks for"
    if not message.startswith("failed to connect"):
        return message
    parts = message.split(": ")
    while len(parts) > 1 and parts[-1] in _SAYING_NOTHING:
        parts.pop()
    return parts[-1]


class RemoteInstance(Blobs):
    """An instance of a server: its blobs, its action cache, its executors. Calls may overlap.

    Every method raises RpcError when the server refuses or is lost.
    """

    def __init__(self, calls: Calls, capabilities: reapi.ServerCapabilities) -> None:
        super().__init__(calls, capabilities.cache_capabilities.max_batch_total_size_bytes)
        self._calls = calls
        self._announced = capabilities
        self.target = calls.target
        self.instance_name = calls.instance_name

    async def capabilities(self) -> reapi.ServerCapabilities:
        """What the server says now."""
        return await _capabilities(self._calls)

    @property
    def digest_function(self) -> DigestFunction:
        """The first function that both sides know. Raises FailedPrecondition."""
        known = self._announced.cache_capabilities.digest_functions
        for function in DIGEST_FUNCTIONS:
            if function.number in known:
                return function
        raise FailedPrecondition(f"{self._name()} has no digest function that stoker knows")

    def check_executes(self) -> None:
        """Raise FailedPrecondition unless the instance executes actions for this caller."""
        if not self._announced.execution_capabilities.exec_enabled:
            raise FailedPrecondition(f"{self._name()} does not execute actions")

    async def action_result(self, action: Digest) -> reapi.ActionResult | None:
        """The cached result of `action`, None if there is none."""
        request = reapi.GetActionResultRequest(
            instance_name=self.instance_name,
            action_digest=action.to_proto(),
            digest_function=action.function.number,
        )
        try:
            return await self._calls.unary(
                f"{REAPI}.ActionCache/GetActionResult", request, reapi.ActionResult
            )
        except RpcError as error:
            if error.code is StatusCode.NOT_FOUND:
                return None
            raise

    @asynccontextmanager
    async def execute(
        self,
        action: Digest,
        *,
        skip_cache_lookup: bool = False,
        priority: int = 0,
        inline_outputs: bool = False,
    ) -> AsyncIterator[Operations]:
        """Execute an action whose blobs are all there, and iterate over its Operation messages.

        With `inline_outputs` the server may put stdout and stderr into the result. Leaving the
        context before the end leaves the action to the server; see `cancel`.
        """
        request = reapi.ExecuteRequest(
            instance_name=self.instance_name,
            skip_cache_lookup=skip_cache_lookup,
            action_digest=action.to_proto(),
            execution_policy=reapi.ExecutionPolicy(priority=priority),
            digest_function=action.function.number,
            inline_stdout=inline_outputs,
            inline_stderr=inline_outputs,
        )
        async with AsyncExitStack() as exits:
            yield Operations(self._calls, request, exits)

    async def run(
        self, action: Digest, *, skip_cache_lookup: bool = False
    ) -> reapi.ExecuteResponse:
        """Execute an action to its end. Its failures are in the response, not raised."""
        async with self.execute(action, skip_cache_lookup=skip_cache_lookup) as operations:
            async for operation in operations:
                if operation.done:
                    return response_of(operation)
        raise AssertionError("the iteration ends with an operation that is done, or raises")

    async def operation(self, operation_name: str) -> operations_pb2.Operation:
        """How an operation stands. Raises RpcError NOT_FOUND where the server knows none."""
        return await self._calls.unary(
            f"{_OPERATIONS}/GetOperation",
            operations_pb2.GetOperationRequest(name=operation_name),
            operations_pb2.Operation,
        )

    async def operations(
        self, filter_: str = "", *, at_most: int | None = None
    ) -> list[operations_pb2.Operation]:
        """The caller's operations on this instance that `filter_` lets through, oldest first."""
        found: list[operations_pb2.Operation] = []
        token = ""
        while at_most is None or len(found) < at_most:
            request = operations_pb2.ListOperationsRequest(
                name=self.operation_name(""), filter=filter_, page_token=token
            )
            page = await self._calls.unary(
                f"{_OPERATIONS}/ListOperations", request, operations_pb2.ListOperationsResponse
            )
            found += page.operations
            if not (token := page.next_page_token):
                break
        return found[:at_most]

    def operation_name(self, name: str) -> str:
        """The whole name of an operation, of this instance where only the last segment is given;
        of all of the instance's, if it is empty."""
        parts = (self.instance_name, "operations", name)
        return name if "/" in name else "/".join(filter(None, parts))

    async def cancel(self, operation_name: str) -> None:
        """Ask the server to stop an operation. Raises RpcError NOT_FOUND if it knows none."""
        request = operations_pb2.CancelOperationRequest(name=operation_name)
        await self._calls.unary(f"{_OPERATIONS}/CancelOperation", request, Empty)

    @asynccontextmanager
    async def open_log(self, name: str, offset: int = 0) -> AsyncIterator[LogChunks]:
        """Read the log stream `name`, as far as it is there and as it grows, up to its end.

        Raises RpcError with the first piece or a later one.
        """
        request = bytestream_pb2.ReadRequest(resource_name=name, read_offset=offset)
        async with self._calls.stream(
            "/google.bytestream.ByteStream/Read", bytestream_pb2.ReadResponse, request
        ) as stream:
            yield LogChunks(stream)

    async def explain(self, request: explain_pb2.ExplainActionRequest) -> explain_pb2.Explanation:
        """What the server knows of an action; the instance's name is filled in.

        Raises RpcError UNIMPLEMENTED by servers other than stoker.
        """
        request.instance_name = self.instance_name
        return await self._calls.unary(
            "/stoker.v1.Explain/ExplainAction", request, explain_pb2.Explanation
        )

    def _name(self) -> str:
        return f"instance {self.instance_name!r} of {self.target}"


def response_of(operation: operations_pb2.Operation) -> reapi.ExecuteResponse:
    """The response in an operation that is done. Raises RpcError where there is none."""
    response = reapi.ExecuteResponse()
    if not operation.response.Unpack(response):
        raise RpcError(
            StatusCode.INTERNAL, f"operation {operation.name} has ended without a response"
        )
    return response


def stage_of(operation: operations_pb2.Operation) -> reapi.ExecutionStage.Value.ValueType:
    """How far an operation has come; UNKNOWN where the server does not say."""
    metadata = reapi.ExecuteOperationMetadata()
    operation.metadata.Unpack(metadata)
    return metadata.stage


async def _capabilities(calls: Calls) -> reapi.ServerCapabilities:
    request = reapi.GetCapabilitiesRequest(instance_name=calls.instance_name)
    return await calls.unary(
        f"{REAPI}.Capabilities/GetCapabilities", request, reapi.ServerCapabilities
    )


def own_metadata() -> reapi.RequestMetadata:
    """What stoker says of itself with each call."""
    tool = reapi.ToolDetails(tool_name="stoker", tool_version=__version__)
    return reapi.RequestMetadata(tool_details=tool)

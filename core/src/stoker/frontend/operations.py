"""The google.longrunning Operations service (section 13 of the conformance list).

A client sees its own operations only: those that were asked for by the same principal. Where
clients show no certificates, all of them are the same one, and see each other's.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import structlog
import trio
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty

from stoker.errors import InvalidRequest
from stoker.frontend.capabilities import MAX_RESPONSE_BYTES
from stoker.frontend.instances import Instances
from stoker.frontend.operation_filter import OperationFilter
from stoker.frontend.operation_message import operation_message, whole_message
from stoker.rpc import ServerCall, Service, unary_unary
from stoker.scheduler.operation import Operation
from stoker.scheduler.scheduler import Scheduler

log = structlog.get_logger(__name__)

DEFAULT_PAGE, MAX_PAGE = 100, 1000

_AT_A_TIME = 500
"""So many operations are looked at before others have their turn."""

_SPARE_SECONDS = 1.0
"""An answer to WaitOperation is on its way so long before the deadline of the call, or a tenth of
the time that it has left where that is less."""


class OperationsService:
    """Looks at operations, waits for them, cancels and forgets them."""

    def __init__(self, instances: Instances, scheduler: Scheduler) -> None:
        self._instances = instances
        self._scheduler = scheduler

    def service(self) -> Service:
        pb = operations_pb2
        return Service(
            "google.longrunning.Operations",
            {
                "GetOperation": unary_unary(
                    self.get_operation, pb.GetOperationRequest, pb.Operation
                ),
                "ListOperations": unary_unary(
                    self.list_operations, pb.ListOperationsRequest, pb.ListOperationsResponse
                ),
                "WaitOperation": unary_unary(
                    self.wait_operation, pb.WaitOperationRequest, pb.Operation
                ),
                "CancelOperation": unary_unary(
                    self.cancel_operation, pb.CancelOperationRequest, Empty
                ),
                "DeleteOperation": unary_unary(
                    self.delete_operation, pb.DeleteOperationRequest, Empty
                ),
            },
        )

    async def get_operation(
        self, request: operations_pb2.GetOperationRequest, call: ServerCall
    ) -> operations_pb2.Operation:
        return await self._whole(self._scheduler.find(request.name, call.principal))

    async def wait_operation(
        self, request: operations_pb2.WaitOperationRequest, call: ServerCall
    ) -> operations_pb2.Operation:
        """How it stands once it has ended, or else when the time is over (OPS-21)."""
        operation = self._scheduler.find(request.name, call.principal)
        seconds = _waiting_seconds(request, call)
        with self._scheduler.waiting(call.principal), self._scheduler.watching(operation):
            with trio.move_on_after(seconds):
                await operation.wait_completed()
            return await self._whole(operation)

    async def list_operations(
        self, request: operations_pb2.ListOperationsRequest, call: ServerCall
    ) -> operations_pb2.ListOperationsResponse:
        """The client's operations on the instance that ``name`` names, oldest first (OPS-20)."""
        if request.page_size < 0:
            raise InvalidRequest(f"page_size {request.page_size} is negative")
        instance = self._instances.resolve(_instance_name(request.name))
        wanted = OperationFilter(request.filter)
        pages = _Pages(request)
        page = _Page(min(request.page_size or DEFAULT_PAGE, MAX_PAGE))
        principal = call.principal
        for part in _parts(self._scheduler.operations_after(pages.start)):
            await trio.lowlevel.checkpoint()
            for operation in part:
                if operation.namespace != instance.name or operation.principal != principal:
                    continue
                if wanted.matches(operation) and not page.take(operation):
                    return page.response(pages.token(page.last_number))
        return page.response("")

    async def cancel_operation(
        self, request: operations_pb2.CancelOperationRequest, call: ServerCall
    ) -> Empty:
        """End the client's own operation. Its run ends with the last that shares it (OPS-18)."""
        operation = self._scheduler.find(request.name, call.principal)
        log.info("operation is cancelled", operation=operation.name, principal=call.principal)
        self._scheduler.cancel(operation)
        return Empty()

    async def delete_operation(
        self, request: operations_pb2.DeleteOperationRequest, call: ServerCall
    ) -> Empty:
        """Forget an operation, and cancel nothing: whoever waits for it hears its end (OPS-19)."""
        self._scheduler.forget(self._scheduler.find(request.name, call.principal))
        return Empty()

    async def _whole(self, operation: Operation) -> operations_pb2.Operation:
        return await whole_message(operation, self._instances.resolve(operation.namespace).blobs)


def _instance_name(name: str) -> str:
    """The instance that the name of a collection, ``{instance/}operations``, means."""
    return "" if name == "operations" else name.removesuffix("/operations")


def _waiting_seconds(request: operations_pb2.WaitOperationRequest, call: ServerCall) -> float:
    left = call.deadline_seconds_left()
    if left < math.inf:
        left -= min(_SPARE_SECONDS, left / 10)
    if not request.HasField("timeout"):
        return left
    seconds = request.timeout.seconds + request.timeout.nanos / 1e9
    if seconds < 0:
        raise InvalidRequest(f"timeout is {seconds:g} s; leave it unset to wait without one")
    return min(seconds, left)


def _parts(operations: Sequence[Operation]) -> list[Sequence[Operation]]:
    return [operations[i : i + _AT_A_TIME] for i in range(0, len(operations), _AT_A_TIME)]


class _Pages:
    """Where a page begins, and what names the next one.

    A token tells where to go on by a number that operations have in their order, so it stays good
    when the operation that had it is forgotten.
    """

    def __init__(self, request: operations_pb2.ListOperationsRequest) -> None:
        """Raises InvalidRequest for a token that was not given for the same list."""
        self._list = zlib.crc32(f"{request.name}\n{request.filter}".encode())
        self.start = self._parse(request.page_token) if request.page_token else 0

    def token(self, last_number: int) -> str:
        """What names the page after the operation with this number."""
        return f"{last_number:x}.{self._list:x}"

    def _parse(self, token: str) -> int:
        number, _, of_list = token.partition(".")
        try:
            start, belongs = int(number, 16), int(of_list, 16) == self._list
        except ValueError:
            raise InvalidRequest(f"page_token {token!r} is none that was given here") from None
        if not belongs:
            raise InvalidRequest(
                f"page_token {token!r} was given for another name or filter; they must not change "
                f"from page to page"
            )
        return start


class _Page:
    """As many operations as fit into a message that clients take (GEN-15); at least one."""

    def __init__(self, max_count: int) -> None:
        self._max_count = max_count
        self._room = MAX_RESPONSE_BYTES
        self._messages: list[operations_pb2.Operation] = []
        self.last_number = 0

    def take(self, operation: Operation) -> bool:
        """Add `operation`; False, and nothing changed, where it does not fit."""
        if len(self._messages) == self._max_count:
            return False
        message = operation_message(operation)
        size = message.ByteSize() + 8
        if self._messages and size > self._room:
            return False
        self._room -= size
        self._messages.append(message)
        self.last_number = operation.number
        return True

    def response(self, next_page_token: str) -> operations_pb2.ListOperationsResponse:
        """The page as a message."""
        return operations_pb2.ListOperationsResponse(
            operations=self._messages, next_page_token=next_page_token
        )

"""The google.longrunning Operations service (section 13 of the conformance list)."""

from __future__ import annotations

from collections.abc import Iterable

from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty

from stoker.errors import InvalidRequest
from stoker.frontend.capabilities import MAX_RESPONSE_BYTES
from stoker.frontend.instances import Instances
from stoker.frontend.operation_message import operation_message
from stoker.rpc import ServerCall, Service, unary_unary
from stoker.scheduler.operation import Operation
from stoker.scheduler.scheduler import Scheduler

DEFAULT_PAGE, MAX_PAGE = 100, 1000


class OperationsService:
    """Looks at operations, and cancels them."""

    def __init__(self, instances: Instances, scheduler: Scheduler) -> None:
        self._instances = instances
        self._scheduler = scheduler

    def service(self) -> Service:
        return Service(
            "google.longrunning.Operations",
            {
                "GetOperation": unary_unary(
                    self.get_operation,
                    operations_pb2.GetOperationRequest,
                    operations_pb2.Operation,
                ),
                "ListOperations": unary_unary(
                    self.list_operations,
                    operations_pb2.ListOperationsRequest,
                    operations_pb2.ListOperationsResponse,
                ),
                "CancelOperation": unary_unary(
                    self.cancel_operation, operations_pb2.CancelOperationRequest, Empty
                ),
            },
        )

    async def get_operation(
        self, request: operations_pb2.GetOperationRequest, _: ServerCall
    ) -> operations_pb2.Operation:
        return operation_message(self._scheduler.find(request.name))

    async def list_operations(
        self, request: operations_pb2.ListOperationsRequest, _: ServerCall
    ) -> operations_pb2.ListOperationsResponse:
        """The operations of the instance that ``name`` names, oldest first (OPS-20)."""
        if request.filter:
            raise InvalidRequest("filters are not supported; leave filter empty")
        if request.page_size < 0:
            raise InvalidRequest(f"page_size {request.page_size} is negative")
        instance = self._instances.resolve(_instance_name(request.name))
        operations = self._scheduler.operations(instance.name)
        start = _start([operation.name for operation in operations], request.page_token)
        page = _page(operations[start:], min(request.page_size or DEFAULT_PAGE, MAX_PAGE))
        more = start + len(page) < len(operations)
        return operations_pb2.ListOperationsResponse(
            operations=page, next_page_token=page[-1].name if more else ""
        )

    async def cancel_operation(
        self, request: operations_pb2.CancelOperationRequest, _: ServerCall
    ) -> Empty:
        self._scheduler.cancel(self._scheduler.find(request.name))
        return Empty()


def _instance_name(name: str) -> str:
    """The instance that the name of a collection, ``{instance/}operations``, means."""
    return "" if name == "operations" else name.removesuffix("/operations")


def _page(operations: Iterable[Operation], max_count: int) -> list[operations_pb2.Operation]:
    """As many of `operations` as fit into a message that clients take (GEN-15); at least one."""
    page: list[operations_pb2.Operation] = []
    room = MAX_RESPONSE_BYTES
    for operation in operations:
        message = operation_message(operation)
        room -= message.ByteSize() + 8
        if page and (room < 0 or len(page) == max_count):
            break
        page.append(message)
    return page


def _start(names: list[str], page_token: str) -> int:
    """Where the page after the operation that `page_token` names begins."""
    if not page_token:
        return 0
    try:
        return names.index(page_token) + 1
    except ValueError:
        raise InvalidRequest(
            f"page_token {page_token!r} is not known, or has expired; list from the start"
        ) from None

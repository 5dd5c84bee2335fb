"""The google.longrunning Operations service (section 13 of the conformance list)."""

from __future__ import annotations

from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty

from stoker.errors import InvalidRequest
from stoker.frontend.instances import Instances
from stoker.frontend.operation_message import operation_message
from stoker.rpc import ServerCall, Service, unary_unary
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
        instance = self._instances.resolve(request.name.removesuffix("operations").rstrip("/"))
        operations = self._scheduler.operations(instance.name)
        start = _start([operation.name for operation in operations], request.page_token)
        page = operations[start : start + min(request.page_size or DEFAULT_PAGE, MAX_PAGE)]
        more = start + len(page) < len(operations)
        return operations_pb2.ListOperationsResponse(
            operations=[operation_message(operation) for operation in page],
            next_page_token=page[-1].name if more else "",
        )

    async def cancel_operation(
        self, request: operations_pb2.CancelOperationRequest, _: ServerCall
    ) -> Empty:
        self._scheduler.cancel(self._scheduler.find(request.name))
        return Empty()


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

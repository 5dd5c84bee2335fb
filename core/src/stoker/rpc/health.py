"""The health service, grpc.health.v1, by which load balancers and orchestrators ask."""

from collections.abc import Iterable

import trio

from stoker.rpc.protos import health_pb2
from stoker.rpc.server_call import ServerCall
from stoker.rpc.service import Service, unary_stream, unary_unary
from stoker.rpc.status import RpcError, StatusCode

SERVICE_NAME = "grpc.health.v1.Health"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Knows which services can serve. The name "" stands for the server as a whole.

    Every name starts as not serving. `service` is what a Server takes. To be used on trio's
    thread.
    """

    def __init__(self, names: Iterable[str] = ("",)) -> None:
        self._serving = dict.fromkeys(names, False)
        self._changed = trio.Event()
        self.service = Service(
            SERVICE_NAME,
            {
                "Check": unary_unary(
                    self._check, health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
                ),
                "Watch": unary_stream(
                    self._watch, health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
                ),
                "List": unary_unary(
                    self._list, health_pb2.HealthListRequest, health_pb2.HealthListResponse
                ),
            },
        )

    def set_serving(self, name: str, serving: bool) -> None:
        """Say whether `name`, a full service name or "", can serve; its watchers are told."""
        self._serving[name] = serving
        self._changed.set()
        self._changed = trio.Event()

    async def _check(
        self, request: health_pb2.HealthCheckRequest, _call: ServerCall
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._serving:
            raise RpcError(StatusCode.NOT_FOUND, f"there is no service {request.service!r}")
        return self._response(request.service)

    async def _watch(self, request: health_pb2.HealthCheckRequest, call: ServerCall) -> None:
        told = None
        while True:
            changed = self._changed
            response = self._response(request.service)
            if response.status != told:
                told = response.status
                await call.send(response)
            await changed.wait()

    async def _list(
        self, _request: health_pb2.HealthListRequest, _call: ServerCall
    ) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(
            statuses={name: self._response(name) for name in self._serving}
        )

    def _response(self, name: str) -> health_pb2.HealthCheckResponse:
        serving = self._serving.get(name)
        if serving is None:
            return health_pb2.HealthCheckResponse(status=_SERVICE_UNKNOWN)
        return health_pb2.HealthCheckResponse(status=_SERVING if serving else _NOT_SERVING)

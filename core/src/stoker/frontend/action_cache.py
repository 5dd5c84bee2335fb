"""The ActionCache service (sections 10 and 11 of the conformance list)."""

from __future__ import annotations

from stoker.errors import InvalidRequest, NotAllowed, ResultNotFound
from stoker.frontend.inlining import inline_contents
from stoker.frontend.instances import Instances, naming_instance
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import ServerCall, Service, unary_unary


class ActionCacheService:
    """Results by action."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    def service(self) -> Service:
        return Service(
            "build.bazel.remote.execution.v2.ActionCache",
            {
                "GetActionResult": unary_unary(
                    naming_instance(self.get_action_result),
                    reapi.GetActionResultRequest,
                    reapi.ActionResult,
                ),
                "UpdateActionResult": unary_unary(
                    naming_instance(self.update_action_result),
                    reapi.UpdateActionResultRequest,
                    reapi.ActionResult,
                ),
            },
        )

    async def get_action_result(
        self, request: reapi.GetActionResultRequest, _: ServerCall
    ) -> reapi.ActionResult:
        instance = self._instances.resolve(request.instance_name)
        digest = instance.request_digest(
            request.digest_function, "action_digest", request.action_digest
        )
        result = await instance.actions.get(instance.action_key(digest))
        if result is None:
            raise ResultNotFound(digest)
        return await inline_contents(
            result,
            instance.blobs,
            digest.function,
            stdout=request.inline_stdout,
            stderr=request.inline_stderr,
            files=frozenset(request.inline_output_files),
        )

    async def update_action_result(
        self, request: reapi.UpdateActionResultRequest, _: ServerCall
    ) -> reapi.ActionResult:
        instance = self._instances.resolve(request.instance_name)
        digest = instance.request_digest(
            request.digest_function, "action_digest", request.action_digest
        )
        if not request.HasField("action_result"):
            raise InvalidRequest("action_result is not set")
        if not instance.client_updates:
            raise NotAllowed(
                f"instance {instance.name!r} takes action results from its executors only"
            )
        await instance.actions.update(instance.action_key(digest), request.action_result)
        return request.action_result

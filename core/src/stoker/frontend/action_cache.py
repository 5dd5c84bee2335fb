"""The ActionCache service (sections 10 and 11 of the conformance list)."""

from __future__ import annotations

import trio

from stoker.action import parse_action
from stoker.digest import Digest, DigestFunction
from stoker.errors import InputsMissing, InvalidRequest, PermissionDenied, ResultNotFound
from stoker.frontend.inlining import inline_contents
from stoker.frontend.instances import Instance, Instances, naming_instance
from stoker.frontend.provenance import provenance_of_client, stamp
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import ServerCall, Service, unary_unary

# Hashing this much takes 0.2 ms, for which others need not wait any longer.
_THREAD_THRESHOLD_BYTES = 256 * 1024
_MAX_ACTION_BYTES = 64 * 1024 * 1024


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
        self, request: reapi.UpdateActionResultRequest, call: ServerCall
    ) -> reapi.ActionResult:
        instance = self._instances.resolve(request.instance_name)
        digest = instance.request_digest(
            request.digest_function, "action_digest", request.action_digest
        )
        if not request.HasField("action_result"):
            raise InvalidRequest("action_result is not set")
        if not instance.client_updates:
            raise PermissionDenied(
                f"instance {instance.name!r} takes action results from its executors only"
            )
        if instance.check_actions:
            await _check_action(instance, digest)
        result = request.action_result
        if not result.ByteSize():
            result.execution_metadata.worker = "unknown"  # ACU-08
        stamp(result, provenance_of_client(call))
        await _move_contents(instance, result, digest.function)
        await instance.actions.update(instance.action_key(digest), result)
        return result


async def _check_action(instance: Instance, digest: Digest) -> None:
    """Raise unless `digest` is an Action that may be cached, and it and its Command are there."""
    if digest.size_bytes > _MAX_ACTION_BYTES:
        raise InvalidRequest(f"blob {digest} is too large for an Action")
    blobs = await instance.blobs.read_many([digest])
    if digest not in blobs:
        raise InputsMissing([digest])
    action = parse_action(digest, blobs[digest])
    command = digest.function.parse(action.command_digest)
    if await instance.blobs.find_missing([command]):
        raise InputsMissing([command])
    if action.do_not_cache:
        raise InvalidRequest(f"action {digest} says do_not_cache, so its result is not filed")


async def _move_contents(
    instance: Instance, result: reapi.ActionResult, function: DigestFunction
) -> None:
    """Move inlined contents to the CAS (ACU-07), to be inlined again for those who ask.

    Raises InvalidRequest for contents that are not what the digest beside them says, or larger
    than clients may upload (CAP-11).
    """
    if result.ByteSize() < _THREAD_THRESHOLD_BYTES:
        contents = _take_contents(result, function)
    else:
        contents = await trio.to_thread.run_sync(_take_contents, result, function)
    for digest in contents:
        instance.check_size(digest)
    failures = await instance.blobs.write_many(contents) if contents else {}
    for error in failures.values():
        raise error


def _take_contents(result: reapi.ActionResult, function: DigestFunction) -> dict[Digest, bytes]:
    contents: dict[Digest, bytes] = {}
    if result.stdout_raw:
        contents[_digest_beside(result.stdout_digest, result.stdout_raw, function)] = (
            result.stdout_raw
        )
        result.ClearField("stdout_raw")
    if result.stderr_raw:
        contents[_digest_beside(result.stderr_digest, result.stderr_raw, function)] = (
            result.stderr_raw
        )
        result.ClearField("stderr_raw")
    for file in result.output_files:
        if file.contents:
            contents[_digest_beside(file.digest, file.contents, function)] = file.contents
            file.ClearField("contents")
    return contents


def _digest_beside(message: reapi.Digest, data: bytes, function: DigestFunction) -> Digest:
    """The digest that a result gives for `data`, filled in where there is none."""
    if not message.ByteSize():
        message.CopyFrom(function.digest(data).to_proto())
    return function.parse(message)

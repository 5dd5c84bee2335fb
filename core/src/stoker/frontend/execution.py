"""The Execution service (sections 12 and 13 of the conformance list)."""

from __future__ import annotations

import trio
from google.longrunning import operations_pb2

from stoker.action import (
    CacheAnswer,
    CacheVerdict,
    LoadedAction,
    Outcome,
    load_action,
    parse_action,
    parse_command,
)
from stoker.digest import Digest
from stoker.errors import FailedPrecondition, InputsMissing, InvalidRequest
from stoker.frontend.capabilities import MAX_PRIORITY, MIN_PRIORITY
from stoker.frontend.inlining import inline_contents
from stoker.frontend.instances import Instance, Instances, naming_instance
from stoker.frontend.operation_message import operation_message
from stoker.frontend.request_metadata import request_metadata
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import ServerCall, Service, unary_stream
from stoker.scheduler.operation import Operation
from stoker.scheduler.queue import Stage
from stoker.scheduler.scheduler import Scheduler
from stoker.storage.completeness import Lookup
from stoker.storage.recent import read_soon

HEARTBEAT_SECONDS = 30.0
"""An unchanged operation is told again after this time, lest an idle connection be cut (OPS-07)."""

FIRST_WITHIN_SECONDS = 0.025
"""An operation that ends within this time is told of once, by its end: one message, sent together
with the status, takes half the work of two. Others are told of then, so that their client knows
their name should the connection break (OPS-01)."""

BRIEF_SECONDS = 0.1
"""A change is not told if the operation ends within this time. Most clients show nothing that is
so short, and a message costs more than many an action (OPS-06)."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""What an Action or Command may weigh: they are read whole."""


class ExecutionService:
    """Accepts actions, and lets any number of clients wait for them."""

    def __init__(self, instances: Instances, scheduler: Scheduler) -> None:
        self._instances = instances
        self._scheduler = scheduler

    def service(self) -> Service:
        return Service(
            "build.bazel.remote.execution.v2.Execution",
            {
                "Execute": unary_stream(
                    naming_instance(self.execute), reapi.ExecuteRequest, operations_pb2.Operation
                ),
                "WaitExecution": unary_stream(
                    self.wait_execution, reapi.WaitExecutionRequest, operations_pb2.Operation
                ),
            },
        )

    async def execute(
        self, request: reapi.ExecuteRequest, call: ServerCall
    ) -> operations_pb2.Operation:
        instance = self._instances.resolve(request.instance_name)
        if not instance.executors:
            raise FailedPrecondition(
                f"instance {instance.name!r} only caches: it has no executors to run actions on"
            )
        action = await self._load(instance, request, call)
        operation = await self._accept(instance, request, action)
        await self._follow(operation, call, FIRST_WITHIN_SECONDS)
        return await _final_message(operation, instance, request)

    async def wait_execution(
        self, request: reapi.WaitExecutionRequest, call: ServerCall
    ) -> operations_pb2.Operation:
        operation = self._scheduler.find(request.name)
        # OPS-09: whoever comes back is told at once how it stands.
        await self._follow(operation, call, 0)
        return operation_message(operation)

    async def _follow(
        self, operation: Operation, call: ServerCall, first_within_seconds: float
    ) -> None:
        """Tell each change but the last. A slow reader gets the latest only."""
        with self._scheduler.watching(operation):
            if first_within_seconds and operation.stage is not Stage.COMPLETED:
                with trio.move_on_after(first_within_seconds):
                    await operation.wait_completed()
            while operation.stage is not Stage.COMPLETED:
                version = operation.version
                await call.send(operation_message(operation))
                await _wait_news(operation, version)

    async def _load(
        self, instance: Instance, request: reapi.ExecuteRequest, call: ServerCall
    ) -> LoadedAction:
        digest = instance.request_digest(
            request.digest_function, "action_digest", request.action_digest
        )
        message = parse_action(digest, await _read(instance, digest))
        command_digest = digest.function.parse(message.command_digest)
        command = parse_command(command_digest, await _read(instance, command_digest))
        return load_action(
            digest,
            message,
            command,
            namespace=instance.name,
            metadata=request_metadata(call),
            max_blob_bytes=instance.max_blob_bytes,
        )

    async def _accept(
        self, instance: Instance, request: reapi.ExecuteRequest, action: LoadedAction
    ) -> Operation:
        """An operation for `action`: it joins a twin in flight, has ended by the action cache, or
        is new. Nothing is awaited between the last look and the decision, so that an action whose
        twin ends meanwhile is not run again (EXE-21)."""
        executors = _within_limits(instance, action)
        while True:
            if joined := self._scheduler.join(action, priority=_priority(request)):
                return joined
            end_count = self._scheduler.end_count
            result, answer = await _look_up(instance, request, action)
            if result is not None:
                return self._scheduler.submit_completed(action, Outcome(result=result, cached=True))
            if request.skip_cache_lookup or not self._scheduler.ended_since(action, end_count):
                break
        return self._scheduler.submit(
            action, priority=_priority(request), executors=executors, cache=answer
        )


async def _look_up(
    instance: Instance, request: reapi.ExecuteRequest, action: LoadedAction
) -> Lookup:
    """What the action cache has, where it is to be asked (EXE-18)."""
    if request.skip_cache_lookup:
        return Lookup(None, CacheAnswer(CacheVerdict.SKIPPED))
    if not action.cacheable:
        return Lookup(None, CacheAnswer(CacheVerdict.NOT_CACHEABLE))
    return await instance.actions.look_up(instance.action_key(action.digest))


async def _wait_news(operation: Operation, version: int) -> None:
    """Wait until there is more to tell than there was at `version`, or it is time to repeat it."""
    with trio.move_on_after(BRIEF_SECONDS):
        return await operation.wait_completed()
    with trio.move_on_after(HEARTBEAT_SECONDS):
        await operation.wait_change(version)
        with trio.move_on_after(BRIEF_SECONDS):
            await operation.wait_completed()
    return None


async def _final_message(
    operation: Operation, instance: Instance, request: reapi.ExecuteRequest
) -> operations_pb2.Operation:
    """The end of `operation`, with the contents inlined that the request asks for (RUN-32)."""
    assert operation.outcome is not None
    result = operation.outcome.result
    if result is not None:
        result = await inline_contents(
            result,
            instance.blobs,
            operation.action_digest.function,
            stdout=request.inline_stdout,
            stderr=request.inline_stderr,
            files=frozenset(request.inline_output_files),
        )
    return operation_message(operation, result)


async def _read(instance: Instance, digest: Digest) -> bytes:
    """An Action or Command. Raises InputsMissing, which makes the client upload it (EXE-03)."""
    if digest.size_bytes > MAX_MESSAGE_BYTES:
        raise InvalidRequest(f"blob {digest} is too large for an Action or Command")
    blobs = await read_soon(instance.blobs, [digest])
    if digest not in blobs:
        raise InputsMissing([digest])
    return blobs[digest]


def _priority(request: reapi.ExecuteRequest) -> int:
    """Priorities outside of the advertised range count as its ends (EXE-17)."""
    return max(MIN_PRIORITY, min(MAX_PRIORITY, request.execution_policy.priority))


def _within_limits(instance: Instance, action: LoadedAction) -> list[str]:
    """The executors whose longest timeout `action` keeps to. Raises InvalidRequest (EXE-10)."""
    asked = action.timeout_seconds or 0.0
    within = [name for name, limit in instance.executors.items() if asked <= limit]
    if not within:
        longest = max(instance.executors.values())
        raise InvalidRequest(
            f"the action's timeout of {asked:g} s is longer than the {longest:g} s that "
            f"instance {instance.name!r} allows"
        )
    return within

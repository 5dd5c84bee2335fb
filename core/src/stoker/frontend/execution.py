"""The Execution service (sections 12 and 13 of the conformance list)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from google.longrunning import operations_pb2

from stoker.action import (
    NOTHING_INLINED,
    CacheAnswer,
    CacheVerdict,
    Inlined,
    LoadedAction,
    Outcome,
)
from stoker.errors import FailedPrecondition
from stoker.frontend.capabilities import MAX_PRIORITY, MIN_PRIORITY
from stoker.frontend.instances import Instance, Instances, naming_instance
from stoker.frontend.loading import read_action, within_limits
from stoker.frontend.operation_message import operation_message, whole_message
from stoker.frontend.request_metadata import request_metadata
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import ServerCall, Service, unary_stream
from stoker.scheduler.operation import Operation
from stoker.scheduler.queue import Stage
from stoker.scheduler.scheduler import Scheduler
from stoker.storage.completeness import Lookup

HEARTBEAT_SECONDS = 30.0
"""An unchanged operation is told again after this time, lest an idle connection be cut (OPS-07)."""

FIRST_WITHIN_SECONDS = 0.025
"""An operation that ends within this time is told of once, by its end: one message, sent together
with the status, takes half the work of two. Others are told of then, so that their client knows
their name should the connection break (OPS-01)."""

BRIEF_SECONDS = 0.1
"""A change is not told if the operation ends within this time. Most clients show nothing that is
so short, and a message costs more than many an action (OPS-06)."""


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
        # Before anything is read: whoever has too many calls already costs nothing more.
        with self._scheduler.waiting(call.principal):
            action = await self._load(instance, request, call)
            operation = await self._accept(instance, request, action)
            await self._follow(operation, call, FIRST_WITHIN_SECONDS)
            return await whole_message(operation, instance.blobs)

    async def wait_execution(
        self, request: reapi.WaitExecutionRequest, call: ServerCall
    ) -> operations_pb2.Operation:
        operation = self._scheduler.find(request.name, call.principal)
        instance = self._instances.resolve(operation.namespace)
        with self._scheduler.waiting(call.principal):
            # OPS-09: whoever comes back is told at once how it stands.
            await self._follow(operation, call, 0)
            return await whole_message(operation, instance.blobs)

    async def _follow(
        self, operation: Operation, call: ServerCall, first_within_seconds: float
    ) -> None:
        """Tell each change but the last. A slow reader gets the latest only."""
        with self._scheduler.watching(operation):
            if first_within_seconds and operation.stage is not Stage.COMPLETED:
                with trio.move_on_after(first_within_seconds):
                    await operation.wait_completed()
            if operation.stage is not Stage.COMPLETED:
                # Whoever knows a name may ask for it from the server after this one (OPS-11).
                await self._scheduler.wait_recorded(operation)
            await tell_changes(operation, call.send)

    async def _load(
        self, instance: Instance, request: reapi.ExecuteRequest, call: ServerCall
    ) -> LoadedAction:
        digest = instance.request_digest(
            request.digest_function, "action_digest", request.action_digest
        )
        return await read_action(
            instance, digest, metadata=request_metadata(call), principal=call.principal
        )

    async def _accept(
        self, instance: Instance, request: reapi.ExecuteRequest, action: LoadedAction
    ) -> Operation:
        """An operation for `action`: it joins a twin in flight, has ended by the action cache, or
        is new. Nothing is awaited between the last look and the decision, so that an action whose
        twin ends meanwhile is not run again (EXE-21)."""
        executors, inlined = within_limits(instance, action), _inlined(request)
        while True:
            if request.skip_cache_lookup:
                await self._scheduler.wait_filed(action)
            joined = self._scheduler.join(
                action,
                priority=_priority(request),
                inlined=inlined,
                skip_cache_lookup=request.skip_cache_lookup,
            )
            if joined:
                return joined
            end_count = self._scheduler.end_count
            result, answer = await _look_up(instance, request, action)
            if result is not None:
                outcome = Outcome(result=result, cached=True)
                return self._scheduler.submit_completed(action, outcome, inlined)
            if request.skip_cache_lookup or not self._scheduler.ended_since(action, end_count):
                break
        return self._scheduler.submit(
            action,
            priority=_priority(request),
            executors=executors,
            inlined=inlined,
            skip_cache_lookup=request.skip_cache_lookup,
            cache=answer,
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


async def tell_changes(
    operation: Operation,
    send: Callable[[operations_pb2.Operation], Awaitable[None]],
) -> None:
    """Tell how `operation` stands, and each change but the last, until it has ended."""
    while operation.stage is not Stage.COMPLETED:
        version = operation.version
        await send(operation_message(operation))
        await _wait_news(operation, version)


async def _wait_news(operation: Operation, version: int) -> None:
    """Wait until there is more to tell than there was at `version`, or it is time to repeat it."""
    with trio.move_on_after(BRIEF_SECONDS):
        return await operation.wait_completed()
    with trio.move_on_after(HEARTBEAT_SECONDS):
        await operation.wait_change(version)
        with trio.move_on_after(BRIEF_SECONDS):
            await operation.wait_completed()
    return None


def _inlined(request: reapi.ExecuteRequest) -> Inlined:
    """What the request wants to have in the result (RUN-32)."""
    wanted = Inlined(
        stdout=request.inline_stdout,
        stderr=request.inline_stderr,
        files=frozenset(request.inline_output_files),
    )
    # One for all that want nothing: there may be many.
    return NOTHING_INLINED if wanted == NOTHING_INLINED else wanted


def _priority(request: reapi.ExecuteRequest) -> int:
    """Priorities outside of the advertised range count as its ends (EXE-17)."""
    return max(MIN_PRIORITY, min(MAX_PRIORITY, request.execution_policy.priority))

"""The Explain service: what became of an action, and why."""

from __future__ import annotations

import re

import trio

from stoker.action import CacheVerdict
from stoker.errors import InvalidRequest, OperationNotFound, RunNotFound, Unavailable
from stoker.frontend.explanation import (
    comparison_message,
    explain_cache,
    held_back_message,
    run_message,
    waiting_message,
)
from stoker.frontend.instances import Instance, Instances, naming_instance
from stoker.history.kept_run import KeptRun, run_on_its_way
from stoker.history.nearest import nearest_earlier
from stoker.history.records import History
from stoker.protos import explain_pb2 as explain
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import ServerCall, Service, unary_unary
from stoker.scheduler.operation import Operation
from stoker.scheduler.queue import Stage
from stoker.scheduler.scheduler import Scheduler

DEFAULT_DIFFERENCES, MAX_DIFFERENCES = 200, 1_000
MIN_DIGITS = 8
"""How many digits of an action's hash name it."""

_OTHER_RUNS = 10
_LOOKED_AT_A_TURN = 2_000
_ACTION = re.compile(rf"([0-9a-f]{{{MIN_DIGITS},128}})(/[0-9]{{1,18}})?")


class ExplainService:
    """Answers from what is on its way, and from the records. It changes nothing."""

    def __init__(self, instances: Instances, scheduler: Scheduler, history: History) -> None:
        self._instances = instances
        self._scheduler = scheduler
        self._history = history

    def service(self) -> Service:
        return Service(
            "stoker.v1.Explain",
            {
                "ExplainAction": unary_unary(
                    naming_instance(self.explain_action),
                    explain.ExplainActionRequest,
                    explain.Explanation,
                )
            },
        )

    async def explain_action(
        self, request: explain.ExplainActionRequest, call: ServerCall
    ) -> explain.Explanation:
        """Whoever may use the instance may ask for its actions, as for its blobs; operations are
        known to their own client only (SEC-06)."""
        instance = self._instances.resolve(request.instance_name)
        wanted = min(request.max_differences or DEFAULT_DIFFERENCES, MAX_DIFFERENCES)
        operation = await self._find_operation(instance, request, call.principal)
        if operation is not None and (found := self._on_its_way(operation, call.principal)):
            run, explanation = found
        elif operation is not None and operation.stage is not Stage.COMPLETED:
            return explain.Explanation(run=held_back_message(operation, call.principal))
        else:
            run = await self._find_ended(instance, request, call.principal)
            names = await self._history.operations(run, call.principal)
            failures = instance.actions.cache_failures
            message = run_message(run, operations=names, cache_failures=failures)
            explanation = explain.Explanation(run=message)
        await self._add_reasons(explanation, instance, run, wanted)
        return explanation

    # --- what is on its way

    async def _find_operation(
        self, instance: Instance, request: explain.ExplainActionRequest, principal: str
    ) -> Operation | None:
        if not request.operation_name:
            return await self._find_on_its_way(instance, _digits(request.action))
        try:
            operation = self._scheduler.find(request.operation_name, principal)
        except OperationNotFound:
            return None
        # One of another instance is as unknown as one that never was (OPS-02).
        return operation if operation.namespace == instance.name else None

    async def _find_on_its_way(self, instance: Instance, digits: str) -> Operation | None:
        found = {}
        for number, operation in enumerate([*self._scheduler.operations_after(0)]):
            if number % _LOOKED_AT_A_TURN == _LOOKED_AT_A_TURN - 1:
                await trio.lowlevel.checkpoint()
            if (
                operation.stage is not Stage.COMPLETED
                and operation.namespace == instance.name
                and operation.action_digest.hash.startswith(digits)
            ):
                found[operation.action_digest] = operation
        _check_unique(digits, [digest.hash for digest in found])
        return next(iter(found.values()), None)

    def _on_its_way(
        self, operation: Operation, principal: str
    ) -> tuple[KeptRun, explain.Explanation] | None:
        record = self._scheduler.run_of(operation)
        if record is None:
            return None
        run = run_on_its_way(record, operation.metadata)
        stages = reapi.ExecutionStage
        stage = stages.QUEUED if operation.stage is Stage.QUEUED else stages.EXECUTING
        names = [sharer.name for sharer in record.sharers if sharer.principal == principal]
        explanation = explain.Explanation(run=run_message(run, stage=stage, operations=names))
        if outlook := self._scheduler.outlook(operation):
            explanation.waiting.CopyFrom(waiting_message(outlook))
        return run, explanation

    # --- what has ended

    async def _find_ended(
        self, instance: Instance, request: explain.ExplainActionRequest, principal: str
    ) -> KeptRun:
        if name := request.operation_name:
            if run := await self._history.find_operation(instance.name, name, principal):
                return run
            raise OperationNotFound(name)
        digits = _digits(request.action)
        _check_unique(digits, await self._history.hashes(instance.name, digits))
        if runs := await self._history.find_action(instance.name, digits, 1):
            return runs[0]
        raise RunNotFound(request.action)

    async def _add_reasons(
        self, explanation: explain.Explanation, instance: Instance, run: KeptRun, wanted: int
    ) -> None:
        """Add why `run` was not cached. Without records, that is not known in full."""
        failures = instance.actions.cache_failures
        try:
            runs = await self._history.find_action(instance.name, run.digest.hash, _OTHER_RUNS + 1)
        except Unavailable as error:
            explanation.cache_explanation = f"{error}"
            return
        others = [other for other in runs if other.number != run.number][:_OTHER_RUNS]
        explanation.other_runs.extend(
            run_message(other, cache_failures=failures) for other in others
        )
        earlier = [other for other in others if not run.number or other.number < run.number]
        explanation.cache_explanation = explain_cache(run, earlier, cache_failures=failures)
        if run.facts.cache == CacheVerdict.ABSENT.value and not earlier:
            nearest = await nearest_earlier(
                self._history,
                run,
                instance.blobs,
                max_differences=wanted,
                cache_failures=failures,
            )
            if nearest is not None:
                message = comparison_message(nearest, cache_failures=failures)
                explanation.nearest_earlier.CopyFrom(message)


def _digits(action: str) -> str:
    found = _ACTION.fullmatch(action)
    if found is None:
        raise InvalidRequest(
            f"{action!r} names no action: give HASH/SIZE, or the first digits of the hash, "
            f"{MIN_DIGITS} at least, in lower case"
        )
    return found[1]


def _check_unique(digits: str, hashes: list[str]) -> None:
    if len(hashes) > 1 and digits not in hashes:
        raise InvalidRequest(
            f"several actions begin with {digits}, among them {', '.join(sorted(hashes)[:3])}"
        )

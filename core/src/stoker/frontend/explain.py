"""The Explain service: what became of an action, and why."""

from __future__ import annotations

import re

from stoker.action import CacheVerdict
from stoker.errors import InvalidRequest, OperationNotFound, RunNotFound, Unavailable
from stoker.frontend.explanation import (
    comparison_message,
    explain_cache,
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
        self, request: explain.ExplainActionRequest, _: ServerCall
    ) -> explain.Explanation:
        instance = self._instances.resolve(request.instance_name)
        wanted = min(request.max_differences or DEFAULT_DIFFERENCES, MAX_DIFFERENCES)
        if request.operation_name:
            operation = self._find_operation(instance, request.operation_name)
        else:
            operation = self._find_on_its_way(instance, _digits(request.action))
        if operation is not None and (run := self._on_its_way(operation)):
            explanation = explain.Explanation(run=run[1])
            await self._add_reasons(explanation, instance, run[0], wanted)
            if outlook := self._scheduler.outlook(operation):
                explanation.waiting.CopyFrom(waiting_message(outlook))
            return explanation
        ended = await self._find_ended(instance, request)
        message = run_message(
            ended,
            operations=await self._history.operations(ended),
            cache_failures=instance.actions.cache_failures,
        )
        explanation = explain.Explanation(run=message)
        await self._add_reasons(explanation, instance, ended, wanted)
        return explanation

    # --- what is on its way

    def _find_operation(self, instance: Instance, name: str) -> Operation | None:
        try:
            operation = self._scheduler.find(name)
        except OperationNotFound:
            return None
        # An operation of another instance is as unknown as one that never was (OPS-02).
        return operation if operation.namespace == instance.name else None

    def _find_on_its_way(self, instance: Instance, digits: str) -> Operation | None:
        found = {
            operation.action_digest: operation
            for operation in self._scheduler.operations(instance.name)
            if operation.stage is not Stage.COMPLETED
            and operation.action_digest.hash.startswith(digits)
        }
        _check_unique(digits, [digest.hash for digest in found])
        return next(iter(found.values()), None)

    def _on_its_way(self, operation: Operation) -> tuple[KeptRun, explain.Run] | None:
        record = self._scheduler.run_of(operation)
        if record is None:
            return None
        run = run_on_its_way(record, operation.metadata)
        stages = reapi.ExecutionStage
        stage = stages.QUEUED if operation.stage is Stage.QUEUED else stages.EXECUTING
        return run, run_message(run, stage=stage, operations=record.operations)

    # --- what has ended

    async def _find_ended(
        self, instance: Instance, request: explain.ExplainActionRequest
    ) -> KeptRun:
        if name := request.operation_name:
            if run := await self._history.find_operation(instance.name, name):
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

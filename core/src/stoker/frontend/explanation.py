"""What is known of a run, as messages of the Explain service."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from stoker.action import CacheVerdict
from stoker.frontend.provenance import read_provenance
from stoker.history.difference import Difference
from stoker.history.kept_run import KeptRun
from stoker.history.nearest import Comparison
from stoker.protos import explain_pb2 as explain
from stoker.protos import remote_execution_pb2 as reapi
from stoker.scheduler.operation import Operation
from stoker.scheduler.waiting import Outlook

HELD_BACK = (
    "it is kept back: a server was lost while it had this action, so that it runs when no other "
    "suspect does, or the queue was full when the server was started again"
)

MAX_VALUE = 1_000
"""How much of a value that differs is told, in characters."""


def run_message(
    run: KeptRun,
    *,
    stage: reapi.ExecutionStage.Value.ValueType = reapi.ExecutionStage.COMPLETED,
    operations: Iterable[str] = (),
    cache_failures: bool = False,
) -> explain.Run:
    """`run`, which has ended unless `stage` says otherwise."""
    facts = run.facts
    message = explain.Run(
        instance_name=run.instance,
        digest_function=run.digest.function.number,
        action_digest=run.digest.to_proto(),
        command_digest=run.action.command_digest,
        input_root_digest=run.action.input_root_digest,
        mnemonic=run.mnemonic,
        target=run.target,
        stage=stage,
        operation_names=sorted(operations),
        client=_client(run),
        platform=reapi.Platform(
            properties=[
                reapi.Platform.Property(name=name, value=value)
                for name, values in facts.platform.items()
                for value in values
            ]
        ),
        cache_verdict=facts.cache,
        cache_detail=facts.cache_detail,
        wait=facts.wait,
        executors=facts.executors,
        exit_code=facts.exit_code,
        error=f"{facts.error}: {facts.error_text}" if facts.error else "",
        message=facts.message,
        cached=run.was_cached(cache_failures=cache_failures),
        metadata=run.metadata,
        principal=facts.principal,
    )
    message.queued.FromNanoseconds(facts.queued_ns)
    if run.ended_ns:
        message.ended.FromNanoseconds(run.ended_ns)
    return message


def held_back_message(operation: Operation, principal: str) -> explain.Run:
    """An operation that is not queued yet: it was accepted, and its action may not run now.

    Its name is told to its own client only (SEC-06).
    """
    message = explain.Run(
        instance_name=operation.namespace,
        digest_function=operation.action_digest.function.number,
        action_digest=operation.action_digest.to_proto(),
        mnemonic=operation.mnemonic,
        target=operation.target,
        stage=reapi.ExecutionStage.QUEUED,
        operation_names=[operation.name] if operation.principal == principal else [],
        cache_verdict=operation.cache.verdict.value,
        cache_detail=operation.cache.detail,
        wait=HELD_BACK,
        principal=operation.principal,
    )
    message.queued.FromNanoseconds(operation.queued_nanoseconds)
    return message


def _client(run: KeptRun) -> reapi.RequestMetadata:
    facts = run.facts
    return reapi.RequestMetadata(
        tool_details=reapi.ToolDetails(tool_name=facts.tool_name, tool_version=facts.tool_version),
        action_mnemonic=run.mnemonic,
        target_id=run.target,
        tool_invocation_id=facts.tool_invocation_id,
        correlated_invocations_id=facts.correlated_invocations_id,
    )


def comparison_message(found: Comparison, *, cache_failures: bool) -> explain.Comparison:
    return explain.Comparison(
        run=run_message(found.run, cache_failures=cache_failures),
        alike=found.alike,
        differences=map(_difference, found.differences),
        gone=found.gone,
        cut_off=found.cut_off,
    )


def _difference(difference: Difference) -> explain.Difference:
    return explain.Difference(
        part=difference.part,
        change=difference.change,
        name=difference.name,
        before=_shortened(difference.before),
        after=_shortened(difference.after),
    )


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}… ({len(text)} characters)"


def waiting_message(outlook: Outlook) -> explain.Waiting:
    return explain.Waiting(
        obstacles=outlook.obstacles,
        others_queued=outlook.others_queued,
        executing=outlook.executing,
        same_invocation=outlook.same_invocation,
        kept_free=outlook.kept_free,
    )


_ASKED = {
    CacheVerdict.SKIPPED.value: "The client asked to run it whatever the action cache has.",
    CacheVerdict.NOT_CACHEABLE.value: "The action says do_not_cache: its result is never filed.",
    CacheVerdict.INCOMPLETE.value: "The action cache had its result, but not all of it: ",
    CacheVerdict.FAILURE.value: "The action cache had the result of a failure, which the instance "
    "does not serve: ",
    CacheVerdict.UNUSABLE.value: "The action cache had a result that cannot be served: ",
    CacheVerdict.UNKNOWN.value: "What the action cache said is not known.",
}


def explain_cache(run: KeptRun, earlier: Sequence[KeptRun], *, cache_failures: bool) -> str:
    """Why `run` was not answered from the action cache, or what it was answered with.

    `earlier` are runs of the same action, the newest first.
    """
    verdict = run.facts.cache
    if verdict == CacheVerdict.HIT.value:
        return _origin(run)
    if verdict == CacheVerdict.ABSENT.value:
        return _why_absent(earlier, cache_failures=cache_failures)
    return f"{_ASKED[verdict]}{run.facts.cache_detail}"


def _origin(run: KeptRun) -> str:
    written = read_provenance(reapi.ActionResult(execution_metadata=run.metadata))
    if written is None:
        return "It was answered from the action cache; who filed the result is not known."
    who = f"executor {written.executor}" if written.executor else f"a client at {written.peer}"
    tool = " ".join(filter(None, (written.tool_name, written.tool_version)))
    for_whom = f" for {tool}" if tool else ""
    invocation = f", invocation {written.tool_invocation_id}" if written.tool_invocation_id else ""
    return (
        f"It was answered from the action cache: {who} filed the result at "
        f"{_time(written.written_at.ToNanoseconds())}{for_whom}{invocation}."
    )


def _why_absent(earlier: Sequence[KeptRun], *, cache_failures: bool) -> str:
    if not earlier:
        return "No run of this very action is known from before."
    last = earlier[0]
    when = f"This very action ran before, at {_time(last.ended_ns)}"
    if last.was_cached(cache_failures=cache_failures):
        return (
            f"{when}. Its result could be filed, and is not in the action cache now: it was "
            f"evicted or purged since, or could not be written, of which the server's log tells."
        )
    facts = last.facts
    if facts.error:
        return f"{when}, and ended without a result to file: {facts.error}: {facts.error_text}."
    if facts.exit_code:
        return f"{when}, and failed with exit code {facts.exit_code}: failures are not filed here."
    return f"{when}, and its result tells of a limit there, so that it was not filed."


def _time(nanoseconds: int) -> str:
    return f"{datetime.fromtimestamp(nanoseconds / 1e9, UTC):%Y-%m-%d %H:%M:%S}Z"

"""Operations as google.longrunning messages (section 13 of the conformance list)."""

from __future__ import annotations

from google.longrunning import operations_pb2

from stoker.action import Outcome
from stoker.frontend.inlining import inline_contents
from stoker.frontend.status import to_status
from stoker.protos import remote_execution_pb2 as reapi
from stoker.scheduler.operation import Operation
from stoker.scheduler.queue import Stage
from stoker.spi import BlobStore

_STAGES = {
    Stage.QUEUED: reapi.ExecutionStage.QUEUED,
    Stage.EXECUTING: reapi.ExecutionStage.EXECUTING,
    Stage.COMPLETED: reapi.ExecutionStage.COMPLETED,
}


def operation_message(
    operation: Operation, result: reapi.ActionResult | None = None
) -> operations_pb2.Operation:
    """`operation` as it stands now, with `result` in place of its own where that is given.

    ``error`` is never set: errors travel in the response (EXE-01).
    """
    message = operations_pb2.Operation(name=operation.name)
    message.metadata.Pack(
        reapi.ExecuteOperationMetadata(
            stage=_STAGES[operation.stage],
            action_digest=operation.action_digest.to_proto(),
            digest_function=operation.action_digest.function.number,
            partial_execution_metadata=operation.metadata,
            # OPS-16
            stdout_stream_name=operation.streams.stdout if operation.streams else "",
            stderr_stream_name=operation.streams.stderr if operation.streams else "",
        )
    )
    if operation.outcome is not None:
        message.done = True
        message.response.Pack(_execute_response(operation.outcome, result))
    return message


async def whole_message(operation: Operation, blobs: BlobStore) -> operations_pb2.Operation:
    """`operation` as it stands now, with what its client wants inlined once it has ended.

    All who ask are told the same, in whichever way they ask (OPS-17).
    """
    result = operation.outcome.result if operation.outcome else None
    if result is None:
        return operation_message(operation)
    wanted = operation.inlined
    return operation_message(
        operation,
        await inline_contents(
            result,
            blobs,
            operation.action_digest.function,
            stdout=wanted.stdout,
            stderr=wanted.stderr,
            files=wanted.files,
        ),
    )


def _execute_response(outcome: Outcome, result: reapi.ActionResult | None) -> reapi.ExecuteResponse:
    return reapi.ExecuteResponse(
        result=result or outcome.result,
        cached_result=outcome.cached,
        status=to_status(outcome.error),
        message=outcome.message,
        server_logs=outcome.server_logs,
    )

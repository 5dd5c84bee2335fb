"""The one table from stoker's errors to gRPC statuses."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from stoker import errors
from stoker.digest import Digest
from stoker.rpc import RpcError, StatusCode

CODES: dict[type[errors.StokerError], StatusCode] = {
    errors.InvalidRequest: StatusCode.INVALID_ARGUMENT,
    # Not NOT_FOUND, which clients take for a cache miss and pass over in silence (GEN-18).
    errors.InstanceNotFound: StatusCode.INVALID_ARGUMENT,
    errors.ProgramNotStarted: StatusCode.INVALID_ARGUMENT,
    errors.Unsupported: StatusCode.UNIMPLEMENTED,
    errors.BlobNotFound: StatusCode.NOT_FOUND,
    errors.ResultNotFound: StatusCode.NOT_FOUND,
    errors.OperationNotFound: StatusCode.NOT_FOUND,
    errors.LogStreamNotFound: StatusCode.NOT_FOUND,
    errors.LogStreamBusy: StatusCode.ABORTED,
    errors.LogOffsetOutOfRange: StatusCode.OUT_OF_RANGE,
    errors.RunNotFound: StatusCode.NOT_FOUND,
    errors.OffsetOutOfRange: StatusCode.OUT_OF_RANGE,
    errors.InputsMissing: StatusCode.FAILED_PRECONDITION,
    errors.FailedPrecondition: StatusCode.FAILED_PRECONDITION,
    errors.PermissionDenied: StatusCode.PERMISSION_DENIED,
    errors.DataLoss: StatusCode.DATA_LOSS,
    errors.UploadInProgress: StatusCode.ABORTED,
    errors.StorageFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: StatusCode.UNAVAILABLE,
    errors.TimedOut: StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: StatusCode.CANCELLED,
    errors.InternalError: StatusCode.INTERNAL,
}


def translate(error: Exception) -> RpcError | None:
    """`error` as a status for the client, or None where it is a bug."""
    if not isinstance(error, errors.StokerError):
        return None
    return RpcError(_code(error), _message(error), _details(error))


def to_status(error: errors.StokerError | None) -> status_pb2.Status:
    """`error` as a message, for where a status travels inside of a response; OK for None."""
    if error is None:
        return status_pb2.Status()
    status = status_pb2.Status(code=_code(error), message=_message(error))
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def _code(error: errors.StokerError) -> StatusCode:
    for kind in type(error).__mro__:
        if code := CODES.get(kind):
            return code
    return StatusCode.INTERNAL


def _message(error: errors.StokerError) -> str:
    """What happened, and what it was about where a note tells (GEN-22)."""
    notes = ", ".join(getattr(error, "__notes__", ()))
    return f"{error} ({notes})" if notes else str(error)


def _details(error: errors.StokerError) -> Sequence[Message]:
    if isinstance(error, errors.InputsMissing):
        return [_missing(error.digests)]
    if isinstance(error, errors.Overloaded | errors.Draining):
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        return [error_details_pb2.RetryInfo(retry_delay=delay)]
    return []


def _missing(digests: Sequence[Digest]) -> error_details_pb2.PreconditionFailure:
    """One violation for each blob, which makes a client upload them and try again (EXE-03…07)."""
    failure = error_details_pb2.PreconditionFailure()
    for digest in digests:
        failure.violations.add(type="MISSING", subject=blob_subject(digest))
    return failure


def blob_subject(digest: Digest) -> str:
    """The name of a blob in a violation (EXE-05)."""
    return f"blobs/{digest.function.segment}{digest}"

"""Operations as rows of the journal."""

from __future__ import annotations

import time
from typing import NamedTuple

import msgspec

from stoker import errors
from stoker.action import NOTHING_INLINED, Inlined, Outcome
from stoker.database import Row, Value
from stoker.digest import DIGEST_FUNCTION_NAMES, Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.scheduler.losses import Loss
from stoker.scheduler.operation import Operation
from stoker.scheduler.queue import Stage

VERSION = 1
# By number and not by name: new rows go to the end, old ones are taken from the start.
_OPERATIONS = """
CREATE TABLE operations (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL,
    principal TEXT NOT NULL, function TEXT NOT NULL, action TEXT NOT NULL,
    queued_nanoseconds INTEGER NOT NULL, priority INTEGER NOT NULL,
    skip_cache_lookup INTEGER NOT NULL, request BLOB NOT NULL, inlined BLOB,
    ended_nanoseconds INTEGER, run BLOB, outcome BLOB
)
"""
_LOSSES = """
CREATE TABLE losses (
    key BLOB, began_nanoseconds INTEGER, lost_nanoseconds INTEGER, executor TEXT,
    with_server INTEGER, PRIMARY KEY (key, began_nanoseconds)
)
"""
SCHEMA = (_OPERATIONS, _LOSSES)
ADD = "INSERT INTO operations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
END = "UPDATE operations SET ended_nanoseconds = ?, run = ?, outcome = ? WHERE number = ?"
FORGET = "DELETE FROM operations WHERE number = ?"
FORGET_ALL = "DELETE FROM operations"
READ = "SELECT * FROM operations ORDER BY number"
ADD_LOSS = "INSERT OR IGNORE INTO losses VALUES (?, ?, ?, ?, ?)"
CLEAR_LOSSES = "DELETE FROM losses WHERE key = ?"
FORGET_LOSSES = (
    "DELETE FROM losses WHERE key IN "
    "(SELECT key FROM losses GROUP BY key HAVING max(lost_nanoseconds) < ?) AND key != ?"
)
FORGET_ALL_LOSSES = "DELETE FROM losses"
READ_LOSSES = "SELECT * FROM losses ORDER BY lost_nanoseconds"


class Request(NamedTuple):
    """What was asked for beside what the operation itself knows."""

    priority: int
    skip_cache_lookup: bool
    metadata: reapi.RequestMetadata


class Kept(NamedTuple):
    """An operation that a server before this one accepted."""

    operation: Operation
    request: Request
    ended_nanoseconds: int
    """0 where it has not ended."""


def accepted_row(operation: Operation, request: Request) -> Row:
    """What is known of an operation once it is accepted."""
    digest = operation.action_digest
    return (
        operation.number,
        operation.name,
        operation.namespace,
        operation.principal,
        digest.function.name,
        str(digest),
        operation.queued_nanoseconds,
        request.priority,
        request.skip_cache_lookup,
        request.metadata.SerializeToString(),
        None if operation.inlined == NOTHING_INLINED else _encode_inlined(operation.inlined),
    )


def ended_row(operation: Operation, nanoseconds: int) -> Row:
    """What is known of it beside that once it has ended, at this time."""
    assert operation.outcome is not None
    run = None if operation.run is None else operation.run.SerializeToString()
    return (nanoseconds, run, encode_outcome(operation.outcome))


def seconds_since(nanoseconds: int) -> float:
    """How long ago this time of day was; not less than 0, whatever became of the clock."""
    return max(0.0, (time.time_ns() - nanoseconds) / 1e9)


def kept(row: Row) -> Kept:
    """What a row tells. Raises ValueError, DecodeError or InvalidRequest for a damaged one."""
    number, name, namespace, principal, function, action, queued, priority, skip, *rest = row
    metadata, inlined, ended, run, outcome = rest
    request = Request(
        _number(priority), bool(skip), reapi.RequestMetadata.FromString(_data(metadata))
    )
    operation = Operation(
        name=str(name),
        number=_number(number),
        namespace=str(namespace),
        principal=str(principal),
        action_digest=_digest(str(function), str(action)),
        mnemonic=request.metadata.action_mnemonic,
        target=request.metadata.target_id,
        invocation=request.metadata.tool_invocation_id,
        inlined=NOTHING_INLINED if inlined is None else _decode_inlined(_data(inlined)),
        queued_nanoseconds=_number(queued),
    )
    if run is not None:
        operation.run = reapi.ExecutedActionMetadata.FromString(_data(run))
    if ended is None:
        return Kept(operation, request, 0)
    operation.outcome = decode_outcome(_data(outcome))
    operation.stage = Stage.COMPLETED
    return Kept(operation, request, _number(ended))


def _encode_inlined(inlined: Inlined) -> bytes:
    return _encoder.encode((inlined.stdout, inlined.stderr, sorted(inlined.files)))


def _decode_inlined(data: bytes) -> Inlined:
    stdout, stderr, files = msgspec.msgpack.decode(data, type=tuple[bool, bool, list[str]])
    return Inlined(stdout=stdout, stderr=stderr, files=frozenset(files))


def kept_loss(row: Row) -> tuple[bytes, Loss]:
    """The key and the loss that a row tells of. Raises ValueError where it makes no sense."""
    key, began, lost, executor, with_server = row
    loss = Loss(_number(began), _number(lost), str(executor), bool(with_server))
    return _data(key), loss


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is no integer")  # noqa: TRY004 # one kind for all damage
    return value


def _data(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"{value!r} is no blob")  # noqa: TRY004 # one kind for all damage
    return value


def _digest(function: str, text: str) -> Digest:
    content_hash, _, size = text.partition("/")
    named = DIGEST_FUNCTION_NAMES.get(function.lower())
    if named is None:
        raise ValueError(f"{function!r} is no digest function")
    return named.named(content_hash, int(size))


class _Error(msgspec.Struct, array_like=True):
    kind: str
    text: str
    notes: list[str]
    digests: list[str] = []
    function: str = ""
    retry_after_seconds: float = 0.0


class _Outcome(msgspec.Struct, array_like=True):
    result: bytes | None
    error: _Error | None
    cached: bool
    message: str
    server_logs: dict[str, bytes]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Outcome)


def encode_outcome(outcome: Outcome) -> bytes:
    """All that clients are told of `outcome`."""
    return _encoder.encode(
        _Outcome(
            None if outcome.result is None else outcome.result.SerializeToString(),
            None if outcome.error is None else _describe(outcome.error),
            outcome.cached,
            outcome.message,
            {name: log.SerializeToString() for name, log in outcome.server_logs.items()},
        )
    )


def decode_outcome(data: bytes) -> Outcome:
    """What `encode_outcome` made `data` of; errors have their kind and text, and what clients are
    told beside it. Raises ValueError for damaged data."""
    try:
        held = _decoder.decode(data)
        return Outcome(
            result=None if held.result is None else reapi.ActionResult.FromString(held.result),
            error=None if held.error is None else _made_again(held.error),
            cached=held.cached,
            message=held.message,
            server_logs={n: reapi.LogFile.FromString(log) for n, log in held.server_logs.items()},
        )
    except Exception as error:
        raise ValueError(f"an outcome cannot be read: {error}") from error


def _describe(error: errors.StokerError) -> _Error:
    # A plugin's own kind is told as the one of stoker's that it is.
    kind = next(k for k in type(error).__mro__ if vars(errors).get(k.__name__) is k)
    described = _Error(kind.__name__, str(error), [*getattr(error, "__notes__", ())])
    if isinstance(error, errors.InputsMissing) and error.digests:
        described.digests = [str(digest) for digest in error.digests]
        described.function = error.digests[0].function.name
    if isinstance(error, errors.Overloaded):
        described.retry_after_seconds = error.retry_after_seconds
    return described


def _made_again(held: _Error) -> errors.StokerError:
    kind: type[errors.StokerError] = getattr(errors, held.kind)
    error = kind.__new__(kind)
    # Not by its constructor, which makes the text of facts that are told no more.
    error.args = (held.text,)
    if isinstance(error, errors.InputsMissing):
        error.digests = tuple(_digest(held.function, digest) for digest in held.digests)
    if isinstance(error, errors.Overloaded):
        error.retry_after_seconds = held.retry_after_seconds
    for note in held.notes:
        error.add_note(note)
    return error

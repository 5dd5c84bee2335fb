"""One run of an action as the records keep it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from stoker.action import Platform, RunRecord
from stoker.database import Row, Value
from stoker.digest import DIGEST_FUNCTIONS, Digest, DigestFunction
from stoker.errors import StokerError
from stoker.protos import remote_execution_pb2 as reapi

MAX_TEXT = 4096
"""How long a message is kept at most, in characters: the end of it goes."""

COLUMNS = (
    "id, instance, digest_function, hash, size_bytes, mnemonic, target, output, program, ended_ns,"
    " action, metadata, facts"
)
"""What `KeptRun.from_row` takes, and `row_of` gives."""


_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]


class Facts(msgspec.Struct, omit_defaults=True, frozen=True):
    """What nobody searches for."""

    cache: str = ""
    cache_detail: str = ""
    wait: str = ""
    executors: tuple[str, ...] = ()
    queued_ns: int = 0
    platform: dict[str, tuple[str, ...]] = {}
    principal: str = ""
    tool_name: str = ""
    tool_version: str = ""
    tool_invocation_id: str = ""
    correlated_invocations_id: str = ""
    exit_code: _Int32 | None = None
    """None where it ended without a result."""
    error: str = ""
    """The kind of error that it ended with, as TimedOut."""
    error_text: str = ""
    message: str = ""
    reusable: bool = True
    """Whether the result tells of the action alone."""


class KeptRun(msgspec.Struct, frozen=True):
    """A run, as it was recorded or as it stands now."""

    number: int
    """Later runs have larger ones. 0 for one that has not ended."""
    instance: str
    digest: Digest
    mnemonic: str
    target: str
    output: str
    """The first output that it asks for."""
    program: str
    ended_ns: int
    """Since 1970; 0 while it goes on."""
    action: reapi.Action
    metadata: reapi.ExecutedActionMetadata
    facts: Facts

    @property
    def command(self) -> Digest:
        """The digest of the Command."""
        return self.digest.function.parse(self.action.command_digest)

    @property
    def input_root(self) -> Digest:
        """The digest of the input root."""
        return self.digest.function.parse(self.action.input_root_digest)

    def was_cached(self, *, cache_failures: bool = False) -> bool:
        """Whether its result was filed, or came from the action cache itself."""
        facts = self.facts
        return (
            facts.exit_code is not None
            and (facts.exit_code == 0 or cache_failures)
            and not facts.error
            and facts.reusable
            and not self.action.do_not_cache
        )

    @classmethod
    def from_row(cls, row: Row) -> KeptRun:
        """The run in a row of `COLUMNS`. Raises ValueError, DecodeError or InvalidRequest for a
        damaged one."""
        number, instance, function, hash_, size_bytes, *texts, ended_ns, action, metadata, facts = (
            row
        )
        return msgspec.convert(
            {
                "number": number,
                "instance": instance,
                "digest": _function(function).named(str(hash_), int(size_bytes or 0)),
                **dict(zip(("mnemonic", "target", "output", "program"), texts, strict=True)),
                "ended_ns": ended_ns,
                "action": reapi.Action.FromString(_bytes(action)),
                "metadata": reapi.ExecutedActionMetadata.FromString(_bytes(metadata)),
                "facts": _DECODER.decode(_bytes(facts)),
            },
            cls,
        )


def _function(number: Value) -> DigestFunction:
    found = _FUNCTIONS.get(number)
    if found is None:
        raise ValueError(f"{number!r} is no digest function")
    return found


_FUNCTIONS: dict[Value, DigestFunction] = {f.number: f for f in DIGEST_FUNCTIONS}
_ENCODER, _DECODER = msgspec.json.Encoder(), msgspec.json.Decoder(Facts)


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"{value!r} is no blob")  # noqa: TRY004 # one kind for all damage
    return value


def row_of(record: RunRecord, number: int) -> Row:
    """`record` as a row of `COLUMNS`."""
    action = record.action
    result = record.outcome.result if record.outcome else None
    metadata = result.execution_metadata.SerializeToString() if result else b""
    return (
        number,
        action.namespace,
        action.digest.function.number,
        action.digest.hash,
        action.digest.size_bytes,
        action.mnemonic,
        action.target,
        next(iter(action.output_paths), ""),
        action.command.arguments[0],
        record.ended_ns,
        action.action.SerializeToString(),
        metadata,
        _ENCODER.encode(_facts(record)),
    )


def run_on_its_way(record: RunRecord, metadata: reapi.ExecutedActionMetadata) -> KeptRun:
    """`record`, of a run that has not ended, and what is known of it so far."""
    run = KeptRun.from_row(row_of(record, 0))
    run.metadata.CopyFrom(metadata)
    return run


def _facts(record: RunRecord) -> Facts:
    client, outcome = record.action.metadata, record.outcome
    result = outcome.result if outcome else None
    error = outcome.error if outcome else None
    return Facts(
        cache=record.cache.verdict.value,
        cache_detail=record.cache.detail[:MAX_TEXT],
        wait=record.wait[:MAX_TEXT],
        executors=record.executors,
        queued_ns=record.queued_ns,
        platform=_plain(record.action.platform),
        principal=record.action.principal,
        tool_name=client.tool_details.tool_name,
        tool_version=client.tool_details.tool_version,
        tool_invocation_id=client.tool_invocation_id,
        correlated_invocations_id=client.correlated_invocations_id,
        exit_code=result.exit_code if result is not None else None,
        error=_kind_of(error),
        error_text=str(error or "")[:MAX_TEXT],
        message=outcome.message[:MAX_TEXT] if outcome else "",
        reusable=outcome.reusable if outcome else True,
    )


def _kind_of(error: StokerError | None) -> str:
    return type(error).__name__ if error is not None else ""


def _plain(platform: Platform) -> dict[str, tuple[str, ...]]:
    return dict(platform)

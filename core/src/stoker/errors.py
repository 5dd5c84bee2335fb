"""Every error that stoker's rooms raise on purpose. Each carries the facts that name the culprit.

``str(error)`` is one sentence for the person who reads it. ``frontend/status.py`` is the one
table from these to gRPC statuses. Any other exception is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from stoker.digest import Digest


class StokerError(Exception):
    """Root of stoker's own errors."""

    def again(self) -> Self:
        """The same error, for another task that waited for the same thing.

        What is noted on one is not on the other: a note may name what only one client knows of.
        """
        twin = type(self).__new__(type(self), *self.args)
        twin.__dict__ |= {name: fact for name, fact in vars(self).items() if name != "__notes__"}
        twin.__cause__ = self.__cause__
        return twin


def sole_cause(error: BaseException) -> BaseException:
    """The exception inside of groups of one, as nurseries make them; otherwise `error` itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


class ConfigurationError(StokerError):
    """The configuration cannot be used. `problems` holds one sentence for each thing wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class InvalidRequest(StokerError):
    """What the client sent can never be served as it stands; trying again is of no use."""


class Unsupported(StokerError):
    """A request for something that REAPI knows and this server does not offer."""


class InstanceNotFound(StokerError):
    """No instance of this name is configured."""

    def __init__(self, instance_name: str) -> None:
        self.instance_name = instance_name
        super().__init__(f"there is no instance named {instance_name!r} on this server")


class BlobNotFound(StokerError):
    """The store does not hold this blob."""

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        super().__init__(f"blob {digest} is not in the store")


class ResultNotFound(StokerError):
    """The action cache has no result to serve for this action."""

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        super().__init__(f"no cached result for action {digest}")


class OperationNotFound(StokerError):
    """No operation of this name is known; it may have been forgotten after it ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"there is no operation named {name!r}; it may have expired")


class LogStreamNotFound(StokerError):
    """No log stream of this name is known, or it may not be told."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no log stream {name!r}; it may have expired")


class LogStreamBusy(StokerError):
    """Somebody else is writing to the same log stream at this moment."""

    def __init__(self, name: str) -> None:
        super().__init__(f"log stream {name!r} is being written by another call")


class LogOffsetOutOfRange(StokerError):
    """A read begins outside of its log stream."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"offset {offset} is outside of the log stream")


class RunNotFound(StokerError):
    """No run of this action is known."""

    def __init__(self, action: str) -> None:
        super().__init__(
            f"no run of action {action} is known: none has been recorded, or none is kept so long"
        )


class OffsetOutOfRange(StokerError):
    """A read begins outside its blob."""

    def __init__(self, digest: Digest, offset: int) -> None:
        self.digest = digest
        self.offset = offset
        super().__init__(f"offset {offset} is outside of blob {digest}")


class DigestMismatch(InvalidRequest):
    """The bytes that were written are not the blob that was announced."""

    def __init__(self, expected: Digest, actual: str) -> None:
        self.expected = expected
        super().__init__(f"blob {expected} was announced, but {actual}")


class InputsMissing(StokerError):
    """An action cannot run because these blobs, all that are missing, are not in the CAS."""

    def __init__(self, digests: Sequence[Digest]) -> None:
        self.digests = tuple(dict.fromkeys(digests))
        named = ", ".join(str(digest) for digest in self.digests[:3])
        rest = f" and {len(self.digests) - 3} more" if len(self.digests) > 3 else ""
        super().__init__(
            f"{len(self.digests)} blobs that the action needs are missing: {named}{rest}"
        )


class FailedPrecondition(StokerError):
    """The request is well formed, but the state of the server or of the action forbids it."""


class Quarantined(FailedPrecondition):
    """The action is kept out for a while: those that ran it were lost too often.

    `history` holds one sentence for each time.
    """

    def __init__(self, action: str, until: str, history: Sequence[str]) -> None:
        self.history = tuple(history)
        super().__init__(
            f"action {action} is refused until {until}, as it may be what ends those that run it: "
            f"{'; '.join(history)}"
        )


class PermissionDenied(StokerError):
    """Whoever asks may not do this here."""


class DataLoss(StokerError):
    """A stored blob turned out to be damaged."""

    def __init__(self, digest: Digest, reason: str) -> None:
        self.digest = digest
        super().__init__(f"stored blob {digest} is damaged: {reason}")


class UploadInProgress(StokerError):
    """Somebody else is writing the same upload at this moment."""

    def __init__(self, digest: Digest, upload: str) -> None:
        self.digest = digest
        self.upload = upload
        super().__init__(f"upload {upload!r} of blob {digest} is being written by another call")


class StorageFull(StokerError):
    """There is no room for this blob, on the disk or within the configured bound."""


class Unavailable(StokerError):
    """Something that stoker depends on does not answer now; the same request may succeed later."""


class Draining(Unavailable):
    """The server takes nothing new: it was told to stop. Another, or the next, may take it."""

    def __init__(self, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__("the server is about to stop and takes no new work")

    def again(self) -> Self:
        return type(self)(self.retry_after_seconds)


class Overloaded(StokerError):
    """A limit on queued work is reached. `retry_after_seconds` is a hint to the client."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message)


class TimedOut(StokerError):
    """The action ran longer than it may."""

    def __init__(self, limit_seconds: float, executor: str) -> None:
        self.limit_seconds = limit_seconds
        super().__init__(
            f"the action was stopped after its timeout of {limit_seconds:g} s "
            f"on executor {executor}"
        )


class Cancelled(StokerError):
    """The operation was cancelled before it ended."""


class InternalError(StokerError):
    """A bug. The message says where to look and nothing else: the log has the rest."""


class ProgramNotStarted(StokerError):
    """The command names a program that cannot be started, whoever tries.

    `exit_code` is the one that a shell would give: 127 when it is absent, 126 otherwise.
    """

    def __init__(self, program: str, reason: str, *, exit_code: int) -> None:
        self.program = program
        self.exit_code = exit_code
        super().__init__(f"{program}: {reason}")


class MalformedResponse(StokerError):
    """A worker wrote to its stdout what is not a response. `excerpt` holds its first bytes."""

    def __init__(self, reason: str, excerpt: bytes) -> None:
        self.excerpt = excerpt
        super().__init__(f"{reason}: {excerpt[:200]!r}")

"""``[scheduler]``: what may be set of the queue, and what is kept of operations that have ended."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec

from stoker.scheduler.admission import Limit, Limits
from stoker.scheduler.losses import Bounds
from stoker.scheduler.matching import Matching, PropertyKind
from stoker.scheduler.queue import Policy
from stoker.spi import Settings

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Most = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class SchedulerSettings(Settings, frozen=True):
    """``[scheduler]``."""

    max_queued: _Count = 100_000
    """Actions that may wait; more are refused with RESOURCE_EXHAUSTED (EXE-25)."""
    max_queued_per_principal: _Most | None = None
    """How many of them may be one client's. Unset, here and below: half of them where the client
    is known by a certificate, so that none can shut the others out, and otherwise all."""
    max_in_flight: _Most = 200_000
    """Operations that may not have ended, those included that share another one's run."""
    max_in_flight_per_principal: _Most | None = None
    """How many of them may be one client's."""
    max_streams: _Most = 50_000
    """Calls that may wait for operations at once."""
    max_streams_per_principal: _Most | None = None
    """How many of them may be one client's."""
    ageing_seconds: _Seconds = 600.0
    """After this time an action's turn comes by waiting: of four actions that begin where it
    could, one is the one that waits longest, whatever its priority and whosever it is (SCH-02)."""
    high_priority_mnemonics: tuple[str, ...] = ()
    """Actions with these mnemonics go before others of their instance of the same priority."""
    properties: dict[str, PropertyKind] = msgspec.field(default_factory=dict)
    """``[scheduler.properties]``: how a platform property is held against what executors declare,
    by its name; see `PropertyKind`. Those that are not named are ``one of``, but for what asks for
    processors, memory, a worker or a container."""
    wait_for_executor_seconds: _Seconds = 300.0
    """How long an action waits while none of the executors that could run it is there: each is
    drained. Then it ends with FAILED_PRECONDITION (EXE-14)."""
    abandoned_after_seconds: _Seconds = 0.5
    """An operation that nobody waits for is cancelled after this time (OPS-08). Long enough for a
    client whose connection broke to come back by WaitExecution, short enough to obey an
    interrupted build; gRPC does not tell the two apart."""
    retention_seconds: _Seconds = 900.0
    """How long an operation that has ended can still be asked for (OPS-13)."""
    max_retained_bytes: _Count = 64 * 1024 * 1024
    """What those may weigh together; the oldest go first."""
    journal: bool = True
    """Whether operations outlive the server, in a file below ``state_directory`` (SCH-07)."""
    journal_batch_seconds: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.02
    """What happens within this time is written to the journal together. More of it costs less; a
    client that waits for longer than 25 ms is told the name of its operation once it is written."""
    reconnect_seconds: _Seconds = 60.0
    """How long an operation that outlived the server waits for a client that asks for it again,
    before it counts as one that nobody waits for."""
    max_attempts: Annotated[int, msgspec.Meta(ge=1)] = 3
    """How often an action is handed out to executors that are lost while they have it, before its
    client is told so and it is kept out (OPS-14, SCH-10)."""
    max_server_losses: Annotated[int, msgspec.Meta(ge=1)] = 10
    """How often an action may run while the whole server is killed, before it is kept out. More
    than `max_attempts`, as everything that ran beside the culprit was lost as well."""
    quarantine_seconds: _Seconds = 3600.0
    """How long such an action is refused, counted from its last loss; then its losses are
    forgotten (SCH-10)."""

    @property
    def matching(self) -> Matching:
        """How actions and executors are matched."""
        return Matching(self.properties)

    @property
    def bounds(self) -> Bounds:
        """How often an action may be lost."""
        return Bounds(self.max_attempts, self.max_server_losses, self.quarantine_seconds)

    @property
    def policy(self) -> Policy:
        """What the queue goes by."""
        return Policy(self.ageing_seconds, frozenset(self.high_priority_mnemonics), self.matching)

    def limits(self, now: float) -> Limits:
        """What is taken in."""
        queued, in_flight = self.max_queued_per_principal, self.max_in_flight_per_principal
        streams = self.max_streams_per_principal
        return Limits(
            _limit("actions are queued", "max_queued", self.max_queued, queued, now),
            _limit("operations are in flight", "max_in_flight", self.max_in_flight, in_flight, now),
            _limit("calls wait for operations", "max_streams", self.max_streams, streams, now),
        )


def _limit(what: str, setting: str, total: int, each: int | None, now: float) -> Limit:
    def of_one(principal: str) -> int:
        if each is not None:
            return each
        # Nobody in particular is everybody: the limit on all is the only one.
        return max(1, total // 2) if principal else sys.maxsize

    return Limit(what, setting, total, of_one, now)

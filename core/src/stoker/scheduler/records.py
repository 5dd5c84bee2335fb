"""The operations that can be asked for: all in flight, and for a while those that have ended."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import attrgetter
from sys import intern
from typing import NamedTuple

from stoker.action import NOTHING_INLINED, Inlined, LoadedAction, Outcome
from stoker.errors import InputsMissing, OperationNotFound
from stoker.scheduler.operation import Operation, operation_name

_OPERATION_BYTES, _DIGEST_BYTES = 2048, 256
"""About what an operation weighs beside its outcome, and a digest that an error tells of."""


class _Ended(NamedTuple):
    time: float
    weight: int


class Records:
    """Operations by name. Those that have ended stay for a while, within a bound on their weight.

    Times are in seconds of a clock that never goes back.
    """

    def __init__(
        self,
        *,
        retention_seconds: float,
        max_retained_bytes: int,
        forgotten: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`forgotten` is called with the name of each operation that is not known any more."""
        self._forgotten = forgotten
        self._retention_seconds = retention_seconds
        self._max_retained_bytes = max_retained_bytes
        self._operations: dict[str, Operation] = {}
        self._ended: OrderedDict[str, _Ended] = OrderedDict()
        self._retained_bytes = 0
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._operations)

    def add(self, action: LoadedAction, inlined: Inlined = NOTHING_INLINED) -> Operation:
        """A new operation for `action`."""
        # Also greater than those of a server that has had this one's operations before.
        self._last_number = max(self._last_number + 1, time.time_ns())
        operation = Operation(
            name=operation_name(action.namespace),
            number=self._last_number,
            namespace=action.namespace,
            principal=intern(action.principal),
            action_digest=action.digest,
            mnemonic=intern(action.mnemonic),
            target=intern(action.target),
            invocation=intern(action.metadata.tool_invocation_id),
            inlined=inlined,
        )
        self._operations[operation.name] = operation
        return operation

    def restore(self, operation: Operation) -> None:
        """Know an operation of a server before this one, of a greater number than all so far."""
        self._last_number = operation.number
        self._operations[operation.name] = operation

    def find(self, name: str, principal: str) -> Operation:
        """The operation of this name, if it is this client's.

        Raises OperationNotFound; of other clients' it does not tell that they are there (SEC-06).
        """
        operation = self._operations.get(name)
        if operation is None or operation.principal != principal:
            raise OperationNotFound(name)
        return operation

    def after(self, number: int) -> Sequence[Operation]:
        """All operations that came after that with `number`, oldest first."""
        operations = [*self._operations.values()]
        return operations[bisect_right(operations, number, key=attrgetter("number")) :]

    def retain(self, operation: Operation, now: float) -> None:
        """`operation` has ended: it is forgotten after a while."""
        if operation.name not in self._operations:
            return
        outcome = operation.outcome
        assert outcome is not None, "it has ended"
        weight = _weight(outcome)
        self._ended[operation.name] = _Ended(now, weight)
        self._retained_bytes += weight

    def forget(self, operation: Operation) -> None:
        """`operation` cannot be asked for any more. Whoever waits for it goes on doing so."""
        if self._operations.pop(operation.name, None):
            self._forgotten(operation.name)
        if ended := self._ended.pop(operation.name, None):
            self._retained_bytes -= ended.weight

    def drop_expired(self, now: float) -> None:
        """Forget what ended too long ago, or is too much (OPS-13)."""
        oldest = now - self._retention_seconds
        while self._ended:
            name, ended = next(iter(self._ended.items()))
            if ended.time >= oldest and self._retained_bytes <= self._max_retained_bytes:
                break
            self.forget(self._operations[name])


def _weight(outcome: Outcome) -> int:
    """About how many bytes of memory an operation takes that ended so."""
    weight = _OPERATION_BYTES + len(outcome.message)
    if outcome.result is not None:
        weight += outcome.result.ByteSize()
    if outcome.error is not None:
        weight += len(str(outcome.error))
    if isinstance(outcome.error, InputsMissing):
        weight += _DIGEST_BYTES * len(outcome.error.digests)
    return weight

"""The two directions of a stream of messages, bounded each.

gRPC allows one receive and one send outstanding a call. The thread that reports one done starts
the next at once, up to the bounds below, so that a stream does not pay a wake-up of trio for
every message; beyond them it stops, and HTTP/2 flow control holds the other side back.
"""

import collections
import threading

import trio

from stoker.rpc.completion_queue import (
    Action,
    BatchEvent,
    Operation,
    StartBatch,
    receive_message,
    send_message,
)

READ_AHEAD_MESSAGES = 8
WRITE_BEHIND_MESSAGES = 4
QUEUED_BYTES = 4 * 1024 * 1024
"""Above this no further message is queued in either direction, whatever their number."""

_STEPS_WITHOUT_REST = 16


class _Direction:
    """A queue of messages between the poll thread and one task that may sleep for it."""

    __slots__ = ("_active", "_lock", "_queue", "_queued_bytes", "_sleeper", "_start", "_steps")

    def __init__(self, start: StartBatch) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._queue: collections.deque[bytes] = collections.deque()
        self._queued_bytes = 0
        self._active = False
        self._sleeper: trio.lowlevel.Task | None = None
        self._steps = 0

    def _push(self, message: bytes) -> None:
        self._queue.append(message)
        self._queued_bytes += len(message)

    def _pop(self) -> bytes:
        message = self._queue.popleft()
        self._queued_bytes -= len(message)
        return message

    def _wake(self) -> None:
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None:
            trio.lowlevel.reschedule(sleeper)

    async def _rest(self) -> None:
        """Take part in trio's scheduling, though not at every message: that would cost more
        than small messages do."""
        self._steps += 1
        if self._steps % _STEPS_WITHOUT_REST:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()

    def _expect_wake(self) -> None:
        """Name this task as the one to wake. With the lock held, `_sleep` follows without it."""
        if self._sleeper is not None:
            raise trio.BusyResourceError("another task is using this direction of the stream")
        self._sleeper = trio.lowlevel.current_task()

    async def _sleep(self) -> None:
        await trio.lowlevel.wait_task_rescheduled(self._forget_sleeper)

    def _forget_sleeper(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._sleeper = None
        return trio.lowlevel.Abort.SUCCEEDED


class Incoming(_Direction):
    """The messages that come in, read ahead from the first `receive` on, or sooner."""

    __slots__ = ("_ended",)

    def __init__(self, start: StartBatch) -> None:
        super().__init__(start)
        self._ended = False

    async def receive(self) -> bytes | None:
        """Return the next message, None at the end of the stream.

        For one task at a time. A cancelled call of it loses no message.
        """
        await self._rest()
        while True:
            with self._lock:
                if self._queue:
                    return self._take()
                if self._ended:
                    return None
                if not self._active:
                    self._read()
                    continue
                self._expect_wake()
            await self._sleep()

    def read_ahead(self) -> None:
        """Begin to read before the first `receive`. Only once, and before it."""
        with self._lock:
            self._read()

    def stop(self) -> None:
        """Read no further and drop what was read ahead."""
        with self._lock:
            self._ended = True
            self._queue.clear()
            self._queued_bytes = 0

    def _take(self) -> bytes:
        message = self._pop()
        # Read on only when half of the room is free, so that reads come in runs.
        if not self._active and not self._ended and self._has_room(2):
            self._read()
        return message

    def _has_room(self, divisor: int) -> bool:
        return (
            len(self._queue) < READ_AHEAD_MESSAGES // divisor
            and self._queued_bytes < QUEUED_BYTES // divisor
        )

    def _read(self) -> None:
        self._active = self._start((receive_message(),), self._on_message)
        self._ended = not self._active

    def _on_message(self, event: BatchEvent) -> Action | None:
        message = event.batch_operations[0].message()
        with self._lock:
            self._active = False
            if message is None:
                self._ended = True
            elif not self._ended:
                self._push(message)
                if self._has_room(1):
                    self._read()
            return self._wake if self._sleeper is not None else None


class Outgoing(_Direction):
    """The messages that go out, preceded by the initial metadata and followed by a last batch."""

    __slots__ = ("_broken", "_first", "_last")

    def __init__(self, start: StartBatch) -> None:
        super().__init__(start)
        self._first: tuple[Operation, ...] | None = ()
        self._last: tuple[Operation, ...] = ()
        self._broken = False

    def precede(self, operations: tuple[Operation, ...]) -> None:
        """Send `operations` in one batch with the first message, which must not be out yet."""
        if self._first is None:
            raise RuntimeError("the first message of the stream is out already")
        self._first = operations

    def take_first(self) -> tuple[Operation, ...]:
        """Return what was to precede the first message; it precedes none from here on."""
        first, self._first = self._first, None
        return first or ()

    async def send(self, message: bytes) -> bool:
        """Send `message`, or queue it when there is room; wait as long as there is none.

        Returns False when the call is over and the message will not arrive; True promises
        nothing, as the call may break later. For one task at a time. A cancelled call of it
        has sent nothing.
        """
        await self._rest()
        while True:
            with self._lock:
                if self._broken:
                    return False
                if not self._active:
                    self._write(message)
                    return not self._broken
                if self._has_room(1):
                    self._push(message)
                    return True
                self._expect_wake()
            await self._sleep()

    def end_with(self, *operations: Operation) -> None:
        """Start `operations`, in one batch, once all messages are out, without waiting for that."""
        with self._lock:
            self._last = operations
            if not self._active:
                self._end()

    def _end(self) -> None:
        last, self._last = self._last, ()
        if last and not self._broken:
            self._start((*self.take_first(), *last), None)

    def break_off(self) -> None:
        """Drop what is queued and let a waiting sender know. Only on trio's thread."""
        with self._lock:
            self._break()
        self._wake()

    def _break(self) -> None:
        self._broken = True
        self._last = ()
        self._queue.clear()
        self._queued_bytes = 0

    def _has_room(self, divisor: int) -> bool:
        return (
            len(self._queue) < WRITE_BEHIND_MESSAGES // divisor
            and self._queued_bytes < QUEUED_BYTES // divisor
        )

    def _write(self, message: bytes) -> None:
        self._active = self._start((*self.take_first(), send_message(message)), self._on_written)
        if not self._active:
            self._break()

    def _on_written(self, event: BatchEvent) -> Action | None:
        with self._lock:
            self._active = False
            if not event.success:
                self._break()
            elif self._queue and not self._broken:
                self._write(self._pop())
            if not self._active:
                self._end()
            wake = self._sleeper is not None and (self._broken or self._has_room(2))
            return self._wake if wake else None

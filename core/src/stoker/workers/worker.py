"""One persistent worker: its folder, its process, and its one request at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import structlog
import trio

from stoker.errors import StokerError
from stoker.protos.worker_protocol_pb2 import WorkRequest, WorkResponse
from stoker.spi import ExecutionStrategy, Process, ProcessSpec, WorkerProtocol
from stoker.workers.conversation import STOPPED, Conversation, ConversationOver, Fault
from stoker.workers.failure import WorkerFailed, read_log_tail
from stoker.workers.key import WorkerKey

RootT = TypeVar("RootT")

_log = structlog.get_logger(__name__)

MAX_LOG_BYTES = 64 * 2**20
"""How much a worker may write to stderr in its life before it is ended. It is looked at once in
`LOG_CHECK_SECONDS`, so that the file may grow somewhat larger."""

LOG_CHECK_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMachinery:
    """What all workers of a pool are made with."""

    strategy: ExecutionStrategy
    max_response_bytes: int
    shutdown_grace_seconds: float
    max_log_bytes: int = MAX_LOG_BYTES


class Worker(Generic[RootT]):
    """A worker that was leased. One task uses it at a time, and only while the lease lasts."""

    def __init__(
        self,
        *,
        name: str,
        key: WorkerKey,
        root: RootT,
        spec: ProcessSpec,
        protocol: WorkerProtocol,
        machinery: WorkerMachinery,
    ) -> None:
        self.name = name
        """Such as ``worker-3-Javac``; unique within the pool."""
        self.key = key
        self.root = root
        """What the pool's `open_root` gave for `folder`."""
        self.folder = spec.root
        """The input root of all its requests; while the process lives its inode stays."""
        self.log = spec.stderr
        """What the process writes to stderr."""
        self.served = 0
        """How many requests it has answered."""
        self.fresh = True
        """Whether this is its first lease."""
        self._spec = spec
        self._protocol = protocol
        self._machinery = machinery
        self._wanted = trio.Event()
        self._settled = trio.Event()  # whether it could be started is known
        self._start_error: Exception | None = None
        self._conversation: Conversation | None = None
        self._process_name = "no process"
        # Shielded: it is ended by its pool, which knows when to be polite.
        self._life = trio.CancelScope(shield=True)
        self._service = trio.CancelScope()

    @property
    def usable(self) -> bool:
        """Whether its process lives and can serve another request."""
        return (
            self._conversation is not None
            and self._conversation.fault is None
            and not self._service.cancel_called
            and not self._life.cancel_called
        )

    async def start(self) -> None:
        """Start the process, unless it is running.

        Call it once the root is laid out, as the program may be an input. Raises what the
        strategy raises, ProgramNotStarted among it, and WorkerFailed if the
        process has ended since. After cancellation the worker is of no more use.
        """
        self._wanted.set()
        try:
            await self._settled.wait()
        finally:
            if not self._settled.is_set():
                self.kill()
        if self._start_error is not None:
            raise self._start_error
        if not self.usable:
            fault = self._conversation.fault if self._conversation is not None else None
            raise self._failed(fault or STOPPED, answered=False)

    async def perform(self, request: WorkRequest) -> WorkResponse:
        """The response to `request`, starting the process first where that is still to be done.

        Raises WorkerFailed for everything that is no answer to this request (PWK-06, PWK-09,
        PWK-10), and what `start` raises. After any exception, cancellation included, the worker
        is of no more use. There is no deadline but the caller's.
        """
        await self.start()
        assert self._conversation is not None, "it has started"
        try:
            response = await self._conversation.ask(request)
        except ConversationOver as error:
            raise self._failed(error.fault, answered=error.answered) from None
        self.served += 1
        return response

    def _failed(self, fault: Fault, *, answered: bool) -> WorkerFailed:
        return WorkerFailed(
            f"{self.name} ({self._process_name})",
            fault.reason,
            answered=answered,
            excerpt=fault.excerpt,
            exit=fault.exit,
            log_tail=read_log_tail(self.log),
        )

    # --- for the pool ---------------------------------------------------------------------------

    async def live(self, on_leaving: Callable[[], None]) -> None:
        """Hold the process, from when it is wanted until nothing is left of it.

        It ends by `retire`, `kill`, or its own fault, but not by cancellation. `on_leaving` is
        called when it begins to end by itself. Errors are logged, or raised by `start`.
        """
        try:
            with self._life:
                await self._wanted.wait()
                async with self._machinery.strategy.start(self._spec) as process:
                    await self._serve(process, on_leaving)
        except Exception as error:  # noqa: BLE001  # one worker's plugin must not end the pool
            self._note(error)
        finally:
            self._settled.set()

    def rest(self, seconds: float) -> None:
        """Retire unless there is something to do within `seconds`."""
        self._service.deadline = trio.current_time() + seconds

    def resume(self) -> None:
        """There is something to do."""
        self._service.deadline = math.inf

    def retire(self) -> None:
        """End the process politely, without waiting: close its stdin, and be patient."""
        if self._conversation is None:
            self._life.cancel()
        self._service.cancel()

    def kill(self) -> None:
        """End the process at once, without waiting for that."""
        self._life.cancel()

    async def _serve(self, process: Process, on_leaving: Callable[[], None]) -> None:
        conversation = Conversation(process, self._protocol, self._machinery.max_response_bytes)
        self._conversation, self._process_name = conversation, process.name
        self._settled.set()
        with self._service:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_log, conversation)
                await conversation.listen()
                nursery.cancel_scope.cancel()
        on_leaving()
        if self._service.cancelled_caught:
            await self._part(process)

    async def _watch_log(self, conversation: Conversation) -> None:
        """Nobody reads the log before the worker fails, and it would fill the disk."""
        while _size_bytes(self.log) <= self._machinery.max_log_bytes:  # noqa: ASYNC110 -- files
            await trio.sleep(LOG_CHECK_SECONDS)  # tell nobody that they grow
        conversation.end(
            Fault(f"has written more than {self._machinery.max_log_bytes} bytes to its stderr")
        )

    async def _part(self, process: Process) -> None:
        """End of stdin, SIGTERM, and SIGKILL from the strategy, each after some patience."""
        assert process.stdin is not None, "a worker is started with pipes"
        await process.stdin.aclose()
        with trio.move_on_after(self._machinery.shutdown_grace_seconds):
            await process.wait()
            return
        process.terminate()
        with trio.move_on_after(self._machinery.shutdown_grace_seconds):
            await process.wait()

    def _note(self, error: Exception) -> None:
        if not self._settled.is_set():
            self._start_error = error
        elif isinstance(error, StokerError):
            _log.warning("worker not ended cleanly", worker=self.name, reason=str(error))
        else:
            _log.error("worker ended by a bug", worker=self.name, exc_info=error)


def _size_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0  # the process has been there, and may do to it what it likes

"""One persistent worker: its folder, its process, its log, and its requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
import trio

from stoker.errors import StokerError
from stoker.protos.worker_protocol_pb2 import WorkRequest
from stoker.spi import ExecutionStrategy, Process, ProcessSpec, WorkerProtocol
from stoker.workers.conversation import STOPPED, Answer, Conversation, ConversationOver
from stoker.workers.exchanges import Exchanges
from stoker.workers.failure import Fault, FaultKind, WorkerFailed
from stoker.workers.key import Mode
from stoker.workers.log import WorkerLog
from stoker.workers.plan import WorkerPlan

FolderT = TypeVar("FolderT")

_log = structlog.get_logger(__name__)

NOT_STARTED = "no process"

_WISHES = {FaultKind.STOPPED, FaultKind.ABANDONED}
_BY_CANCELLATION = {FaultKind.ABANDONED, FaultKind.UNRECOVERED, FaultKind.AMBIGUOUS}

# What a tool may do that is spoken to in a protocol that it does not know.
_MISUNDERSTANDINGS = {FaultKind.GARBAGE, FaultKind.CLOSED_STDIN, FaultKind.CLOSED_STDOUT}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerMachinery:
    """What all workers of a pool are made with."""

    strategy: ExecutionStrategy
    max_response_bytes: int
    max_log_bytes: int
    cancel_grace_seconds: float
    shutdown_grace_seconds: float


class Worker(Generic[FolderT]):
    """A worker that was leased. Who holds a lease may use it, only while that lasts."""

    def __init__(
        self,
        *,
        name: str,
        plan: WorkerPlan,
        folder: FolderT,
        spec: ProcessSpec,
        protocol: WorkerProtocol,
        machinery: WorkerMachinery,
    ) -> None:
        self.name = name
        """Such as ``worker-3-Javac``; unique within the pool."""
        self.plan = plan
        """The plan that it was made for. Those of later requests have the same key."""
        self.key = plan.key
        self.folder = folder
        """What the pool's `open_folder` gave."""
        self.log = spec.stderr
        """What the process writes to stderr."""
        self.fresh = True
        """Whether this is its first lease."""
        self.process_name = NOT_STARTED
        """Such as ``process 4711``."""
        self.facts: Mapping[str, str] = {}
        """What its process tells of where it runs."""
        self.spec = spec
        """What its process is started with."""
        self._machinery = machinery
        self._exchanges = Exchanges(
            protocol,
            machinery.max_response_bytes,
            multiplex=plan.key.mode is not Mode.SINGLEPLEX,
            cancellable=plan.cancellable,
        )
        self._log_file = WorkerLog(spec.stderr, machinery.max_log_bytes)
        self._wanted = trio.Event()
        self._waiting_for_start = 0
        self._settled = trio.Event()  # whether it could be started is known
        self._gone = trio.Event()  # nothing is left of the process
        self._start_error: Exception | None = None
        self._end_error: Exception | None = None
        self._process: Process | None = None
        self._conversation: Conversation | None = None
        # Shielded: it is ended by its pool, which knows when to be polite.
        self._life = trio.CancelScope(shield=True)
        self._service = trio.CancelScope()

    @property
    def served(self) -> int:
        """How many requests it has answered, those among them that were cancelled too."""
        return self._exchanges.served

    @property
    def last_error(self) -> str:
        """What has ended it, or has gone wrong in starting or ending it; empty where it was the
        server's wish."""
        fault = self._exchanges.fault
        if fault is not None and fault.kind not in _WISHES:
            return fault.reason
        return str(self._start_error or self._end_error or "")

    @property
    def usable(self) -> bool:
        """Whether it may be given another request, as soon as it has room for it.

        That is so from when its process is first asked for, and not before.
        """
        return (
            self._wanted.is_set()
            and self._start_error is None
            and self._exchanges.usable
            and not self._service.cancel_called
            and not self._life.cancel_called
        )

    @property
    def spent_by_cancellation(self) -> bool:
        """Whether it takes no other request because one was given up."""
        refusal = self._exchanges.refusal
        return refusal is not None and refusal.kind in _BY_CANCELLATION

    @property
    def recovering(self) -> bool:
        """Whether it has yet to answer a request that was cancelled."""
        return self._exchanges.recovering

    async def start(self) -> None:
        """Start the process, unless it is running.

        Call it once the root is laid out, as the program may be an input. Raises what the
        strategy raises, ProgramNotStarted among it, and WorkerFailed if the process has ended
        since. Calls may overlap. When the last of them is cancelled before the process runs, the
        worker is of no more use.
        """
        self._wanted.set()
        if self._settled.is_set():
            # A full turn of the loop would be a good part of a warm action.
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await self._wait_settled()
        if self._start_error is not None:
            raise self._start_error
        if not self.usable:
            raise self._failed(self._exchanges.refusal or STOPPED, answered=False)

    async def _wait_settled(self) -> None:
        self._waiting_for_start += 1
        try:
            await self._settled.wait()
        finally:
            self._waiting_for_start -= 1
            if not self._waiting_for_start and not self._settled.is_set():
                self.kill()

    async def perform(self, request: WorkRequest, inputs: Sequence[bytes] = ()) -> Answer:
        """The answer to `request`, starting the process first where that is still to be done.

        Its id is set here. More `inputs` may come serialized: see `WorkerProtocol.encode_with`.
        Up to `max_requests_in_flight` of the plan's terms may be performed at once. Raises
        WorkerFailed for everything that is no answer to this request (PWK-06, PWK-09, PWK-10),
        after which the worker is of no more use, and what `start` raises.

        There is no deadline but the caller's. Cancellation gives the request up: a cancellable
        worker is told by a cancel request (PWK-15), and `recover` waits for its answer; any other
        is of no more use, although a multiplex one goes on with the requests that it has.
        """
        if self._conversation is None:
            await self.start()
        assert self._conversation is not None, "it has started"
        try:
            return await self._conversation.ask(request, inputs)
        except ConversationOver as error:
            raise self._failed(error.fault, answered=error.answered) from None

    async def recover(self) -> bool:
        """Wait for the answers to all requests that were given up. Returns whether it is usable.

        The process is ended when one takes longer than `cancel_grace_seconds` from when it was
        given up. Calls may overlap; cancellation leaves all as it is.
        """
        if self._conversation is not None:
            await self._conversation.recover(self._machinery.cancel_grace_seconds)
        return self.usable

    async def let_go(self) -> bool:
        """Wait until nothing that was given up is worked on any more: it was answered, which
        `recover` waits for, or the process is gone. Returns False where neither can be waited for,
        as one that cannot be told goes on with others' requests.

        Calls may overlap; cancellation leaves all as it is.
        """
        if await self.recover():
            return True
        if self._exchanges.fault is None:
            return False
        await self._gone.wait()
        return True

    async def measure_memory(self) -> int | None:
        """How many bytes its process uses with all that came of it; None if nobody can tell."""
        if self._process is None:
            return None
        try:
            return await self._process.measure_memory()
        except Exception as error:  # noqa: BLE001  # one strategy's plugin must not end the pool
            _log.error("worker's memory not measured", worker=self.name, exc_info=error)
            return None

    def read_log(self, max_bytes: int) -> bytes:
        """The end of what its process has written to stderr. Blocks as long as a disk may."""
        return self._log_file.read_end(max_bytes)

    def _failed(self, fault: Fault, *, answered: bool) -> WorkerFailed:
        return WorkerFailed(
            f"{self.name} ({self.process_name})",
            fault.reason,
            answered=answered,
            kind=fault.kind,
            excerpt=fault.excerpt,
            exit=fault.exit,
            log_tail=self._log_file.read_tail(),
            unproven_protocol=self.plan.protocol if self._is_unproven(fault) else "",
        )

    def _is_unproven(self, fault: Fault) -> bool:
        return not self.served and (
            fault.kind in _MISUNDERSTANDINGS or (fault.exit is not None and not fault.exit.signal)
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
                async with self._machinery.strategy.start(self.spec) as process:
                    await self._attend(process, on_leaving)
        except Exception as error:  # noqa: BLE001  # one worker's plugin must not end the pool
            self._note(error)
        finally:
            self._exchanges.fail(STOPPED)
            self._process = None
            self._settled.set()
            self._gone.set()

    def retire(self) -> None:
        """End the process politely, without waiting: close its stdin, and be patient."""
        if self._conversation is None:
            self._life.cancel()
        self._service.cancel()

    def kill(self) -> None:
        """End the process at once, without waiting for that."""
        self._life.cancel()

    async def _attend(self, process: Process, on_leaving: Callable[[], None]) -> None:
        conversation = Conversation(process, self._exchanges)
        self._process, self.process_name = process, process.name
        self.facts = process.facts
        self._conversation = conversation
        self._settled.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_log, conversation)
            with self._service:
                await conversation.listen()
            on_leaving()
            # One that is at fault is killed: there is nothing to wait for.
            if conversation.fault is STOPPED:
                await self._part(process)
            nursery.cancel_scope.cancel()

    async def _keep_log(self, conversation: Conversation) -> None:
        """Nobody reads the log before the worker fails, and it would fill the disk."""
        try:
            await self._log_file.keep()
        except OSError as error:
            conversation.end(Fault(FaultKind.LOG, f"has a log that cannot be rotated: {error}"))

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
            return
        self._end_error = error
        if isinstance(error, StokerError):
            _log.warning("worker not ended cleanly", worker=self.name, reason=str(error))
        else:
            _log.error("worker ended by a bug", worker=self.name, exc_info=error)

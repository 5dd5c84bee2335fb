"""Everything that this package takes from grpcio's private layer.

grpcio offers threads and asyncio. Below both lies `cygrpc`: calls, on which batches of operations
are started, and completion queues, which report a batch by the tag it was started with. It is
private, so nothing outside this file touches it, and the contract test runs the package on the
oldest and the newest grpcio allowed.

A tag is a function. It runs in the thread that polls the queue, so it must be short and must not
raise; it returns what trio is to do about its event, or None.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

import grpc
from grpc._cython import cygrpc

from stoker.rpc.metadata import Pair

Options = Sequence[tuple[str, int | str]]
Action = Callable[[], object]

_NO_FLAGS: Final = 0
_CANCELLED: Final = 1
CHANNEL_CLOSED: Final = "the channel is closed"
_QUEUE_TIMEOUT: Final = cygrpc.CompletionType.queue_timeout
_QUEUE_SHUTDOWN: Final = cygrpc.CompletionType.queue_shutdown


class Operation(Protocol):
    """One operation of a batch. After the event of the batch it holds what came in."""

    def message(self) -> bytes | None: ...
    def cancelled(self) -> bool: ...
    def initial_metadata(self) -> tuple[Pair, ...]: ...
    def trailing_metadata(self) -> tuple[Pair, ...]: ...
    def code(self) -> int: ...
    def details(self) -> str: ...


class BatchEvent(Protocol):
    """A batch is over. `success` is False when its call broke before it could be done."""

    success: bool
    batch_operations: tuple[Operation, ...]


class Event(Protocol):
    """Any event, as the polling sees it; its tag knows of which kind it is."""

    tag: Callable[[Any], Action | None] | None


BatchTag = Callable[[BatchEvent], Action | None]
StartBatch = Callable[[tuple[Operation, ...], BatchTag | None], bool]
"""Starts a batch; False says that the call is over or that gRPC refused the batch."""


class CallDetails(Protocol):
    """What a new call is for. The deadline is in seconds since the epoch; None is none."""

    method: bytes
    deadline: float | None


class ServerCore(Protocol):
    """A call as the server's side of gRPC holds it."""

    def peer(self) -> bytes: ...
    def start_server_batch(
        self, operations: tuple[Operation, ...], tag: BatchTag | None, /
    ) -> int: ...


class NewCallEvent(Protocol):
    """A call has arrived; with `success` False the queue only gives the request back."""

    success: bool
    call: ServerCore
    call_details: CallDetails
    invocation_metadata: tuple[Pair, ...]


def send_initial_metadata(pairs: tuple[Pair, ...]) -> Operation:
    operation: Operation = cygrpc.SendInitialMetadataOperation(pairs, _NO_FLAGS)
    return operation


def send_message(message: bytes) -> Operation:
    operation: Operation = cygrpc.SendMessageOperation(message, _NO_FLAGS)
    return operation


def send_close() -> Operation:
    operation: Operation = cygrpc.SendCloseFromClientOperation(_NO_FLAGS)
    return operation


def send_status(pairs: tuple[Pair, ...], code: int, message: bytes) -> Operation:
    operation: Operation = cygrpc.SendStatusFromServerOperation(pairs, code, message, _NO_FLAGS)
    return operation


def receive_initial_metadata() -> Operation:
    operation: Operation = cygrpc.ReceiveInitialMetadataOperation(_NO_FLAGS)
    return operation


def receive_message() -> Operation:
    operation: Operation = cygrpc.ReceiveMessageOperation(_NO_FLAGS)
    return operation


def receive_status() -> Operation:
    operation: Operation = cygrpc.ReceiveStatusOnClientOperation(_NO_FLAGS)
    return operation


def receive_close() -> Operation:
    operation: Operation = cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS)
    return operation


def peer_properties(core: ServerCore) -> Mapping[str, Sequence[bytes]]:
    """Return what the security of its connection tells of a call's peer."""
    properties: Mapping[bytes, Sequence[bytes]] = cygrpc.auth_context(core)
    return {name.decode(): values for name, values in properties.items()}


def server_batch_starter(core: ServerCore) -> StartBatch:
    """Return what starts batches on a call of the server."""
    return partial(_start_server_batch, core.start_server_batch)


def _start_server_batch(
    start: Callable[[tuple[Operation, ...], BatchTag | None], int],
    operations: tuple[Operation, ...],
    tag: BatchTag | None,
) -> bool:
    # It returns an error code and never raises: unheeded, a task waits for ever.
    return start(operations, tag) == 0


class ServerQueue:
    """gRPC's server with the one completion queue that all its calls report to."""

    def __init__(self, options: Options) -> None:
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options), False)
        self._server.register_completion_queue(self._queue)
        self._shutting_down = False

    def add_port(self, address: str, credentials: object | None) -> int:
        """Listen on `address`; return its port (1 for a unix socket), or 0 when that failed."""
        arguments = (address.encode(),) if credentials is None else (address.encode(), credentials)
        port: int = self._server.add_http2_port(*arguments)
        return port

    def start(self) -> None:
        self._server.start()

    def request_call(self, tag: Callable[[NewCallEvent], Action | None]) -> None:
        """Ask for one more call, to be reported to `tag`. Does nothing after `shut_down`."""
        if self._shutting_down:
            return
        try:
            self._server.request_call(self._queue, self._queue, tag)
        except ValueError:
            # Another thread has begun the shutdown since the line above.
            return

    def shut_down(self, tag: Callable[[object], Action | None]) -> None:
        """Send GOAWAY and take no more calls; `tag` hears when the last call has gone."""
        if not self._shutting_down:
            self._shutting_down = True
            self._server.shutdown(self._queue, tag)

    def cancel_all_calls(self) -> None:
        """Break every call with UNAVAILABLE. Only after `shut_down`."""
        self._server.cancel_all_calls()

    def close(self) -> None:
        """Let the polling end. Only after the tag of `shut_down`, when no call is used any more."""
        self._queue.shutdown()

    def destroy(self) -> None:
        """Free the server. Only after the polling has ended."""
        self._server.destroy()

    def events(self) -> Iterator[Event | None]:
        """Yield events until the queue is closed, and None at the end of each burst of them."""
        poll = self._queue.poll
        while True:
            event = poll()  # waits, without the interpreter lock
            while event.completion_type != _QUEUE_TIMEOUT:
                if event.completion_type == _QUEUE_SHUTDOWN:
                    return
                yield event
                event = poll(0)
            yield None


class ClientCore(Protocol):
    """A call as the client's side of gRPC holds it."""

    def operate(self, operations: tuple[Operation, ...], tag: BatchTag | None, /) -> bool: ...
    def cancel(self, code: int, details: str, /) -> None: ...


class ChannelQueue:
    """gRPC's channel with the completion queue that its calls report to."""

    def __init__(self, target: str, options: Options, credentials: object | None) -> None:
        self._channel = cygrpc.Channel(target.encode(), tuple(options), credentials)
        self._open = True
        self._lock = threading.Lock()
        self._batches_due = 0

    def start_call(
        self,
        method: str,
        deadline: float | None,
        batches: Sequence[tuple[tuple[Operation, ...], BatchTag]],
    ) -> ClientCore:
        """Start a call and its first batches. `deadline` is in seconds since the epoch."""
        self._expect(len(batches))
        try:
            core: ClientCore = self._channel.integrated_call(
                cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS,
                method.encode(),
                None,
                deadline,
                None,
                None,
                batches,
            )
        except ValueError:
            self._expect(-len(batches))
            raise
        return core

    def batch_starter(self, core: ClientCore) -> StartBatch:
        """Return what starts further batches on a call."""
        return partial(self._start_batch, core.operate)

    def _start_batch(
        self,
        operate: Callable[[tuple[Operation, ...], BatchTag | None], bool],
        operations: tuple[Operation, ...],
        tag: BatchTag | None,
    ) -> bool:
        self._expect(1)
        try:
            started = operate(operations, tag)
        except ValueError:
            started = False
        if not started:
            self._expect(-1)
        return started

    def _expect(self, batches: int) -> None:
        with self._lock:
            self._batches_due += batches

    def shut_down(self) -> None:
        """Make `events` end. Only when every call is over or has been cancelled."""
        # gRPC cannot interrupt the polling of a channel; a call that is dead from the start does.
        batch = (send_initial_metadata(()), receive_status())
        core = self.start_call("/", time.time(), [(batch, self._end)])
        core.cancel(_CANCELLED, CHANNEL_CLOSED)

    def _end(self, _event: BatchEvent) -> None:
        self._open = False

    def events(self) -> Iterator[Event | None]:
        """Yield events, each followed by a None, until `shut_down` and the last batch due."""
        while self._open or self._batches_due:
            # A local variable would keep the last event, and its call, alive while this waits.
            yield self._next_event()
            yield None

    def _next_event(self) -> Event:
        event: Event = self._channel.next_call_event()  # waits, without the interpreter lock
        self._expect(-1)
        return event

    def destroy(self) -> None:
        """Close the connection. Only when nothing polls any more."""
        self._channel.close(_CANCELLED, CHANNEL_CLOSED)


def server_tls(certificate_chain: bytes, private_key: bytes, client_ca: bytes | None) -> object:
    """Return gRPC's form of a server's TLS credentials; all are PEM."""
    return grpc.ssl_server_credentials(
        [(private_key, certificate_chain)], client_ca, client_ca is not None
    )._credentials


def client_tls(
    root_certificates: bytes | None, certificate_chain: bytes | None, private_key: bytes | None
) -> object:
    """Return gRPC's form of a client's TLS credentials; all are PEM."""
    return grpc.ssl_channel_credentials(
        root_certificates, private_key, certificate_chain
    )._credentials

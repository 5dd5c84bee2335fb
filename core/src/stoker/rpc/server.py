"""The gRPC server on trio: every call is a task."""

import logging
from collections.abc import Callable, Iterable
from functools import partial

import trio

from stoker.rpc.completion_queue import Action, BatchEvent, NewCallEvent, Options, ServerQueue
from stoker.rpc.credentials import TlsCredentials
from stoker.rpc.listening import is_served, reason_not_to_listen
from stoker.rpc.method import Method
from stoker.rpc.poll_thread import PollThread
from stoker.rpc.server_call import ServerCall, refuse
from stoker.rpc.service import Service
from stoker.rpc.status import RpcError, StatusCode

logger = logging.getLogger(__name__)

MAX_RECEIVE_MESSAGE_BYTES = 16 * 1024 * 1024
"""gRPC's own limit of 4 MiB counts the message, while protocols above it limit the payload in
it: 4 MiB of payload in tiny pieces can well be 16 MiB of message."""

_CALLS_REQUESTED_AHEAD = 32
_UNLIMITED = -1
_MANY = 2**31 - 1


class Server:
    """Serves `services`, on one thread of its own beside trio's, however many calls there are.

    `translate_error` makes an RpcError of an exception that left a handler, or returns None
    for one that it does not know. That is a bug: it is logged whole, and the client gets
    INTERNAL without a word of it. A group with a single exception in it counts as that
    exception.

    A server lives once: listeners, `serve`, `stop`. Processes may be started while it serves;
    a fork without exec (`os.fork`, multiprocessing's "fork") must come before the first server
    or channel of the process, as gRPC's threads do not live on in the child.
    """

    def __init__(
        self,
        services: Iterable[Service],
        *,
        translate_error: Callable[[Exception], RpcError | None] = lambda _error: None,
        max_receive_message_bytes: int = MAX_RECEIVE_MESSAGE_BYTES,
        max_concurrent_streams: int | None = None,
        min_ping_interval_seconds: float = 5.0,
        keepalive_seconds: float = 60.0,
    ) -> None:
        """Set the server up; nothing listens yet.

        A message above `max_receive_message_bytes` ends its call with RESOURCE_EXHAUSTED; the
        connection lives on. `max_concurrent_streams` is for each connection, None for no limit.
        Keepalive pings are welcome without calls too, and one that comes earlier than
        `min_ping_interval_seconds` after the last is never a reason to close the connection.
        The server pings too, after `keepalive_seconds` without a word: a client that went away
        without closing its connection loses its calls when no answer has come in 20 s.
        """
        self._methods = _by_path(services)
        self._translate_error = translate_error
        self._queue = ServerQueue(
            _options(
                max_receive_message_bytes,
                max_concurrent_streams,
                min_ping_interval_seconds,
                keepalive_seconds,
            )
        )
        self._calls_scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._serving = False
        self._all_calls_gone = trio.Event()
        self._stopped = trio.Event()

    def add_listener(self, address: str, credentials: TlsCredentials | None = None) -> int:
        """Listen on "host:port" or "unix:/path"; return the port, the chosen one for port 0.

        To be called before `serve`; clients that connect before it wait. For a unix socket it
        returns 1, and takes a socket over that a dead server has left. Raises OSError with
        address and reason when nothing can listen there; two servers never share an address.
        """
        if self._serving:
            raise RuntimeError("listeners are added before the server serves")
        if is_served(address):
            raise OSError(f"cannot listen on {address}: another server listens there")
        port = self._queue.add_port(address, credentials and credentials.for_grpc())
        if port == 0:
            raise OSError(f"cannot listen on {address}: {reason_not_to_listen(address)}")
        return port

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop`; once only. Reports itself started when calls are taken.

        Cancelling it is `stop` with no grace: every handler is cancelled, their clients get
        UNAVAILABLE, and it returns when all is given back.
        """
        if self._serving:
            raise RuntimeError("a server serves once")
        self._serving = True
        poll_thread = PollThread("grpc-server", self._queue.events)
        self._queue.start()
        poll_thread.start()
        try:
            with self._calls_scope:
                await self._run_calls(task_status)
        finally:
            with trio.CancelScope(shield=True):
                await self._close(poll_thread)

    async def stop(self, grace_seconds: float) -> None:
        """Take no more calls, let those in flight end, and cancel them after `grace_seconds`.

        Clients learn at once (GOAWAY) that they must connect anew. A call that is cancelled ends
        with UNAVAILABLE. Returns when `serve` is about to return; at once when it never ran.
        """
        if not self._serving:
            return
        self._shut_down()
        with trio.move_on_after(grace_seconds):
            await self._all_calls_gone.wait()
        self._calls_scope.cancel()
        await self._stopped.wait()

    async def _run_calls(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for _ in range(_CALLS_REQUESTED_AHEAD):
                    self._queue.request_call(self._on_new_call)
                task_status.started()
                await self._all_calls_gone.wait()
            finally:
                # From here on a new call would find no nursery to run in.
                self._nursery = None
        # Handlers of clients that have gone may still be cleaning up: the nursery waited.

    async def _close(self, poll_thread: PollThread) -> None:
        self._shut_down()
        self._queue.cancel_all_calls()
        await self._all_calls_gone.wait()
        self._queue.close()
        await poll_thread.wait_ended()
        self._queue.destroy()
        self._stopped.set()

    def _shut_down(self) -> None:
        self._queue.shut_down(self._on_all_calls_gone)

    def _on_all_calls_gone(self, _event: object) -> Action:
        return self._all_calls_gone.set

    def _on_new_call(self, event: NewCallEvent) -> Action | None:
        if not event.success:
            return None
        self._queue.request_call(self._on_new_call)
        path = event.call_details.method.decode(errors="replace")
        method = self._methods.get(path)
        if method is None:
            refuse(event.call, StatusCode.UNIMPLEMENTED, f"there is no method {path}")
            return None
        call = ServerCall(event, path, method)
        call.watch_close()
        if method.request_streams:
            return partial(self._begin, call, None)
        # Trio is not woken before there is something to do for it.
        call.request_message(partial(self._on_request, call))
        return None

    def _on_request(self, call: ServerCall, event: BatchEvent) -> Action | None:
        message = event.batch_operations[0].message()
        if message is None:
            call.fail(RpcError(StatusCode.INTERNAL, "the call ended before its request came"))
            call.release()
            return None
        return partial(self._begin, call, message)

    def _begin(self, call: ServerCall, request: bytes | None) -> None:
        if self._nursery is None:
            call.fail(_shutting_down())
            call.release()
        else:
            self._nursery.start_soon(self._run, call, request, name=call.method)

    async def _run(self, call: ServerCall, request: bytes | None) -> None:
        try:
            await call.run_handler(request)
        except Exception as error:  # noqa: BLE001  # whatever a handler raises ends its call only
            call.fail(self._rpc_error(call.method, error))
        except BaseExceptionGroup as group:
            # Errors beside a cancellation: they must not bring the server down with it.
            call.fail(_shutting_down())
            self._reraise_cancellation(call.method, group)
        except BaseException:
            call.fail(_shutting_down())
            raise
        finally:
            call.release()

    def _reraise_cancellation(self, method: str, group: BaseExceptionGroup) -> None:
        errors, rest = group.split(Exception)
        if errors is not None:
            self._rpc_error(method, errors)
        if rest is not None:
            raise rest

    def _rpc_error(self, method: str, error: Exception) -> RpcError:
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        translated = error if isinstance(error, RpcError) else self._translated(error)
        if translated is None:
            logger.error("%s: the handler failed", method, exc_info=error)
            translated = RpcError(StatusCode.INTERNAL, "internal error")
        return translated

    def _translated(self, error: Exception) -> RpcError | None:
        try:
            return self._translate_error(error)
        except Exception:
            logger.exception("an exception of a handler could not be translated")
            return None


def _by_path(services: Iterable[Service]) -> dict[str, Method]:
    methods: dict[str, Method] = {}
    for service in services:
        for name, method in service.methods.items():
            path = f"/{service.name}/{name}"
            if path in methods:
                raise ValueError(f"{path} is served twice")
            methods[path] = method
    return methods


def _shutting_down() -> RpcError:
    return RpcError(StatusCode.UNAVAILABLE, "the server is shutting down")


def _options(
    max_receive_message_bytes: int,
    max_concurrent_streams: int | None,
    min_ping_interval_seconds: float,
    keepalive_seconds: float,
) -> Options:
    options: list[tuple[str, int]] = [
        ("grpc.max_receive_message_length", max_receive_message_bytes),
        ("grpc.max_send_message_length", _UNLIMITED),
        # Otherwise a second server binds the same port and the two share its connections.
        ("grpc.so_reuseport", 0),
        # Else the library cancels calls at random where more than a thousand come at once, as from
        # a build with as many jobs. How many are too many is for the services to say (EXE-25).
        ("grpc.server.max_pending_requests", _MANY),
        ("grpc.server.max_pending_requests_hard_limit", _MANY),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", round(keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", 20_000),
        (
            "grpc.http2.min_ping_interval_without_data_ms",
            round(min_ping_interval_seconds * 1000),
        ),
        ("grpc.http2.max_ping_strikes", 0),  # 0 is no limit
    ]
    if max_concurrent_streams is not None:
        options.append(("grpc.max_concurrent_streams", max_concurrent_streams))
    return options

"""The requests that have come and are not answered yet."""

from __future__ import annotations

from collections import deque
from threading import Condition
from typing import Generic, TypeVar

from stoker.worker_kit.request import Request

RequestT = TypeVar("RequestT", bound=Request)


class InFlight(Generic[RequestT]):
    """Hands each request that was read to one of the threads that ask. For any thread.

    Requests of the same id are handed out one after the other: so those of a client that numbers
    none, and sends the next before it has read the answer, are answered in their order.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._waiting: deque[RequestT] = deque()
        self._running: list[RequestT] = []
        self._closed = False

    def add(self, request: RequestT) -> None:
        """A request was read."""
        with self._changed:
            self._waiting.append(request)
            self._changed.notify()

    def take(self) -> RequestT | None:
        """Wait for a request to be worked on; None when no more will come.

        It counts as running until `remove`.
        """
        with self._changed:
            while (request := self._next()) is None:
                if self._closed and not self._waiting:
                    return None
                self._changed.wait()
            self._waiting.remove(request)
            self._running.append(request)
            return request

    def remove(self, request: RequestT) -> None:
        """`request` is answered."""
        with self._changed:
            self._running.remove(request)
            self._changed.notify_all()

    def cancel(self, request_id: int) -> list[RequestT]:
        """Cancel what was read of this id. Returns what nobody works on yet: it is now the
        caller's to be answered, and counts as running."""
        with self._changed:
            begun = [request for request in self._running if request.request_id == request_id]
            unbegun = [request for request in self._waiting if request.request_id == request_id]
            for request in unbegun:
                self._waiting.remove(request)
            self._running += unbegun
        # Outside of the lock, as callbacks of the tool are called.
        for request in (*begun, *unbegun):
            request.cancel()
        return unbegun

    def cancel_all(self) -> None:
        """Cancel everything, and hand out nothing more."""
        with self._changed:
            self._waiting.clear()
            running = list(self._running)
        self.close()
        for request in running:
            request.cancel()

    def close(self) -> None:
        """No more will be added."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_empty(self) -> None:
        """Wait until everything is answered. For after `close`."""
        with self._changed:
            while self._waiting or self._running:
                self._changed.wait()

    def _next(self) -> RequestT | None:
        running = {request.request_id for request in self._running}
        return next((each for each in self._waiting if each.request_id not in running), None)

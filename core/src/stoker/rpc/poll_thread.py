"""The thread that polls a completion queue, and the way from it to trio."""

import collections
import logging
import threading
from collections.abc import Callable, Iterator

import trio

from stoker.rpc.completion_queue import Action, Event

logger = logging.getLogger(__name__)


class PollThread:
    """Calls the tags of a queue's events in a thread of its own, and their actions on trio.

    The actions of a burst go over together, by one wake-up of trio: at many calls in flight that
    is what makes a call cheap. They run in order, between the steps of other tasks.
    """

    def __init__(self, name: str, events: Callable[[], Iterator[Event | None]]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._events = events
        self._actions: collections.deque[Action] = collections.deque()
        self._handed_over = False
        self._ended = trio.Event()
        # A daemon, so that a trio that crashed can still leave the interpreter.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def wait_ended(self) -> None:
        """Wait until the queue was closed and all its events have been dealt with."""
        await self._ended.wait()
        # The thread has nothing left to do but to return.
        self._thread.join()

    def _run(self) -> None:
        try:
            self._poll()
            self._token.run_sync_soon(self._ended.set)
        except trio.RunFinishedError:
            # Trio has crashed and nobody is left to be told.
            logger.debug("%s: trio has ended before its queue", self._thread.name)

    def _poll(self) -> None:
        for event in self._events():
            if event is None:
                self._hand_over()
            elif event.tag is not None:
                self._call_tag(event.tag, event)

    def _call_tag(self, tag: Callable[[Event], Action | None], event: Event) -> None:
        try:
            action = tag(event)
        except Exception:
            # One call is lost; without the thread all would be.
            logger.exception("%s: a tag failed", self._thread.name)
            return
        if action is not None:
            self._actions.append(action)

    def _hand_over(self) -> None:
        if self._actions and not self._handed_over:
            self._handed_over = True
            self._token.run_sync_soon(self._act)

    def _act(self) -> None:
        # Before the count: what comes in after it is handed over anew.
        self._handed_over = False
        for _ in range(len(self._actions)):
            self._actions.popleft()()

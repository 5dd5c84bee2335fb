"""The containers of one strategy: made, kept, and removed whatever happens.

They are made and removed in the strategy's own tasks. Who is cancelled while it waits for one
leaves it to the next; so none is ever lost between two awaits.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from stoker import spi
from stoker_exec_docker.container import Container
from stoker_exec_docker.engine import Engine, NoSuchThing, NotAnswering, Refused
from stoker_exec_docker.mounting import SharedFolder, Slot
from stoker_exec_docker.plan import KEEPER_HAS_NO_SLEEP, ContainerPlan, configuration
from stoker_exec_docker.shelf import Shelf, Ticket

_MADE_AT_ONCE: Final = 4
_EXPIRY_LOOK_SECONDS: Final = 5.0
_CLOSING_SECONDS: Final = 30.0
_ENDING_SECONDS: Final = 2.0
_ENDING_PAUSE_SECONDS: Final = 0.05
_FIRST_CODE_OF_A_SIGNAL: Final = 128
_SHELL: Final = "a /bin/sh that this machine can run"


class Containers:
    """Containers on one engine. Calls may overlap."""

    def __init__(
        self,
        engine: Engine,
        nursery: trio.Nursery,
        *,
        labels: Mapping[str, str],
        folder: SharedFolder | None,
        most_kept: int,
        kept_seconds: float,
    ) -> None:
        self._engine = engine
        self._nursery = nursery
        self._labels = labels
        self._folder = folder
        self._kept_seconds = kept_seconds
        self._shelf: Shelf[Container] = Shelf(most_kept)
        self._making: Counter[ContainerPlan] = Counter()
        self._made_at_once = trio.CapacityLimiter(_MADE_AT_ONCE)
        self._removing = 0
        self._all_removed = trio.Condition()
        self._closed = False
        self._numbers = itertools.count(1)

    @property
    def idle(self) -> int:
        """How many wait for the next process."""
        return self._shelf.idle

    async def take(self, plan: ContainerPlan) -> Container:
        """A container for one process, to be given back.

        Raises FailedPrecondition for what the engine refuses, Unavailable otherwise. Cancelled,
        it leaves nothing, but perhaps an idle container for the next.
        """
        kept = self._shelf.take(plan)
        if kept is not None:
            return kept
        settled = trio.Event()
        ticket: Ticket[Container] = Ticket(plan, settled.set)
        self._shelf.wait(ticket)
        try:
            if self._making[plan] < self._shelf.waiting(plan):
                self._making[plan] += 1
                self._nursery.start_soon(self._make_for, plan)
            await settled.wait()
        except BaseException:
            self._shelf.withdraw(ticket)
            if ticket.thing is not None:
                self.give_back(ticket.thing)
            raise
        if ticket.thing is None:
            raise ticket.error or spi.Unavailable("no container was made")
        return ticket.thing

    def give_back(self, container: Container) -> None:
        """Keep it for the next, or remove it: without waiting, as nothing runs in it any more."""
        if not container.usable or self._closed:
            self._discard(container)
        elif container.plan.keep or (not container.served and self._shelf.waiting(container.plan)):
            for superfluous in self._shelf.put(container.plan, container, trio.current_time()):
                self._discard(superfluous)
        else:
            self._discard(container)

    def forget_idle(self) -> None:
        """Use none of the idle ones again: the engine was away, and they may be gone."""
        for container in self._shelf.empty():
            self._discard(container)

    async def expire(self) -> None:
        """Remove what has been idle for too long, for ever."""
        while True:
            await trio.sleep(min(self._kept_seconds, _EXPIRY_LOOK_SECONDS))
            for container in self._shelf.expire(trio.current_time() - self._kept_seconds):
                self._discard(container)

    async def close(self) -> None:
        """Remove all. Bounded: what the engine does not remove by then, the next sweep does."""
        self._closed = True
        with trio.move_on_after(_CLOSING_SECONDS, shield=True):
            self.forget_idle()
            async with self._all_removed:
                while self._removing or self._making.total():
                    await self._all_removed.wait()

    async def remove_now(self, container: Container) -> None:
        """Remove a container in which something may run. Shielded.

        Raises Unavailable if the engine does not do it.
        """
        container.usable = False
        with trio.CancelScope(shield=True):
            try:
                await self._engine.remove(container.identity)
            except Refused as error:
                raise spi.Unavailable(f"{container.name} cannot be removed: {error}") from error
            except NoSuchThing:
                return

    # --- making ----------------------------------------------------------------------------------

    async def _make_for(self, plan: ContainerPlan) -> None:
        try:
            async with self._made_at_once:
                if self._shelf.waiting(plan) and not self._closed:
                    self.give_back(await self._make(plan))
        except (spi.StokerError, OSError) as error:
            self._shelf.fail(plan, _told(error))
        finally:
            self._making[plan] -= 1
            if not self._making[plan]:
                del self._making[plan]
            await self._tell_removed()

    async def _make(self, plan: ContainerPlan) -> Container:
        slot = self._folder.new_slot() if plan.keep and self._folder is not None else None
        # Known beforehand: it can be removed even if the engine's answer is lost.
        name = f"stoker-{os.getpid()}-{self._labels_hint()}-{next(self._numbers)}"
        try:
            return await self._make_named(name, plan, slot)
        except BaseException:
            self._begin_removal(name, slot)
            raise

    def _labels_hint(self) -> str:
        return next(iter(self._labels.values()), "")[:8]

    async def _make_named(self, name: str, plan: ContainerPlan, slot: Slot | None) -> Container:
        path = slot.path if slot is not None else None
        try:
            identity = await self._engine.create(configuration(plan, self._labels, path), name)
            await self._engine.start(identity)
            state = (await self._engine.inspect(identity))["State"]
            return await trio.to_thread.run_sync(
                partial(Container, identity, f"container {name}", plan, slot, int(state["Pid"]))
            )
        except NoSuchThing as error:
            # Removed by somebody since it was looked up: the next attempt finds that out.
            raise spi.Unavailable(f"image {plan.image.name} has gone: {error}") from error
        except Refused as error:
            raise _refusal(plan, error) from error
        except spi.Unavailable as error:
            raise await self._reason(plan, name, error) from error

    async def _reason(
        self, plan: ContainerPlan, name: str, error: spi.Unavailable
    ) -> spi.StokerError:
        """Why a container that was started does not run."""
        with suppress(NoSuchThing, Refused, NotAnswering):
            code = await self._exit_code(name)
            if code == KEEPER_HAS_NO_SLEEP:
                return _needs(plan, "a program sleep", str(error))
            # By itself it never ends, and who kills it leaves a higher one.
            if 0 < code < _FIRST_CODE_OF_A_SIGNAL:
                return _needs(plan, _SHELL, f"{error}, with exit code {code}")
        return error

    async def _exit_code(self, name: str) -> int:
        """Of a container that has ended, or is about to be told so; 0 otherwise."""
        with trio.move_on_after(_ENDING_SECONDS):
            while True:
                state = (await self._engine.inspect(name))["State"]
                if not state["Running"]:
                    return int(state["ExitCode"])
                await trio.sleep(_ENDING_PAUSE_SECONDS)
        return 0

    # --- removing --------------------------------------------------------------------------------

    def _discard(self, container: Container) -> None:
        container.usable = False
        container.close()
        self._begin_removal(container.identity, container.slot)

    def _begin_removal(self, identity: str, slot: Slot | None) -> None:
        self._removing += 1
        self._nursery.start_soon(self._remove, identity, slot)

    async def _remove(self, identity: str, slot: Slot | None) -> None:
        try:
            while not await self._is_removed(identity):
                await self._engine.wait_until_there()
            if slot is not None:
                await trio.to_thread.run_sync(_remove_slot, slot)
        finally:
            self._removing -= 1
            await self._tell_removed()

    async def _is_removed(self, identity: str) -> bool:
        try:
            await self._engine.remove(identity)
        except NotAnswering:
            return False
        except Refused:
            # The next life of the server tries again.
            return True
        return True

    async def _tell_removed(self) -> None:
        with trio.CancelScope(shield=True):
            async with self._all_removed:
                self._all_removed.notify_all()


def _remove_slot(slot: Slot) -> None:
    try:
        slot.remove()
    except OSError:
        # It is swept with the whole folder when the server ends.
        return


def _told(error: Exception) -> spi.StokerError:
    if isinstance(error, spi.StokerError):
        return error
    return spi.Unavailable(f"no container can be made: {error}")


def _refusal(plan: ContainerPlan, error: Refused) -> spi.StokerError:
    said = str(error)
    if any(words in said for words in ("/bin/sh", "executable file not found", "exec format")):
        return _needs(plan, _SHELL, said)
    if error.is_for_good:
        return spi.FailedPrecondition(f"image {plan.image.name} makes no container: {said}")
    return spi.Unavailable(f"the container engine makes no container: {said}")


def _needs(plan: ContainerPlan, what: str, said: str) -> spi.FailedPrecondition:
    return spi.FailedPrecondition(
        f"image {plan.image.name} has not got {what}, without which no container can wait for "
        f"commands: {said}"
    )

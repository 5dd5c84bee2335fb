"""Starting processes in containers as specifications ask."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import trio

from stoker import spi
from stoker_exec_docker.container import Container
from stoker_exec_docker.containers import Containers
from stoker_exec_docker.engine import Engine, NotAnswering
from stoker_exec_docker.images import Image, Images
from stoker_exec_docker.plan import ContainerPlan, make_plan
from stoker_exec_docker.process import ContainerLost, DockerProcess
from stoker_exec_docker.settings import DockerSettings
from stoker_exec_docker.wishes import Wishes, read_wishes

_ATTEMPTS: Final = 12
"""More than there are kept containers by default: each of them may be gone."""

_BY_POLICY: Final[Mapping[str, bool | None]] = {
    "always": True,
    "never": False,
    "by-property": None,
}

T = TypeVar("T")


class DockerStrategy(spi.ExecutionStrategy):
    """Processes in containers. Opened by `stoker_exec_docker.plugin.open_strategy`."""

    def __init__(
        self,
        settings: DockerSettings,
        engine: Engine,
        nursery: trio.Nursery,
        *,
        images: Images,
        containers: Containers,
        user: spi.ProcessUser,
        is_own_user: bool,
        can_keep: bool,
        enforcement: Sequence[str],
    ) -> None:
        self._user = user
        self.user = None if is_own_user else user
        self.protects_inputs = not is_own_user and not (
            settings.allow_run_as_root or settings.allow_privileged or settings.allowed_capabilities
        )
        self.keeps_containers = _BY_POLICY[settings.keep_containers]
        self.containers = containers
        self._settings = settings
        self._engine = engine
        self._nursery = nursery
        self._images = images
        self._can_keep = can_keep
        self._enforcement = tuple(enforcement)
        self._reaching = trio.Lock()

    def enforcement(self) -> Sequence[str]:
        """See :class:`stoker.spi.ExecutionStrategy`."""
        return self._enforcement

    async def identify_surroundings(self, properties: Mapping[str, tuple[str, ...]]) -> str:
        """The digest of the image. See :class:`stoker.spi.ExecutionStrategy`."""
        image = await self._find_image(self._wishes(properties))
        return f"docker image {image.digest}"

    async def prepare(self, properties: Mapping[str, tuple[str, ...]], tell: spi.Tell) -> None:
        """Fetch the image. See :class:`stoker.spi.ExecutionStrategy`."""
        await self._find_image(self._wishes(properties), tell)

    @asynccontextmanager
    async def start(self, spec: spi.ProcessSpec) -> AsyncIterator[spi.Process]:
        """See :class:`stoker.spi.ExecutionStrategy`."""
        container, process = await self._begun(spec)
        try:
            yield process
        finally:
            await self._end(container, process)

    async def _begun(self, spec: spi.ProcessSpec) -> tuple[Container, DockerProcess]:
        wishes = self._wishes(spec.properties)
        reason = ""
        for _ in range(_ATTEMPTS):
            plan = await self._plan(spec, wishes)
            container = await self._while_there(partial(self.containers.take, plan))
            process = DockerProcess(self._engine, self._nursery, container, spec)
            try:
                await process.begin()
            except ContainerLost as error:
                reason = str(error)
                self._images.forget()
                # One that was kept may have gone with its engine, or been removed by somebody.
                container.usable = False
                await self._end(container, process)
            except BaseException:
                await self._end(container, process)
                raise
            else:
                return container, process
        raise spi.Unavailable(f"no container will start a command: {reason}")

    async def _end(self, container: Container, process: DockerProcess) -> None:
        try:
            await process.end()
        except BaseException:
            container.usable = False
            raise
        finally:
            self.containers.give_back(container)

    def _wishes(self, properties: Mapping[str, tuple[str, ...]]) -> Wishes:
        wishes = read_wishes(self._settings, properties, self._user)
        if wishes.input_root_as_root and os.geteuid() != 0:
            raise spi.FailedPrecondition("input-root-as-root=true needs a server that is root")
        return wishes

    async def _plan(self, spec: spi.ProcessSpec, wishes: Wishes) -> ContainerPlan:
        image = await self._find_image(wishes)
        return make_plan(self._settings, spec, wishes, image, can_keep=self._can_keep)

    async def _find_image(self, wishes: Wishes, tell: spi.Tell | None = None) -> Image:
        return await self._while_there(lambda: self._images.find(wishes.image, tell))

    async def _while_there(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What the engine answers; should it be away, when it is back, within the bound."""
        try:
            return await ask()
        except NotAnswering as error:
            await self._wait_for_engine(error)
        return await ask()

    async def _wait_for_engine(self, error: NotAnswering) -> None:
        with trio.move_on_after(self._settings.engine_wait_seconds):
            async with self._reaching:
                await self._engine.wait_until_there()
                # Those it had have ended with it.
                self.containers.forget_idle()
            return
        raise error

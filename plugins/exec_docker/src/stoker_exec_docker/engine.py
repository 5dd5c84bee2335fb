"""The engine: control calls by the docker library, whose exceptions end here.

The library blocks, so every call has a thread of its own pool. A call that was begun is waited
for, cancelled or not: what it made is then known, and can be removed.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar, cast

import docker.errors  # type: ignore[import-untyped]  # has no types
import requests
import trio
import urllib3.exceptions

from stoker import spi

_CALLS_AT_ONCE: Final = 16
_CONNECT_SECONDS: Final = 5.0
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
_PREFIX: Final = "unix://"

# What the library leaves to others to translate is among them: an answer may end anywhere.
_BROKEN_OFF: Final = (
    docker.errors.DockerException,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
)

T = TypeVar("T")
Facts = Mapping[str, Any]
"""What the engine tells of something, as in its API."""


class NoSuchThing(Exception):
    """The engine knows no image, container or command of this name."""


class Refused(Exception):
    """The engine has understood, and will not."""

    def __init__(self, said: str, *, is_for_good: bool = False) -> None:
        super().__init__(said)
        self.is_for_good = is_for_good
        """Whether it is what was asked for that is at fault."""


class NotAnswering(spi.Unavailable):
    """The engine is not there, or went away during a call."""


class Engine:
    """One engine. Calls may overlap. Opened by `open_engine`.

    Every call raises NotAnswering, NoSuchThing, or Refused with what the engine says.
    """

    def __init__(self, endpoint: str, call_timeout_seconds: float) -> None:
        if not endpoint.startswith(f"{_PREFIX}/"):
            raise spi.ConfigurationError(
                [f"{endpoint!r}: only sockets of this machine can be used, as in {_PREFIX}/…"]
            )
        self.socket_path = endpoint.removeprefix(_PREFIX)
        self._endpoint = endpoint
        self.call_timeout_seconds = call_timeout_seconds
        self._limiter = trio.CapacityLimiter(_CALLS_AT_ONCE)
        # A pull takes minutes, and must not hold up what takes moments.
        self._pull_limiter = trio.CapacityLimiter(_CALLS_AT_ONCE)
        self._client: Any = None
        self.is_podman = False
        """It takes no variable away from a command, and forgets the number of one that ended."""

    @property
    def api_path(self) -> str:
        """What the paths of this engine's API begin with."""
        return f"/v{self._client.api_version}"

    async def connect(self) -> None:
        """Agree with the engine on a version, or find that it is still there."""
        # Nothing is made by it: who waits only for so long need not wait for its thread.
        await self._in_thread(self._connect, abandon=True)

    def _connect(self) -> None:
        if self._client is None:
            client = docker.APIClient(
                base_url=self._endpoint, version="auto", timeout=self.call_timeout_seconds
            )
            components = client.version().get("Components") or ()
            self.is_podman = any("Podman" in part["Name"] for part in components)
            self._client = client
        else:
            self._client.ping()

    def close(self) -> None:
        """Give connections back."""
        if self._client is not None:
            self._client.close()

    async def wait_until_there(self) -> None:
        """Wait until the engine answers. Bound it."""
        pause_seconds = _FIRST_PAUSE_SECONDS
        while True:
            try:
                await self.connect()
            except (NotAnswering, Refused, NoSuchThing):
                # One that has just begun says all kinds of things.
                await trio.sleep(pause_seconds)
                pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
            else:
                return

    async def info(self) -> Facts:
        """What it says of itself."""
        return cast("Facts", await self._call("info"))

    # --- containers ------------------------------------------------------------------------------

    async def create(self, configuration: Facts, name: str) -> str:
        """Make a container. Returns its id."""
        created: Facts = await self._call("create_container_from_config", configuration, name)
        return str(created["Id"])

    async def start(self, container: str) -> None:
        """Start a container."""
        await self._call("start", container)

    async def inspect(self, container: str) -> Facts:
        """What is known of a container."""
        return cast("Facts", await self._call("inspect_container", container))

    async def remove(self, container: str) -> None:
        """Kill a container and remove it with its volumes. No error if there is none."""
        try:
            await self._call("remove_container", container, v=True, force=True)
        except NoSuchThing:
            return
        except Refused as error:
            # Somebody else is removing it at this moment.
            if "already in progress" not in str(error):
                raise

    async def containers(self, label: str) -> Sequence[Facts]:
        """All containers, running or not, with a label ``name=value``."""
        found: Sequence[Facts] = await self._call(
            "containers", all=True, filters={"label": [label]}
        )
        return found

    # --- commands inside of them -----------------------------------------------------------------

    async def prepare_command(
        self,
        container: str,
        argv: Sequence[str],
        *,
        environment: Sequence[str],
        working_directory: str,
        user: spi.ProcessUser,
        stdin: bool,
        privileged: bool,
    ) -> str:
        """Tell of a command for a running container, not yet started. Returns its id."""
        made: Facts = await self._call(
            "exec_create",
            container,
            list(argv),
            stdin=stdin,
            environment=list(environment),
            workdir=working_directory,
            user=f"{user.uid}:{user.gid}",
            privileged=privileged,
        )
        return str(made["Id"])

    async def inspect_command(self, command: str) -> Facts:
        """What is known of a command."""
        return cast("Facts", await self._call("exec_inspect", command))

    # --- images ----------------------------------------------------------------------------------

    async def inspect_image(self, name: str) -> Facts:
        """What the engine has under a name."""
        return cast("Facts", await self._call("inspect_image", name))

    async def pull(self, repository: str, tag: str, note: Callable[[Facts], None]) -> None:
        """Have the engine fetch an image, however long that takes.

        `note` is called in another thread, with each step that the engine tells of.
        """
        await self._in_thread(
            partial(self._pull, repository, tag, note), limiter=self._pull_limiter, abandon=True
        )

    def _pull(self, repository: str, tag: str, note: Callable[[Facts], None]) -> None:
        for step in self._client.pull(repository, tag=tag, stream=True, decode=True):
            if "error" in step:
                raise Refused(str(step["error"]))
            note(step)

    # --- how calls are made ----------------------------------------------------------------------

    async def _call(self, name: str, *arguments: Any, **options: Any) -> Any:  # as JSON is
        if self._client is None:
            raise NotAnswering(f"the container engine at {self._endpoint} has not answered yet")
        return await self._in_thread(partial(getattr(self._client, name), *arguments, **options))

    async def _in_thread(
        self,
        call: Callable[[], T],
        *,
        limiter: trio.CapacityLimiter | None = None,
        abandon: bool = False,
    ) -> T:
        return await trio.to_thread.run_sync(
            partial(_translating, call, self._endpoint),
            limiter=limiter or self._limiter,
            abandon_on_cancel=abandon,
        )


def _translating(call: Callable[[], T], endpoint: str) -> T:
    _check_socket(endpoint.removeprefix(_PREFIX))
    try:
        return call()
    except docker.errors.NotFound as error:
        raise NoSuchThing(_said(error)) from error
    except docker.errors.APIError as error:
        raise Refused(_said(error), is_for_good=error.status_code == 400) from error
    except _BROKEN_OFF as error:
        raise NotAnswering(f"the container engine at {endpoint} broke off: {error}") from error


def _check_socket(path: str) -> None:
    """Find out why nobody answers, which the library would bury, leaking a socket each time."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_CONNECT_SECONDS)
            probe.connect(path)
    except FileNotFoundError as error:
        raise NotAnswering(f"there is no socket {path} of a container engine") from error
    except PermissionError as error:
        reason = f"the user of the server (uid {os.geteuid()}) may not open {path}"
        raise NotAnswering(reason) from error
    except OSError as error:
        raise NotAnswering(f"no container engine listens at {path}: {error}") from error


def _said(error: Any) -> str:
    return str(error.explanation or error)


@asynccontextmanager
async def open_engine(engine: Engine) -> AsyncIterator[None]:
    """While open, `engine` has answered once. Raises NotAnswering, or Unavailable for a refusal."""
    try:
        try:
            await engine.connect()
        except (Refused, NoSuchThing) as error:
            raise spi.Unavailable(f"the container engine is of no use: {error}") from error
        yield
    finally:
        engine.close()

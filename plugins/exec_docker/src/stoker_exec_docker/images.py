"""Which image a name stands for now, and fetching those that the engine lacks."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from stoker import spi
from stoker_exec_docker.connection import open_image_events
from stoker_exec_docker.engine import Engine, Facts, NoSuchThing, NotAnswering, Refused
from stoker_exec_docker.pull_progress import PullProgress
from stoker_exec_docker.settings import PullPolicy

_WATCH_PAUSE_SECONDS: Final = 1.0
_TELL_SECONDS: Final = 1.0

# What registries and engines say of a name that will not become right by itself (ISO-02).
_LASTING: Final = (
    "not found",
    "manifest unknown",
    "name unknown",
    "does not exist",
    "denied",
    "unauthorized",
    "authentication required",
    "invalid reference",
    "invalid repository name",
    "invalid tag",
    "no matching manifest",
    "is not a valid",
)


_OF_THE_SYSTEM: Final = frozenset({"", "dev", "proc", "sys"})
"""Folders where no image has anything to say, and the root itself."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that the engine has."""

    name: str
    """As it was asked for."""
    digest: str
    """Of its configuration, ``sha256:…``: it decides all that a process sees of it."""
    repository_digests: tuple[str, ...] = ()
    """What it is called where it can be fetched, ``repository@sha256:…``."""
    volumes: tuple[str, ...] = ()
    """Folders that it wants writable."""
    variables: tuple[str, ...] = ()
    """Names of its own environment, which no action gets."""


@dataclass(slots=True)
class _Pull:
    done: trio.Event = field(default_factory=trio.Event)
    progress: PullProgress = field(default_factory=PullProgress)
    error: spi.StokerError | None = None


class Images:
    """The engine's images. Calls may overlap: one image is fetched once."""

    def __init__(
        self,
        engine: Engine,
        nursery: trio.Nursery,
        *,
        policy: PullPolicy,
        pull_again_seconds: float,
    ) -> None:
        self._engine = engine
        self._nursery = nursery
        self._policy = policy
        self._pull_again_seconds = pull_again_seconds
        self._pulls: dict[str, _Pull] = {}
        self._pulled_at: dict[str, float] = {}
        self._known: dict[str, Image] = {}
        """What names stand for, for as long as the engine would tell if that changed."""
        self._is_told = False
        self._changes = 0

    async def watch(self) -> None:
        """Have the engine tell of changes, for ever, so that it need not be asked each time."""
        while True:
            with suppress(spi.Unavailable, trio.BrokenResourceError, trio.ClosedResourceError):
                await self._watch_once()
            await trio.sleep(_WATCH_PAUSE_SECONDS)

    async def _watch_once(self) -> None:
        events = await open_image_events(self._engine)
        self._is_told = True
        try:
            while await events.receive():
                self.forget()
        finally:
            self._is_told = False
            self.forget()
            events.close()

    def forget(self) -> None:
        """Ask the engine again, whatever is known."""
        self._changes += 1
        self._known.clear()

    async def find(self, name: str, tell: spi.Tell | None = None) -> Image:
        """The image that `name` stands for now, fetched if need be.

        A failure is never remembered: the next call asks again. Raises FailedPrecondition for a
        name under which there is nothing, or nothing for us, and Unavailable otherwise.
        Cancelled, a fetch that was begun goes on, for others and for later. Meanwhile `tell` is
        called each time that it has gone on, once a second at most.
        """
        if self._is_due(name):
            await self._pull(name, tell)
        elif name in self._known:
            await trio.lowlevel.checkpoint()
            return self._known[name]
        image = await self._look(name)
        if image is not None:
            return image
        if self._policy == "never":
            raise spi.FailedPrecondition(
                f"the container engine has no image {name}, and images are not pulled here"
            )
        await self._pull(name, tell)
        image = await self._look(name)
        if image is None:
            # Its answer broke off, or somebody has removed it since.
            raise spi.Unavailable(f"image {name} cannot be had: it was fetched, and is not there")
        return image

    def _is_due(self, name: str) -> bool:
        # What is named by its digest stays what it is.
        if self._policy != "always" or "@" in name or name.startswith("sha256:"):
            return False
        age_seconds = trio.current_time() - self._pulled_at.get(name, -math.inf)
        return age_seconds >= self._pull_again_seconds

    async def _look(self, name: str) -> Image | None:
        changes = self._changes
        try:
            facts = await self._engine.inspect_image(name)
        except NoSuchThing:
            return None
        except Refused as error:
            raise _failure(name, str(error)) from error
        image = _image(name, facts)
        # Not if it may have changed since it was asked for.
        if self._is_told and changes == self._changes:
            self._known[name] = image
        return image

    async def _pull(self, name: str, tell: spi.Tell | None) -> None:
        """Take part in the one pull of this name."""
        pull = self._pulls.get(name)
        if pull is None:
            pull = self._pulls[name] = _Pull()
            # Not in the task of who asks first: were that cancelled, others still wait for it.
            self._nursery.start_soon(self._run_pull, name, pull)
        await _wait(name, pull, tell)
        if pull.error is not None:
            raise pull.error.again()

    async def _run_pull(self, name: str, pull: _Pull) -> None:
        try:
            await self._engine.pull(*split_name(name), pull.progress.note)
            self._pulled_at[name] = trio.current_time()
            self.forget()
        except (NoSuchThing, Refused) as error:
            pull.error = _failure(name, str(error))
        except NotAnswering as error:
            pull.error = error
        finally:
            del self._pulls[name]
            pull.done.set()


async def _wait(name: str, pull: _Pull, tell: spi.Tell | None) -> None:
    told: Mapping[str, str | float] = {}
    while not pull.done.is_set():
        if tell is not None and (facts := pull.progress.facts(name)) != told:
            told = facts
            tell(facts)
        with trio.move_on_after(_TELL_SECONDS):
            await pull.done.wait()


def split_name(name: str) -> tuple[str, str]:
    """The repository, and the tag or digest; ``latest`` without either."""
    repository, at, digest = name.partition("@")
    if at:
        return _without_tag(repository), digest
    head, colon, tag = name.rpartition(":")
    # A colon before the last slash is that of a port.
    if colon and "/" not in tag:
        return head, tag
    return name, "latest"


def _without_tag(repository: str) -> str:
    head, colon, tag = repository.rpartition(":")
    return head if colon and "/" not in tag else repository


def _failure(name: str, said: str) -> spi.StokerError:
    message = f"image {name} cannot be had: {said}"
    if any(phrase in said.lower() for phrase in _LASTING):
        return spi.FailedPrecondition(message)
    return spi.Unavailable(message)


def _image(name: str, facts: Facts) -> Image:
    configuration = facts.get("Config") or {}
    digests: Sequence[str] = facts.get("RepoDigests") or ()
    return Image(
        name=name,
        digest=str(facts["Id"]),
        repository_digests=tuple(digests),
        volumes=_volumes(name, configuration.get("Volumes") or ()),
        variables=tuple(variable.partition("=")[0] for variable in configuration.get("Env") or ()),
    )


def _volumes(name: str, wanted: Iterable[str]) -> tuple[str, ...]:
    volumes = set()
    for volume in wanted:
        path = posixpath.normpath(volume)
        if not path.startswith("/") or path.split("/")[1] in _OF_THE_SYSTEM:
            raise spi.FailedPrecondition(f"image {name} wants a volume at {volume}")
        volumes.add(path)
    return tuple(sorted(volumes))

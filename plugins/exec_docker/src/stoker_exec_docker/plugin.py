"""What this package offers to stoker."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from stoker import spi
from stoker_exec_docker.containers import Containers
from stoker_exec_docker.enforcement import enforcement
from stoker_exec_docker.engine import Engine, Facts, open_engine
from stoker_exec_docker.images import Images
from stoker_exec_docker.mounting import SharedFolder, open_shared_folder, sweep_shared_folders
from stoker_exec_docker.ownership import labels, owner_of, sweep
from stoker_exec_docker.settings import DockerSettings
from stoker_exec_docker.strategy import DockerStrategy

_NOBODY = 65534


@asynccontextmanager
async def open_strategy(
    settings: DockerSettings, context: spi.Context
) -> AsyncIterator[DockerStrategy]:
    """Give a strategy whose engine has answered, when what earlier lives left is removed.

    Raises ConfigurationError, which says what is wrong, for what cannot work here, and Unavailable
    for an engine that does not answer in time.
    """
    table = f"strategies.{context.name}"
    user = _user(settings, table)
    owner = owner_of(context.path("."), context.name)
    async with _engine(settings, table) as engine:
        info = await engine.info()
        check_engine(info, table)
        await sweep(engine, owner)
        folder, why_not_kept = await trio.to_thread.run_sync(_shared_folder, settings, owner)
        try:
            opened = _open(
                settings,
                engine,
                owner=owner,
                user=user,
                folder=folder,
                info=info,
                why_not_kept=why_not_kept,
            )
            async with opened as strategy:
                yield strategy
        finally:
            if folder is not None:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(folder.remove)


@asynccontextmanager
async def _open(
    settings: DockerSettings,
    engine: Engine,
    *,
    owner: str,
    user: spi.ProcessUser,
    folder: SharedFolder | None,
    info: Facts,
    why_not_kept: str,
) -> AsyncIterator[DockerStrategy]:
    async with trio.open_nursery() as nursery:
        containers = Containers(
            engine,
            nursery,
            labels=labels(owner),
            folder=folder,
            most_kept=settings.kept_containers,
            kept_seconds=settings.kept_seconds,
        )
        images = Images(
            engine,
            nursery,
            policy=settings.pull,
            pull_again_seconds=settings.pull_again_seconds,
        )
        nursery.start_soon(containers.expire)
        nursery.start_soon(images.watch)
        try:
            yield DockerStrategy(
                settings,
                engine,
                nursery,
                images=images,
                containers=containers,
                user=user,
                is_own_user=user.uid == os.geteuid(),
                can_keep=folder is not None,
                enforcement=enforcement(settings, info, user, why_not_kept=why_not_kept),
            )
        finally:
            await containers.close()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _engine(settings: DockerSettings, table: str) -> AsyncIterator[Engine]:
    try:
        engine = Engine(settings.endpoint, settings.call_timeout_seconds)
    except spi.ConfigurationError as error:
        raise spi.ConfigurationError(
            [f"{table}.endpoint: {problem}" for problem in error.problems]
        ) from error
    async with open_engine(engine):
        yield engine


def check_engine(info: Facts, table: str) -> None:
    """Raises ConfigurationError, which names what keeps an engine from being used."""
    if info.get("OSType", "linux") != "linux":
        raise spi.ConfigurationError([f"{table}: the engine runs no containers of Linux"])
    mapping = {"name=userns", "name=rootless"}.intersection(info.get("SecurityOptions") or ())
    if mapping:
        problem = f"{table}: the engine gives users other numbers ({min(mapping)}), "
        raise spi.ConfigurationError([problem + "so that nobody could remove what actions make"])
    if info.get("CgroupDriver") == "none":
        raise spi.ConfigurationError(
            [f"{table}: the engine has no control groups, by which processes are ended"]
        )


def _user(settings: DockerSettings, table: str) -> spi.ProcessUser:
    if os.geteuid() == 0:
        uid = settings.user or _NOBODY
        return spi.ProcessUser(uid, settings.group or uid)
    own = spi.ProcessUser(os.geteuid(), os.getegid())
    if settings.user not in (None, own.uid) or settings.group not in (None, own.gid):
        raise spi.ConfigurationError(
            [f"{table}.user: only a server that is root can run processes as another user"]
        )
    if settings.allowed_users or settings.allow_run_as_root or settings.allow_privileged:
        raise spi.ConfigurationError(
            [f"{table}: only a server that is root can remove what other users have made"]
        )
    return own


def _shared_folder(settings: DockerSettings, owner: str) -> tuple[SharedFolder | None, str]:
    if settings.keep_containers == "never":
        return None, ""
    if os.geteuid() != 0:
        return None, "only root can mount folders into those that run"
    top = Path(settings.mount_folder)
    try:
        sweep_shared_folders(top)
        return open_shared_folder(top, owner), ""
    except OSError as error:
        return None, f"folders cannot be mounted at {top}: {error.strerror}"


@spi.hookimpl
def stoker_execution_strategies() -> Mapping[str, spi.Provider[spi.ExecutionStrategy]]:
    """The one strategy of this package."""
    return {
        "docker": spi.Provider(DockerSettings, open_strategy, "containers, by Docker or Podman")
    }

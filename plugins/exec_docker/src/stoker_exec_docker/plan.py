"""What container a process needs, and how the engine is told. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stoker import spi
from stoker_exec_docker.images import Image
from stoker_exec_docker.settings import DockerSettings
from stoker_exec_docker.wishes import Wishes

KEEPER_PROCESSES: Final = 2
"""What a container has of its own: a shell that waits, and what it waits for."""

KEEPER_HAS_NO_SLEEP: Final = 127
"""What that shell exits with where there is nothing that it could wait for."""

_KEEPER: Final = (
    *("/bin/sh", "-c"),
    "while :; do sleep 2147483647 & wait $!; case $? in 12[67]) exit 127;; esac; done",
)
"""The first process of a container, to which all orphans fall. It reaps them, survives what an
action may do, and uses no time."""

_KEEPER_PATH: Final = "/usr/local/bin:/usr/bin:/bin"

_KEEPER_USER: Final = spi.ProcessUser(65533, 65533)

# An engine's own helper starts a command from within its group, with several threads.
_FEWEST_PROCESSES: Final = 16

_ROOT_CAPABILITIES: Final = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
)
"""What installing packages takes, and nothing that reaches beyond the container."""

_NETWORKS: Final = {"off": "none", "standard": "default", "host": "host"}
_PERIOD_MICROSECONDS: Final = 100_000
_SHORTEST_QUOTA_MICROSECONDS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlan:
    """All that decides whether a container will do for a process."""

    image: Image
    wishes: Wishes
    limits: spi.Limits
    tmpfs_bytes: int
    shm_bytes: int
    namespace: str
    """Whose actions it serves: what could remain in it is nobody else's."""
    keep: bool
    """Whether it serves one process after another."""
    folders: tuple[Path, ...]
    """What is mounted into it once and for all."""
    base: Path | None
    """Where its slot is to be seen, if it is kept: folders are mounted below it later."""

    @property
    def process_limit(self) -> int | None:
        """Of processes and threads, those of the container itself among them."""
        if self.limits.processes is None:
            return None
        return max(self.limits.processes, _FEWEST_PROCESSES) + KEEPER_PROCESSES

    @property
    def temporary_folders(self) -> Sequence[str]:
        """Those that a process may fill, beside its own."""
        return ("/tmp", "/var/tmp", *self.image.volumes)  # noqa: S108  # private to a container


def make_plan(
    settings: DockerSettings, spec: spi.ProcessSpec, wishes: Wishes, image: Image, *, can_keep: bool
) -> ContainerPlan:
    """The plan for a process. `can_keep` tells whether folders can be mounted later."""
    folders = (spec.root, spec.temporary_directory)
    base = Path(os.path.commonpath(folders)).parent
    # At the top it would hide the image itself.
    keep = wishes.reuse and can_keep and base != base.parent
    limits = spec.limits
    if limits.memory_bytes is None and settings.memory_bytes is not None:
        limits = spi.Limits(
            cpus=limits.cpus, memory_bytes=settings.memory_bytes, processes=limits.processes
        )
    return ContainerPlan(
        image=image,
        wishes=wishes,
        limits=limits,
        tmpfs_bytes=settings.tmpfs_bytes,
        shm_bytes=settings.shm_bytes,
        namespace=spec.namespace,
        keep=keep,
        folders=() if keep else folders,
        base=base if keep else None,
    )


def configuration(
    plan: ContainerPlan, labels: Mapping[str, str], slot: Path | None
) -> Mapping[str, Any]:
    """What the engine is told to make, in the words of its API."""
    user = _keeper_user(plan)
    return {
        "Image": plan.image.digest,
        "Entrypoint": list(_KEEPER),
        "Cmd": [],
        # Where the image's own variable leads is for the action to find out.
        "Env": [f"PATH={_KEEPER_PATH}"],
        "User": f"{user.uid}:{user.gid}",
        "Labels": dict(labels),
        "Hostname": "localhost",
        "WorkingDir": "/",
        "Healthcheck": {"Test": ["NONE"]},
        "NetworkDisabled": plan.wishes.network == "off",
        "StopSignal": "SIGKILL",
        "HostConfig": {
            **_rights(plan),
            **_bounds(plan),
            "Mounts": _mounts(plan, slot),
            "Tmpfs": _tmpfs(plan),
            "NetworkMode": _NETWORKS[plan.wishes.network],
            "IpcMode": "private",
            # What it writes goes to us, and to no log of the engine's.
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
        },
    }


def _keeper_user(plan: ContainerPlan) -> spi.ProcessUser:
    """Somebody else than the action, so that it cannot end it; our own user where we are not root,
    as nobody else's processes could be looked at."""
    # Engines give commands no more rights than the container was started with.
    is_like_action = os.geteuid() != 0 or plan.wishes.user.uid == 0
    return plan.wishes.user if is_like_action else _KEEPER_USER


def _rights(plan: ContainerPlan) -> dict[str, Any]:
    if plan.wishes.privileged:
        return {"Privileged": True}
    added = set(plan.wishes.capabilities)
    if plan.wishes.run_as_root:
        added |= set(_ROOT_CAPABILITIES)
    return {
        "Privileged": False,
        "ReadonlyRootfs": not plan.wishes.run_as_root,
        "CapDrop": ["ALL"],
        "CapAdd": sorted(added),
        "SecurityOpt": ["no-new-privileges"],
    }


def _bounds(plan: ContainerPlan) -> dict[str, Any]:
    limits = plan.limits
    bounds: dict[str, Any] = {"ShmSize": plan.shm_bytes}
    if limits.memory_bytes is not None:
        bounds |= {"Memory": limits.memory_bytes, "MemorySwap": limits.memory_bytes}
    if plan.process_limit is not None:
        bounds["PidsLimit"] = plan.process_limit
    if limits.cpus is not None:
        quota = max(int(limits.cpus * _PERIOD_MICROSECONDS), _SHORTEST_QUOTA_MICROSECONDS)
        bounds |= {"CpuPeriod": _PERIOD_MICROSECONDS, "CpuQuota": quota}
    return bounds


def _mounts(plan: ContainerPlan, slot: Path | None) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        # As a mount, and not as a bind of the older kind, which makes a source that is missing.
        {"Type": "bind", "Source": str(folder), "Target": str(folder)}
        for folder in plan.folders
    ]
    if slot is not None:
        mounts.append(
            {
                "Type": "bind",
                "Source": str(slot),
                "Target": str(plan.base),
                "BindOptions": {"Propagation": "rslave"},
            }
        )
    return mounts


def _tmpfs(plan: ContainerPlan) -> dict[str, str]:
    options = f"rw,exec,nosuid,nodev,mode=1777,size={plan.tmpfs_bytes}"
    if os.geteuid() != 0:
        # Engines take permissions over from the image, and only root can undo that; the owner
        # stays. Podman has no words for it.
        options += ",uid={},gid={}".format(*plan.wishes.user)
    return dict.fromkeys(plan.temporary_folders, options)

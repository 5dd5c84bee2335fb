"""``[strategies.NAME]`` with ``kind = "docker"``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from stoker import spi

Network = Literal["off", "standard", "host"]
"""off: loopback only. standard: the engine's own network. host: the machine's."""
PullPolicy = Literal["never", "missing", "always"]

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(gt=0)]
_Id = Annotated[int, msgspec.Meta(ge=1, lt=2**32 - 1)]


class DockerSettings(spi.Settings, frozen=True):
    """Which engine, which images, and what a container gets."""

    endpoint: str = "unix:///var/run/docker.sock"
    """The engine's socket, Docker's or that of Podman's compatible service."""
    engine_wait_seconds: _Seconds = 30.0
    """How long a start waits for an engine that does not answer."""
    call_timeout_seconds: _Seconds = 60.0
    """How long the engine may take for one call, pulls aside."""

    default_image: str | None = None
    """For actions without a ``container-image``; without it these are refused."""
    allowed_images: tuple[str, ...] = ("*",)
    """Shell patterns, one of which an action's image must match, as it is written there but for
    ``docker://``. The default image is always allowed."""
    pull: PullPolicy = "missing"
    """never: only what the engine has. missing: what it lacks. always: what is named by a tag is
    asked for again each `pull_again_seconds`."""
    pull_again_seconds: _Seconds = 300.0

    keep_containers: Literal["by-property", "always", "never"] = "by-property"
    """Whether a container serves one action after another: where ``dockerReuse=True`` asks for
    it, always, or never. The same holds for persistent workers, but that a worker rule's
    ``keep_containers`` stands for the property too."""
    kept_containers: Annotated[int, msgspec.Meta(ge=0)] = 8
    """How many containers wait idle for the next action, at most."""
    kept_seconds: _Seconds = 600.0
    """How long one waits idle, at most."""
    mount_folder: str = "/run/stoker-docker"
    """Where the folders of actions are mounted into kept containers from."""

    input_root_as_root: bool = False
    """Whether actions that do not say it (``input-root-as-root``) have their input root as ``/``,
    as BuildStream needs it. Of the image, only what keeps the container waiting is then used."""

    user: _Id | None = None
    """Whom processes run as. By default 65534 where the server is root, else its own user."""
    group: _Id | None = None
    """By default the same number as `user`, or the server's own group."""
    network: Network = "off"
    """What an action gets that asks for nothing."""
    allowed_networks: tuple[Network, ...] = ()
    """What ``dockerNetwork`` may ask for beside that; ``off`` always may."""
    allow_run_as_root: bool = False
    """Whether ``dockerRunAsRoot`` may be true."""
    allowed_users: tuple[_Id, ...] = ()
    """The numbers that ``dockerUser`` may name; needs a server that is root."""
    allow_privileged: bool = False
    """Whether ``dockerPrivileged`` may be true: whoever may use it has the whole machine."""
    allowed_capabilities: tuple[str, ...] = ()
    """What ``dockerAddCapabilities`` may name, such as ``SYS_PTRACE``."""
    tmpfs_bytes: _Positive = 2**30
    """The size of each of /tmp and /var/tmp, which are kept in memory."""
    shm_bytes: _Positive = 64 * 2**20
    """The size of /dev/shm."""
    memory_bytes: _Positive | None = None
    """What a container may use where the action sets no limit itself."""

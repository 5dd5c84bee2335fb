"""What those who run the server are told of engine, limits and process trees."""

from __future__ import annotations

from collections.abc import Sequence

from stoker import spi
from stoker_exec_docker.engine import Facts
from stoker_exec_docker.settings import DockerSettings


def enforcement(
    settings: DockerSettings, info: Facts, user: spi.ProcessUser, *, why_not_kept: str
) -> Sequence[str]:
    """Sentences for `ExecutionStrategy.enforcement`."""
    name, version = info.get("Name", ""), info.get("ServerVersion", "unknown")
    return [
        f"containers of {name} at {settings.endpoint}, version {version}",
        f"processes run as uid {user.uid}, gid {user.gid}, without capabilities",
        "the system of containers is read-only; /tmp, /var/tmp and /dev/shm are private",
        "process trees are ended by the container's control groups, or with the container",
        _limit("memory limits", info.get("MemoryLimit")),
        _limit("limits of processes", info.get("PidsLimit")),
        _limit("limits of processors", info.get("CpuCfsQuota") or info.get("CPUCfsQuota")),
        _kept(settings, why_not_kept),
        _network(settings),
    ]


def _limit(what: str, is_there: object) -> str:
    if is_there:
        return f"{what} are enforced by control groups"
    return f"degraded: {what} are not enforced (the engine has no control group for them)"


def _kept(settings: DockerSettings, why_not: str) -> str:
    if settings.keep_containers == "never":
        return "each action has a container of its own"
    if why_not:
        return f"degraded: each action has a container of its own: {why_not}"
    if settings.keep_containers == "always":
        return "containers serve one action after another"
    return "containers serve one action after another where dockerReuse=True asks for it"


def _network(settings: DockerSettings) -> str:
    texts = {
        "off": "no network but loopback",
        "standard": "the engine's network",
        "host": "the machine's network",
    }
    others = ", ".join(settings.allowed_networks)
    return texts[settings.network] + (f"; by property also {others}" if others else "")

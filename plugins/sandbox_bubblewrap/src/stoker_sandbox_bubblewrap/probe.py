"""Whether processes can be enclosed here, and what to do where they cannot."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from stoker import spi
from stoker_sandbox_bubblewrap.command_line import Tools

_PACKAGES = {
    "bwrap": "bubblewrap",
    "unshare": "util-linux",
    "mount": "util-linux or mount",
    "sh": "dash or another shell",
}
_SWITCHES = {
    "kernel/unprivileged_userns_clone": ("0", "1"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "0"),
    "user/max_user_namespaces": ("0", "10000"),
}
"""Kernel settings that forbid user namespaces: the value that does, and one that does not."""


def find_tools() -> Tools:
    """The programs that enclose. Raises ConfigurationError naming the packages of absent ones."""
    paths = {name: shutil.which(name) for name in Tools._fields}
    if absent := [name for name, path in paths.items() if path is None]:
        raise spi.ConfigurationError(
            [f"{name} is not installed: install the package {_PACKAGES[name]}" for name in absent]
        )
    return Tools(**{name: str(Path(path).absolute()) for name, path in paths.items() if path})


_WAY_OUT_OF_CONTAINERS = (
    "in a container, allow user namespaces, mounts and an unmasked /proc "
    "(docker: --security-opt seccomp=unconfined --security-opt systempaths=unconfined)"
)


async def check(sandbox: spi.Sandbox) -> None:
    """Enclose one trivial process. Raises ConfigurationError with the reason and the way out."""
    async with _open_folder() as folder:
        try:
            async with sandbox.enclose(_trivial(folder)) as spec:
                ended = await trio.run_process(
                    spec.argv, env={}, cwd=folder, capture_stdout=True,
                    stderr=subprocess.STDOUT, check=False, stdin=b"",
                )  # fmt: skip
        except spi.StokerError as error:
            raise spi.ConfigurationError([f"nothing can be enclosed: {error}"]) from error
    if ended.returncode != 0:
        said = ended.stdout.decode(errors="replace").strip() or f"exit code {ended.returncode}"
        raise spi.ConfigurationError(
            [f"nothing can be enclosed (tried in {folder}): {said}", *_ways_out()]
        )


def _trivial(folder: Path) -> spi.ProcessSpec:
    return spi.ProcessSpec(
        argv=("true",),
        environment={"PATH": "/usr/bin:/bin"},
        root=folder / "root",
        temporary_directory=folder / "temporary",
        stderr=folder / "stderr",
        stdout=folder / "stdout",
    )


@asynccontextmanager
async def _open_folder() -> AsyncIterator[Path]:
    folder = Path(await trio.to_thread.run_sync(tempfile.mkdtemp, "", "stoker-"))
    try:
        (folder / "root").mkdir()
        (folder / "temporary").mkdir()
        yield folder
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(shutil.rmtree, folder)


def _ways_out() -> list[str]:
    ways = []
    for name, (forbidding, allowing) in _SWITCHES.items():
        if _read(name) == forbidding:
            setting = name.replace("/", ".")
            ways.append(
                f"user namespaces are forbidden by {setting}: sysctl -w {setting}={allowing}"
            )
    return ways or [_WAY_OUT_OF_CONTAINERS]


def _read(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text(encoding="ascii").strip()
    except OSError:
        return ""

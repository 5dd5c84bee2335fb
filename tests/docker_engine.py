"""A container engine for tests, and images made without a registry.

``DOCKER_HOST`` names one that runs already. Else one is started, with folders of its own and
without any network, where that is possible: by root, where ``dockerd`` is installed.

One with a network for its containers runs in a network namespace, from which nothing leads out:
what it makes there ends with it.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUSYBOX = "stoker-test-busybox:1"
PYTHON = "stoker-test-python:2"

_PATIENCE_SECONDS = 60.0


class NoEngine(Exception):
    """Why there is no engine here."""


class TestEngine:
    """A ``dockerd`` with folders of its own."""

    __test__ = False

    def __init__(self, folder: Path, *, networked: bool = False) -> None:
        self._folder = folder
        self._networked = networked
        self.endpoint = f"unix://{folder}/socket"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers. Raises NoEngine."""
        folder = self._folder
        log = (folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [
                    *(("unshare", "--net") if self._networked else ()),
                    *("dockerd", "--data-root", str(folder / "data")),
                    *("--exec-root", str(folder / "exec"), "-p", str(folder / "pid")),
                    *("-H", self.endpoint, "--iptables=false", "--ip6tables=false"),
                    *("--ip-forward=false", "--ip-masq=false"),
                    *(() if self._networked else ("--bridge=none",)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while subprocess.run(
            _docker(self.endpoint, "version"), capture_output=True, check=False
        ).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (folder / "log").read_text(errors="replace")[-500:]
                raise NoEngine(f"dockerd does not start: {tail}")
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it; its containers end with it, unless it is killed: then when it starts again."""
        assert self._process is not None
        containerd = self._folder / "exec" / "containerd" / "containerd.pid"
        below = containerd.read_text() if containerd.exists() else ""
        self._process.send_signal(number)
        self._process.wait(_PATIENCE_SECONDS)
        # It ends a moment later, and a new dockerd that still finds it would wait for its answers.
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while below and Path("/proc", below.strip()).exists() and time.monotonic() < deadline:
            time.sleep(0.01)


@contextmanager
def running_engine(*, networked: bool = False) -> Iterator[TestEngine]:
    """A new engine. Raises NoEngine where none can be had."""
    if os.geteuid() != 0:
        raise NoEngine("dockerd can only be started by root")
    if missing := [name for name in ("dockerd", "docker", "busybox") if not shutil.which(name)]:
        raise NoEngine(f"not installed: {', '.join(missing)}")
    # Not below the folders of tests: the names of sockets are short.
    with tempfile.TemporaryDirectory(prefix="sd-", ignore_cleanup_errors=True) as folder:
        engine = TestEngine(Path(folder), networked=networked)
        try:
            engine.start()
            yield engine
        finally:
            engine.stop()
            _unmount_below(folder)


def _unmount_below(folder: str) -> None:
    """An engine that was killed leaves its mounts, and each keeps the folder."""
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed([point for point in points if point.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)


@contextmanager
def some_endpoint() -> Iterator[str]:
    """The endpoint of an engine that has the images. Raises NoEngine where none can be had."""
    if endpoint := os.environ.get("DOCKER_HOST"):
        import_images(endpoint)
        yield endpoint
        return
    with running_engine() as engine:
        import_images(engine.endpoint)
        yield engine.endpoint


def import_images(endpoint: str, python: bool = True) -> None:
    """Make the images that the engine lacks. Raises NoEngine."""
    if not shutil.which("busybox"):
        raise NoEngine("not installed: busybox, of which images are made")
    _import(endpoint, BUSYBOX, busybox_tree())
    if python:
        _import(endpoint, PYTHON, python_tree())


def _import(endpoint: str, name: str, files: dict[str, Path | str]) -> None:
    if subprocess.run(
        _docker(endpoint, "image", "inspect", name), capture_output=True, check=False
    ).returncode:
        with tempfile.TemporaryFile() as archive:
            write_tree(archive, files)
            archive.seek(0)
            subprocess.run(
                _docker(endpoint, "import", "-c", "ENV OF_THE_IMAGE=seen", "-", name),
                stdin=archive,
                stdout=subprocess.DEVNULL,
                check=True,
            )


def _docker(endpoint: str, *arguments: str) -> list[str]:
    return ["docker", "-H", endpoint, *arguments]


def busybox_tree() -> dict[str, Path | str]:
    """Paths and their content: a file of this machine, or the target of a link."""
    path = shutil.which("busybox")
    assert path is not None
    tree: dict[str, Path | str] = {"bin/busybox": Path(path).resolve()}
    listed = subprocess.run([path, "--list"], capture_output=True, text=True, check=True)
    tree |= {f"bin/{name}": "busybox" for name in listed.stdout.split() if name != "busybox"}
    return tree


def python_tree() -> dict[str, Path | str]:
    """As `busybox_tree`, with this machine's own Python and bash, and what they need."""
    program = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}").resolve()
    library = Path(sysconfig.get_path("stdlib"))
    files = [program, *library.glob("lib-dynload/*.so"), *_library_files(library)]
    tree = busybox_tree() | {_inside(file): file for file in files}
    programs = {program}
    if bash := shutil.which("bash"):
        programs.add(Path(bash))
        tree["bin/bash"] = Path(bash).resolve()
    for file in [*programs, *library.glob("lib-dynload/*.so")]:
        tree |= {_inside(path): path.resolve() for path in loaded_by(file)}
    return tree | {"bin/python3": str(program)}


def _library_files(library: Path) -> Iterator[Path]:
    unwanted = {"test", "idlelib", "tkinter", "site-packages", "dist-packages", "__pycache__"}
    for path in library.rglob("*.py"):
        parts = path.relative_to(library).parts
        if not unwanted & set(parts) and not parts[0].startswith("config-"):
            yield path


def loaded_by(file: Path) -> Iterator[Path]:
    listed = subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=False)
    for word in listed.stdout.split():
        if word.startswith("/"):
            yield Path(word)


def _inside(path: Path) -> str:
    return str(path).lstrip("/")


def write_tree(archive: io.IOBase, files: dict[str, Path | str]) -> None:
    """Write an archive that an image can be made of."""
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for folder in ("tmp", "etc", "root"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
                continue
            entry.size, entry.mode = content.stat().st_size, 0o755
            with content.open("rb") as file:
                tar.addfile(entry, file)

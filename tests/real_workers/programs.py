"""Where the workers are that `install`, beside this file, fetches and builds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SERVER_JAR = Path("/usr/share/bazel/A-server.jar")
_CLASSES = "com.google.devtools.build"

# They live for a few requests: neither is worth much compiling or more than one thread.
_JAVA_OPTIONS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")


class ProgramAbsent(Exception):
    """Says which program is not there, and why."""


def folder() -> Path:
    """What `install` fills."""
    return Path(os.environ.get("STOKER_REAL_WORKERS") or REPOSITORY / "build" / "real-workers")


def node() -> str:
    """The program. Raises ProgramAbsent."""
    return _program("node")


def node_modules() -> Path:
    """Where packages of npm lie. Raises ProgramAbsent."""
    return _built("npm") / "node_modules"


def example_worker(name: str = "ExampleWorker") -> list[str]:
    """What starts one of Bazel's example workers. Raises ProgramAbsent."""
    return _java(f"{_CLASSES}.lib.worker.{name}", _built("example-worker"), SERVER_JAR)


def java_builder(temporary_directory: Path) -> list[str]:
    """What starts Bazel's worker around javac. Raises ProgramAbsent.

    It leaves a folder in `temporary_directory` for every request, and does not heed TMPDIR.
    """
    options = f"-Djava.io.tmpdir={temporary_directory}"
    name = f"{_CLASSES}.buildjar.VanillaJavaBuilder"
    return _java(name, _built("java-builder"), SERVER_JAR, options)


def _java(name: str, classes: Path, jar: Path, *options: str) -> list[str]:
    return [_program("java"), *_JAVA_OPTIONS, *options, "-cp", f"{classes}:{jar}", name]


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ProgramAbsent(f"there is no `{name}` on the PATH")
    return found


def _built(name: str) -> Path:
    built = folder() / name
    if not (built / "made-of").exists():
        raise ProgramAbsent(f"tests/real_workers/install has made no {name}")
    return built

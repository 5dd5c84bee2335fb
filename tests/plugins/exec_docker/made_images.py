"""Images for one test, made of whatever it says."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.docker_engine import write_tree

MakeImage = Callable[..., str]


@contextmanager
def image_maker(endpoint: str) -> Iterator[MakeImage]:
    """Gives a function of a tree, as `write_tree` takes it, and of changes, as ``docker import``
    does, that returns the image's name. They are gone afterwards."""
    names: list[str] = []

    def make(tree: dict[str, Path | str], *changes: str) -> str:
        name = f"stoker-test-made-{len(names)}:1"
        words = [word for change in changes for word in ("-c", change)]
        with tempfile.TemporaryFile() as archive:
            write_tree(archive, tree)
            archive.seek(0)
            command = ["docker", "-H", endpoint, "import", *words, "-", name]
            subprocess.run(command, stdin=archive, stdout=subprocess.DEVNULL, check=True)
        names.append(name)
        return name

    try:
        yield make
    finally:
        if names:
            remove = ["docker", "-H", endpoint, "rmi", "-f", *names]
            subprocess.run(remove, stdout=subprocess.DEVNULL, check=True)

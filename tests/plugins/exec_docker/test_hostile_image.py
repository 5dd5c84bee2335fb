"""An image made by somebody who wants more than an action is to have."""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker_engine import busybox_tree, write_tree

from .conftest import OpenStrategy
from .places import output, place_at

NAME = "stoker-test-hostile:1"
WISHES = [
    "USER root",
    'ENTRYPOINT ["/bin/sh", "-c", "echo ENTRYPOINT > /data/left; exec sleep 1000"]',
    "VOLUME /data",
    "ENV LD_PRELOAD=/no/such.so PATH=/hostile",
    "HEALTHCHECK --interval=1s CMD touch /data/left",
]


@pytest.fixture
def image(endpoint: str) -> Iterator[str]:
    with tempfile.TemporaryFile() as archive:
        write_tree(archive, busybox_tree())
        archive.seek(0)
        with tarfile.open(fileobj=archive, mode="a") as tar:
            _add_traps(tar)
        archive.seek(0)
        changes = [word for wish in WISHES for word in ("-c", wish)]
        command = ["docker", "-H", endpoint, "import", *changes, "-", NAME]
        subprocess.run(command, stdin=archive, stdout=subprocess.DEVNULL, check=True)
    yield NAME
    remove = ["docker", "-H", endpoint, "rmi", "-f", NAME]
    subprocess.run(remove, stdout=subprocess.DEVNULL, check=True)


def _add_traps(tar: tarfile.TarFile) -> None:
    # A temporary folder that is a way out, one that is the system's own, ...
    for name, target in (("var/tmp", "/../../../../../../etc"), ("dev", "/etc")):
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        tar.addfile(entry)
    # ... and the memory of the machine as a file.
    entry = tarfile.TarInfo("memory")
    entry.type, entry.mode, entry.devmajor, entry.devminor = tarfile.CHRTYPE, 0o666, 1, 1
    tar.addfile(entry)


@pytest.mark.parametrize("keep", ["always", "never"])
async def test_an_image_gains_nothing(  # ISO-04, ISO-05, ISO-07
    open_docker: OpenStrategy, tmp_path: Path, endpoint: str, image: str, keep: str
) -> None:
    untouched = sorted(Path("/etc").iterdir())
    async with open_docker(default_image=image, keep_containers=keep) as strategy:
        for number in range(2):
            place = place_at(tmp_path / "actions" / str(number), strategy.user)
            said = await output(
                strategy,
                place,
                "cat /data/left; echo from-the-last > /data/left; ls -A /var/tmp /etc; "
                "echo x > /var/tmp/escaped; id -u; "
                "head -c 1 /memory && echo MEMORY; env; "
                'ls "$1" && echo SOCKET; mount -t tmpfs none /mnt && echo MOUNTED; echo end',
                endpoint.removeprefix("unix://"),
            )
            assert "end" in said.split("\n")
            for shouting in ("ENTRYPOINT", "from-the-last", "MEMORY", "SOCKET", "MOUNTED"):
                assert shouting not in said.split("\n")
            for variable in ("LD_PRELOAD", "/hostile"):
                assert variable not in said
            if os.geteuid() == 0:
                assert "\n65534\n" in said
    assert sorted(Path("/etc").iterdir()) == untouched

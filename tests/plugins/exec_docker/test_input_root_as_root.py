"""Input roots that are whole systems, and are ``/`` for their actions."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from stoker import spi
from stoker.testing.execution_strategy_laws import Workplace, outcome, run
from tests.docker_engine import busybox_tree

from .conftest import OpenStrategy
from .places import asking, place_at

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def system_at(folder: Path, user: spi.ProcessUser | None) -> Workplace:
    """A place whose input root is a small system."""
    place = place_at(folder, user)
    for name, content in busybox_tree().items():
        path = place.root / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, Path):
            path.write_bytes(content.read_bytes())
            path.chmod(0o755)
        else:
            path.symlink_to(content)
    (place.root / "usr").symlink_to(".")
    (place.root / "task").mkdir()
    (place.root / "task" / "script").write_text("#!/usr/bin/sh\necho script; exit 4\n")
    (place.root / "task" / "script").chmod(0o755)
    for path in (place.root, place.root / "task"):
        os.chown(path, *(user or (0, 0)))
    return place


LOOK = """
exec 2>&1
pwd; ls /; echo made > /new; mkdir /task/out && echo made > out/file; echo kept > $TMPDIR/x; ls /tmp
echo x > /dev/null && test -d /proc/self && echo system; echo x > /proc/sys/kernel/hostname
ls -d "/proc/1/root"/etc "$1"; cat "/proc/self/root"/task/script | head -n 1; id -u
mount -t tmpfs none /task && echo MOUNTED; cd ../../..; pwd; ls -d bin
"""


@pytest.mark.parametrize("by", ["property", "setting"])
async def test_an_input_root_is_the_root(  # ISO-10
    open_docker: OpenStrategy, tmp_path: Path, by: str
) -> None:
    settings = {"input_root_as_root": True} if by == "setting" else {}
    asked = {"input_root_as_root": "True"} if by == "property" else {}
    async with open_docker(keep_containers="always", **settings) as strategy:
        place = system_at(tmp_path / "actions" / "1", strategy.user)
        names = sorted(path.name for path in place.root.iterdir())
        spec = asking(place.script(LOOK, str(place.root)), **asked)
        temporary = {"TMPDIR": str(spec.temporary_directory), "PATH": "/usr/bin"}
        spec = replace(spec, environment=temporary, working_directory="task")
        ended = await run(strategy, spec)
        said = place.stdout.read_text()
        assert ended.code == 0, said
        lines = said.splitlines()
        assert lines[0] == "/task"
        assert {"bin", "task", "proc", "dev", "sys", "tmp"} == set(lines[1:8]) - {"usr"}
        for word in ("x", "system", "#!/usr/bin/sh", "65534", "/", "bin"):
            assert word in lines
        assert "MOUNTED" not in said
        assert f"{place.root}: No such file" in said
        assert "{}/etc: Permission denied".format("/proc/1/root") in said
        assert (place.root / "new").read_text() == "made\n"
        assert (place.root / "task" / "out" / "file").read_text() == "made\n"
        assert (spec.temporary_directory / "x").read_text() == "kept\n"
        # Nothing is left that was not made by the action, and no mount came to the machine.
        assert sorted(path.name for path in place.root.iterdir()) == sorted([*names, "new"])
        assert str(place.root) not in Path("/proc/self/mountinfo").read_text()
        program = replace(asking(place.spec("./script"), **asked), working_directory="task")
        assert (await outcome(strategy, program)).code == 4
        assert strategy.containers.idle == 0


async def test_what_cannot_be_a_root_is_refused(open_docker: OpenStrategy, tmp_path: Path) -> None:
    async with open_docker(input_root_as_root=True) as strategy:
        place = system_at(tmp_path / "actions" / "1", strategy.user)
        (place.root / "proc").symlink_to("/etc")
        with pytest.raises(spi.FailedPrecondition, match="its proc is no directory"):
            await run(strategy, place.spec("true"))
        (place.root / "proc").unlink()
        with pytest.raises(spi.ProgramNotStarted, match="not found"):
            await run(strategy, place.spec("/no/such"))
        away = asking(place.script("ls -d /task"), input_root_as_root="false")
        assert (await outcome(strategy, away)).code == 1

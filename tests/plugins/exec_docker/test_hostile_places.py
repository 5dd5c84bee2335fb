"""Images and actions whose files and names lead somewhere else than they seem to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from stoker import spi
from stoker.testing.execution_strategy_laws import outcome
from stoker_exec_docker.ownership import HOLDER, this_holder
from tests.docker_engine import BUSYBOX, busybox_tree, loaded_by

from .conftest import OpenStrategy
from .made_images import MakeImage
from .places import asking, keeping, output, place_at


async def test_a_link_of_an_image_leads_nowhere_out_here(  # ISO-07
    open_docker: OpenStrategy, make_image: MakeImage, tmp_path: Path
) -> None:
    outside = tmp_path / "outside" / "tmp"
    outside.mkdir(parents=True)
    (outside / "file").write_text("of the machine")
    mode = outside.stat().st_mode
    tree = busybox_tree() | {"var": str(outside.parent), "data": str(outside.parent)}
    image = make_image(tree, "VOLUME /data/tmp/../tmp")
    async with open_docker(default_image=image, keep_containers="always") as strategy:
        for number in range(2):
            place = place_at(tmp_path / "actions" / str(number), strategy.user)
            said = await output(strategy, place, "cat /var/tmp/*; echo left > /var/tmp/left")
            assert "left\n" not in said
            assert "of the machine" not in said
    assert (outside / "file").read_text() == "of the machine"
    assert outside.stat().st_mode == mode


@keeping
async def test_a_tree_that_is_too_deep_to_empty_ends_its_container(
    open_docker: OpenStrategy, tmp_path: Path
) -> None:
    async with open_docker(keep_containers="always") as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        dig = "cd /tmp; while mkdir d && cd d 2>/dev/null; do :; done; echo deep"
        assert await output(strategy, place, dig) == "deep\n"
        assert strategy.containers.idle == 0
        assert await output(strategy, place, "ls -d /tmp/d 2>/dev/null; echo next") == "next\n"


@pytest.mark.parametrize("how", ["kill", "rm"])
async def test_a_container_that_somebody_ended_is_not_used(
    open_docker: OpenStrategy, tmp_path: Path, endpoint: str, how: str
) -> None:
    async with open_docker(keep_containers="always") as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        assert await outcome(strategy, place.spec("true")) == spi.Exit(0)
        docker = ["docker", "-H", endpoint]
        ours = f"label={HOLDER}={this_holder()}"
        found = subprocess.run(
            [*docker, "ps", "-q", "--filter", ours], capture_output=True, check=True
        )
        force = ["-f"] if how == "rm" else []
        names = found.stdout.decode().split()
        subprocess.run([*docker, how, *force, *names], capture_output=True, check=True)
        assert await outcome(strategy, place.spec("true")) == spi.Exit(0)


@keeping
async def test_two_strategies_of_one_server_keep_containers(
    open_docker: OpenStrategy, endpoint: str, tmp_path: Path
) -> None:
    async with (
        open_docker(keep_containers="always") as one,
        open_docker(name="other", keep_containers="always") as other,
    ):
        for number, strategy in enumerate((one, other, one, other)):
            place = place_at(tmp_path / "actions" / str(number), strategy.user)
            for script in ("echo > /tmp/made", "ls -d /tmp/made 2>/dev/null"):
                assert await output(strategy, place, script) == ""
        assert one.containers.idle == other.containers.idle == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
async def test_the_folder_for_mounts_may_be_named_by_a_link(
    open_docker: OpenStrategy, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    settings = {"keep_containers": "always", "mount_folder": str(tmp_path / "link" / "mounts")}
    async with open_docker(**settings) as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        assert await outcome(strategy, place.spec("true")) == spi.Exit(0)
        assert strategy.containers.idle == 1
    assert "mounts" not in Path("/proc/self/mountinfo").read_text()


async def test_an_image_without_what_a_container_waits_by_is_refused_by_name(
    open_docker: OpenStrategy, make_image: MakeImage, tmp_path: Path
) -> None:
    dash = Path(shutil.which("dash") or "/bin/sh").resolve()
    libraries: dict[str, Path | str] = {
        str(path).lstrip("/"): path.resolve() for path in loaded_by(dash)
    }
    shell = libraries | {"bin/sh": dash}
    without_shell = make_image({"etc/empty": dash})
    without_sleep = make_image(shell)
    hidden = make_image(
        shell | {"usr/bin/sleep": Path("/bin/sleep").resolve()}, "ENV PATH=/hostile"
    )
    foreign = make_image({"bin/sh": Path(__file__)})
    async with open_docker() as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        for image, word in ((without_shell, "/bin/sh"), (without_sleep, "sleep"), (foreign, "sh")):
            with pytest.raises(spi.FailedPrecondition, match=f"{image}.*{word}"):
                await outcome(strategy, asking(place.spec("/bin/sh"), container_image=image))
        spec = asking(place.script("exit 3"), container_image=hidden)
        assert (await outcome(strategy, spec)).code == 3


@pytest.mark.parametrize("volume", ["/", "/proc", "/dev/../sys/fs", "here"])
async def test_an_image_that_wants_a_volume_over_the_system_is_refused_by_name(
    open_docker: OpenStrategy, make_image: MakeImage, tmp_path: Path, volume: str
) -> None:
    image = make_image(busybox_tree(), f"VOLUME {volume}")
    async with open_docker() as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        with pytest.raises(spi.FailedPrecondition, match=f"{image}.*{volume}"):
            await outcome(strategy, asking(place.spec("true"), container_image=image))
        spec = asking(place.spec("true"), container_image=BUSYBOX)
        assert await outcome(strategy, spec) == spi.Exit(0)

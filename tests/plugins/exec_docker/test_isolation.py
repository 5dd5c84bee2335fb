"""What a process in a container cannot do, and what is left of it for the next."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from stoker import spi
from stoker.testing.execution_strategy_laws import Witness, outcome, run
from tests.docker_engine import BUSYBOX, NoEngine, import_images, running_engine

from .conftest import OpenStrategy
from .places import asking, keeping, output, place_at


def _has_all_capabilities() -> bool:
    status = Path("/proc/self/status").read_text()
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    return int(status.split("CapBnd:")[1].split()[0], 16) == (1 << last + 1) - 1


SECRET = "nothing that an action should know"

both_ways = pytest.mark.parametrize("keep", ["always", "never"])


@both_ways
async def test_nothing_of_the_machine_is_there(  # ISO-04, ISO-05, ISO-07, ISO-08
    open_docker: OpenStrategy, tmp_path: Path, endpoint: str, keep: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o644)
    listener = socket.create_server(("127.0.0.1", 0))
    async with open_docker(keep_containers=keep) as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        other = place_at(tmp_path / "actions" / "2", strategy.user)
        (other.root / "input").write_text(SECRET)
        (place.root / "link").symlink_to(secret)
        (place.root / "input").write_text("input")
        said = await output(
            strategy,
            place,
            "id -u; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; "
            'cat link "$1" "$2"/input; ls "$(dirname "$(dirname "$2")")"; '
            "for d in / /bin /etc /usr /run /proc/sys /sys; do (: > $d/spoilt) && echo SPOILT $d; "
            "done; : > /tmp/made && : > /dev/shm/made && echo private; "
            'echo changed >> input && echo CHANGED; ls -l "$3" && echo SOCKET; '
            'nc -w 1 127.0.0.1 "$4" < /dev/null && echo CONNECTED; '
            "ip link | grep -c '^[0-9]'; kill -9 1; kill -9 -1; mkdir made; echo kept > made/file",
            *(str(secret), str(other.root)),
            *(endpoint.removeprefix("unix://"), str(listener.getsockname()[1])),
        )
        listener.close()
        # Where the server is not root, inputs are copies, and the process's own.
        changed = ["CHANGED"] if strategy.protects_inputs else []
        for shouting in ("SPOILT", *changed, "SOCKET", "CONNECTED", SECRET, "2\n2\n"):
            assert shouting not in said
        assert "CapEff:\t0000000000000000" in said
        assert "NoNewPrivs:\t1" in said
        assert "Seccomp:\t2" in said
        assert "private" in said
        assert (place.root / "made" / "file").read_text() == "kept\n"
        assert not Path("/tmp/made").exists()
        if os.geteuid() == 0:
            assert strategy.protects_inputs
            assert said.startswith("65534\n")


@keeping
async def test_what_a_process_leaves_is_gone_for_the_next(
    open_docker: OpenStrategy, tmp_path: Path
) -> None:
    async with open_docker(keep_containers="always") as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        make = "mkdir -p /tmp/a/b && echo x > /tmp/a/b/c && echo x > /dev/shm/left && echo made"
        assert await output(strategy, place, make) == "made\n"
        next_place = place_at(tmp_path / "actions" / "2", strategy.user)
        look = 'ls -d /tmp/a /dev/shm/left "$1" 2>/dev/null; find /dev/mqueue /var/tmp -type f'
        assert await output(strategy, next_place, look, str(place.root)) == ""
        assert strategy.containers.idle == 1  # the same one served both


@keeping
async def test_containers_are_shared_by_nobody_else(
    open_docker: OpenStrategy, tmp_path: Path
) -> None:
    async with open_docker(keep_containers="always", kept_containers=3) as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        spec = place.spec("true")
        limited = replace(spec, limits=spi.Limits(memory_bytes=2**28))
        for each in (spec, replace(spec, namespace="other"), limited, spec):
            assert await outcome(strategy, each) == spi.Exit(0)
        assert strategy.containers.idle == 3


@keeping
async def test_a_kept_container_outlives_what_is_ended_in_it(  # ISO-09
    open_docker: OpenStrategy, tmp_path: Path
) -> None:
    async with open_docker(keep_containers="always") as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        witness = Witness(place.root / "witness")
        text = "exec 9>witness; echo ready >&9; sleep 1000 & sleep 1000"
        with trio.CancelScope() as scope:
            async with strategy.start(place.script(text)):
                await witness.wait_for("ready")
                scope.cancel()
                await trio.sleep_forever()
        await witness.wait_until_all_are_gone()
        witness.close()
        assert strategy.containers.idle == 1
        assert await outcome(strategy, place.spec("true")) == spi.Exit(0)
        assert strategy.containers.idle == 1


async def test_out_of_memory_is_told_of_the_one_that_was(  # ISO-06, RUN-23
    open_docker: OpenStrategy, tmp_path: Path
) -> None:
    limits = spi.Limits(memory_bytes=64 * 2**20)
    async with open_docker(keep_containers="always") as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        hungry = place.script("head -c 400000000 /dev/zero | tail -n 1", limits=limits)
        assert "out of memory" in (await run(strategy, hungry)).breach
        killed = await run(strategy, place.script("kill -9 $$", limits=limits))
        assert (killed.code, killed.breach) == (137, "")


async def test_a_network_is_given_where_it_is_allowed(  # ISO-03
    open_docker: OpenStrategy, tmp_path: Path
) -> None:
    async with open_docker(allowed_networks=("host",)) as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        count = "cat /proc/net/route | wc -l; ls /sys/class/net"
        outside = len(list(Path("/sys/class/net").iterdir()))
        inside = await output(strategy, place, "ls /sys/class/net | wc -l", dockerNetwork="host")
        assert int(inside) == outside
        assert "eth" not in await output(strategy, place, count, dockerNetwork="off")
        with pytest.raises(spi.FailedPrecondition, match="dockerNetwork=standard"):
            await output(strategy, place, count, dockerNetwork="standard")


@pytest.fixture
def networked_endpoint() -> Iterator[str]:
    """An engine that has a network for its containers."""
    try:
        with running_engine(networked=True) as engine:
            import_images(engine.endpoint, python=False)
            yield engine.endpoint
    except NoEngine as error:
        pytest.skip(f"no container engine with a network: {error}")


async def test_the_network_of_the_engine_is_for_those_who_ask_for_it(  # ISO-03, ISO-05
    open_docker: OpenStrategy, tmp_path: Path, networked_endpoint: str
) -> None:
    settings = {"endpoint": networked_endpoint, "keep_containers": "always"}
    # A refusal comes from where the way leads to: it goes there and back.
    look = (
        "ls /sys/class/net; "
        "gateway=$(route -n | grep ^0.0.0.0 | tr -s ' ' | cut -d ' ' -f 2); "
        'nc -w 2 "${gateway:-172.17.0.1}" 1 2>&1 < /dev/null'
    )
    async with open_docker(**settings, allowed_networks=("standard",)) as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        for asked in ("standard", "bridge"):
            said = await output(strategy, place, look, dockerNetwork=asked)
            assert said.split()[:2] == ["eth0", "lo"]
            assert "Connection refused" in said
        for properties in ({}, {"dockerNetwork": "off"}):
            said = await output(strategy, place, look, **properties)
            assert said.split()[0] == "lo"
            assert "unreachable" in said
    async with open_docker("given", **settings, network="standard") as strategy:
        place = place_at(tmp_path / "actions" / "2", strategy.user)
        assert "Connection refused" in await output(strategy, place, look)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run processes as other users")
async def test_other_users_and_rights_are_given_where_they_are_allowed(  # ISO-03
    open_docker: OpenStrategy, tmp_path: Path
) -> None:
    allowed = {"allowed_users": (4711,), "allow_run_as_root": True, "allow_privileged": True}
    async with open_docker(**allowed, allowed_capabilities=("SYS_PTRACE",)) as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        (place.root / "below").mkdir()
        os.chown(place.root / "below", *(strategy.user or (0, 0)))
        assert not strategy.protects_inputs
        said = await output(strategy, place, "id -u; echo > below/made", dockerUser="4711")
        assert said == "4711\n"
        assert (place.root / "below").stat().st_uid == 65534
        said = await output(strategy, place, "id -u; echo > below/more", dockerRunAsRoot="true")
        assert said == "0\n"
        caps = "grep CapBnd /proc/self/status"
        bounded = await output(strategy, place, caps, dockerAddCapabilities="CAP_SYS_PTRACE")
        assert int(bounded.split()[1], 16) == 1 << 19
        if not _has_all_capabilities():
            return  # an engine can give no more than it has: privileged containers do not start
        everything = await output(strategy, place, caps, dockerPrivileged="true")
        assert int(everything.split()[1], 16) & 1 << 21


async def test_labels_are_on_everything_and_nothing_is_left(  # ISO-09
    open_docker: OpenStrategy, tmp_path: Path, endpoint: str
) -> None:
    listed = ["docker", "-H", endpoint, "ps", "-a", "--format", "{{.Labels}}"]
    async with open_docker(keep_containers="always") as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        async with strategy.start(place.spec("sleep", "1000")):
            labels = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
            assert "build.stoker.owner=" in labels
            assert "build.stoker.holder=" in labels
    assert subprocess.run(listed, capture_output=True, text=True, check=True).stdout == ""


async def test_asking_for_an_image_that_is_absent_is_refused_by_name(
    open_docker: OpenStrategy, tmp_path: Path
) -> None:
    async with open_docker() as strategy:
        place = place_at(tmp_path / "actions" / "1", strategy.user)
        spec = asking(place.spec("true"), container_image="docker://no/such:image")
        with pytest.raises(spi.FailedPrecondition, match="no/such:image"):
            await run(strategy, spec)
        spec = asking(place.spec("true"), container_image=f"docker://{BUSYBOX}")
        assert await outcome(strategy, spec) == spi.Exit(0)
        surroundings = await strategy.identify_surroundings(spec.properties)
        assert "sha256:" in surroundings
        assert surroundings == await strategy.identify_surroundings({})

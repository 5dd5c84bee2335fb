"""Settings that cannot work are told by table and key, and those that can are kept."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from stoker import spi
from stoker.machine import usable_memory_bytes
from stoker.testing.execution_strategy_laws import Workplace, outcome, run
from stoker_exec_local.enforcement import enforcement
from stoker_exec_local.hierarchies import find_places
from stoker_exec_local.memory import default_max_memory_bytes

from .conftest import OpenStrategy

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@needs_root
@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"user": "no-such-user"}, "strategies.here.user: there is no user 'no-such-user'"),
        ({"user": 2**32 - 1}, "strategies.here.user: there is no user"),
        ({"user": "nobody", "group": "no-such-group"}, "strategies.here.group: there is no group"),
        ({"user": 54321}, "strategies.here.group: needed"),
        ({"user": "root"}, "strategies.here.user: root is root"),
        ({"group": 100}, "strategies.here.group: a group needs a user"),
        (
            {"cgroups": "require", "cgroup_parent": "/no/such/group"},
            "strategies.here.cgroups: required",
        ),
    ],
)
async def test_what_cannot_work_is_told(
    open_local_strategy: OpenStrategy, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(spi.ConfigurationError) as caught:
        async with open_local_strategy(**settings):
            pass
    assert problem in str(caught.value)


@needs_root
async def test_processes_run_as_the_user_and_nothing_more(
    open_local_strategy: OpenStrategy, place: Workplace
) -> None:
    entry = pwd.getpwnam("nobody")
    async with open_local_strategy(user="nobody", group=12345) as strategy:
        assert strategy.user == (entry.pw_uid, 12345)
        assert strategy.protects_inputs
        place.give_to(strategy.user)
        text = "id -u; id -g; id -G; grep -h NoNewPrivs /proc/self/status"
        await run(strategy, place.script(text))
    assert place.stdout.read_text().split() == [
        str(entry.pw_uid), "12345", "12345", "NoNewPrivs:", "1",
    ]  # fmt: skip


@needs_root
async def test_another_user_cannot_change_what_is_the_servers(  # RUN-02
    open_local_strategy: OpenStrategy, place: Workplace, tmp_path: Path
) -> None:
    blob = tmp_path / "blob"
    blob.write_text("blob")
    blob.chmod(0o755)
    before = blob.stat()
    (place.root / "input").hardlink_to(blob)
    attacks = (
        "chmod 777 input; echo x >> input; truncate -s 0 input; touch -d @0 input; "
        "ln input other; chmod 777 other; echo x > other; mv input moved; echo x >> moved; true"
    )
    async with open_local_strategy(user="nobody") as strategy:
        place.give_to(strategy.user)
        assert await outcome(strategy, place.script(attacks)) == spi.Exit(0)
    assert blob.read_text() == "blob"
    after = blob.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert (place.root / "moved").exists()


@pytest.mark.parametrize(("setting", "is_degraded"), [("0\n", True), ("1\n", False)])
def test_links_to_what_another_user_cannot_read_are_told(
    tmp_path: Path, setting: str, is_degraded: bool
) -> None:
    protected_hardlinks = tmp_path / "protected_hardlinks"
    protected_hardlinks.write_text(setting)
    told = enforcement(None, [], spi.ProcessUser(1, 1), None, protected_hardlinks)
    found = [text for text in told if "protected_hardlinks" in text]
    assert [text.startswith("degraded:") for text in found] == [True] * is_degraded


async def test_a_program_that_only_others_may_execute_is_named(  # RUN-17
    open_local_strategy: OpenStrategy, place: Workplace
) -> None:
    place.program("tool", b"#!/bin/sh\n", 0o700)
    async with open_local_strategy(user="nobody") as strategy:
        place.give_to(strategy.user)
        with pytest.raises(spi.ProgramNotStarted, match="not executable by this user"):
            await run(strategy, place.spec("./tool"))


async def test_all_actions_together_are_bounded(  # RUN-23
    open_local_strategy: OpenStrategy, place: Workplace
) -> None:
    bound = 128 * 1024 * 1024
    async with open_local_strategy(max_memory_bytes=bound) as strategy:
        if any("degraded: the memory of all" in text for text in strategy.enforcement()):
            pytest.skip("there is no memory control group")
        exit_ = await run(strategy, place.script("head -c 999999999 /dev/zero | tail -n 1"))
        assert exit_.code != 0
        assert f"all actions together is {bound} bytes" in exit_.breach
        assert await outcome(strategy, place.spec("true")) == spi.Exit(0)


async def test_a_limit_of_processors_is_set(  # ISO-06
    open_local_strategy: OpenStrategy, place: Workplace
) -> None:
    places = find_places(
        Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
    )
    spec = place.spec("cat", pipes=True, limits=spi.Limits(cpus=1.5))
    async with open_local_strategy() as strategy:
        if any("processors are not enforced" in text for text in strategy.enforcement()):
            pytest.skip("there is no cpu control group")
        async with strategy.start(spec):
            quotas = [
                file.read_text().split()[0]
                for where in places
                for name in ("cpu.cfs_quota_us", "cpu.max")
                for file in where.path.glob(f"stoker-*-{os.getpid()}-*/*/{name}")
            ]
    assert quotas == ["150000"]


async def test_long_environments_arrive(
    open_local_strategy: OpenStrategy, place: Workplace
) -> None:
    environment = {f"NAME{number}": "x" * 100_000 for number in range(10)}
    async with open_local_strategy() as strategy:
        await run(strategy, place.spec("/usr/bin/env", environment=environment))
    assert place.stdout.stat().st_size > 1_000_000


def test_actions_get_together_what_an_executor_may_promise() -> None:
    # Two settings with defaults of their own; a smaller bound would end actions for asking.
    assert default_max_memory_bytes([]) == usable_memory_bytes(Path("/none"), Path("/none"))

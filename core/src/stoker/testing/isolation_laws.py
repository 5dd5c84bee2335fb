"""What a sandbox must do that isolates, beside `sandbox_laws`; to be inherited with those.

The laws need pytest-trio, Linux, and within the sandbox a shell with the usual small programs.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from stoker import spi
from stoker.testing.execution_strategy_laws import Witness, Workplace
from stoker.testing.sandbox_laws import (
    SandboxFixtures,
    run_enclosed,
    start_enclosed,
    witness_in,
)

_SECRET = "nothing that an action should know"  # noqa: S105  # of no use to anybody


class IsolationLaws(SandboxFixtures):
    """What holds of a sandbox that isolates. Define ``sandbox``, without network, and ``strategy``.

    Reading what is not there and being refused are the same to these laws, as are a write that
    fails and one that vanishes.
    """

    @pytest.fixture
    def secret(self, tmp_path: Path) -> Path:
        """A file of the server's that anybody on the machine may read."""
        path = tmp_path / "stoker.toml"
        path.write_text(_SECRET)
        path.chmod(0o644)
        return path

    async def test_files_of_the_server_cannot_be_read(  # ISO-07
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        place: Workplace,
        secret: Path,
    ) -> None:
        (place.root / "link").symlink_to(secret)
        (place.root / "up").symlink_to("../" * 30 + str(secret).lstrip("/"))
        script = place.script('cat link; cat up; cat "$1"; cat /proc/*/root/"$1"', str(secret))
        await run_enclosed(strategy, sandbox, script)
        assert _SECRET not in place.stdout.read_text()

    async def test_a_working_directory_that_leads_out_leads_nowhere(
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        place: Workplace,
        secret: Path,
    ) -> None:
        (place.root / "out").symlink_to(secret.parent)
        spec = place.spec("cat", secret.name, working_directory="out")
        with suppress(spi.FailedPrecondition):
            assert await run_enclosed(strategy, sandbox, spec) != spi.Exit(0)
        assert _SECRET not in place.stdout.read_text()

    async def test_another_root_cannot_be_seen(  # ISO-07
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        place: Workplace,
        other_place: Workplace,
    ) -> None:
        (other_place.root / "input").write_text(_SECRET)
        witness = witness_in(other_place.spec("true"))
        text = f"exec 9>'{witness.path}'; echo ready >&9; sleep 1000"
        async with start_enclosed(strategy, sandbox, other_place.script(text)):
            await witness.wait_for("ready")
            script = place.script(
                'cat "$1/input"; ls "$1"; ls "$(dirname "$(dirname "$1")")"; '
                "cat /proc/[0-9]*/root/input /proc/[0-9]*/cwd/input",
                str(other_place.root),
            )
            await run_enclosed(strategy, sandbox, script)
        witness.close()
        seen = place.stdout.read_text()
        assert _SECRET not in seen
        assert "input" not in seen
        assert "other" not in seen

    async def test_other_processes_cannot_be_seen_nor_reached(
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace
    ) -> None:
        sleeper = await trio.lowlevel.open_process(["sleep", "1000"], env={"SERVERS": _SECRET})
        async with _killed_at_last(sleeper) as process:
            script = place.script(
                'cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; kill -9 "$1" && : > killed',
                str(process.pid),
            )
            await run_enclosed(strategy, sandbox, script)
            assert process.poll() is None
        seen = place.stdout.read_text()
        assert _SECRET not in seen
        assert not (place.root / "killed").exists()

    async def test_writes_elsewhere_fail_or_vanish(  # ISO-07
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        place: Workplace,
        secret: Path,
    ) -> None:
        folders = ["/", "/usr", "/usr/bin", "/etc", "/var/tmp", "/tmp", "/dev/shm", "/run"]  # noqa: S108  # to be private
        targets = [str(Path(folder, "stoker-was-here")) for folder in folders]
        targets += [str(secret), str(secret.parent / "stoker-was-here")]
        script = place.script('for path; do echo spoilt > "$path"; done; rm -f "$@"', *targets)
        await run_enclosed(strategy, sandbox, script)
        assert _contents(*targets) == {str(secret): _SECRET}

    async def test_kernel_settings_cannot_be_written(
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace
    ) -> None:
        # A write of nothing, so that a broken sandbox does no harm. To the kernel, user 0 of a
        # namespace of users may well be the machine's.
        script = place.script(
            "for path in /proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches "
            "/proc/sysrq-trigger /proc/irq/default_smp_affinity; do "
            "test -e $path && (: >> $path) && echo writable $path; done"
        )
        await run_enclosed(strategy, sandbox, script)
        assert place.stdout.read_text() == ""

    @pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])  # noqa: S108  # to be private
    async def test_shared_folders_are_private(  # ISO-08
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        place: Workplace,
        other_place: Workplace,
        *,
        tmp_path: Path,
        folder: str,
    ) -> None:
        name = f"{folder}/stoker-{tmp_path.name}-{os.getpid()}"
        made = await run_enclosed(strategy, sandbox, place.script('echo 1 > "$1"', name))
        assert made == spi.Exit(0)
        assert _contents(name) == {}
        # And a second one sees nothing of the first. (RUN-25)
        exit_ = await run_enclosed(strategy, sandbox, other_place.script('test -e "$1"', name))
        assert exit_ == spi.Exit(1)

    async def test_there_is_no_network_but_loopback(  # ISO-05
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace
    ) -> None:
        await run_enclosed(strategy, sandbox, place.script("cat /proc/net/dev"))
        lines = place.stdout.read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in lines] == ["lo"]

    async def test_loopback_works_and_is_private(  # ISO-05
        self, strategy: spi.ExecutionStrategy, sandbox: spi.Sandbox, place: Workplace
    ) -> None:
        if not _contents("/usr/bin/python3"):
            pytest.skip("no program at hand that opens sockets")
        with socket.create_server(("127.0.0.1", 0)) as outside:
            program = (
                "import socket, sys\n"
                "inside = socket.create_server(('127.0.0.1', 0))\n"
                "socket.create_connection(inside.getsockname()).close()\n"
                "print('loopback works')\n"
                "socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
                "print('reached the machine')\n"
            )
            port = str(outside.getsockname()[1])
            await run_enclosed(
                strategy, sandbox, place.spec("/usr/bin/python3", "-c", program, port)
            )
        assert place.stdout.read_text() == "loopback works\n"

    async def test_a_complete_daemon_is_ended(  # RUN-22
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        place: Workplace,
        witness: Witness,
    ) -> None:
        # A session of its own, and no parent: what a strategy alone may not find.
        daemon = '(exec 9>"$0"; setsid sh -c \'(trap "" TERM; echo ready >&9; sleep 1000) &\')'
        script = place.spec("sh", "-c", f"{daemon}; sleep 1000", str(witness.path))
        async with start_enclosed(strategy, sandbox, script):
            await witness.wait_for("ready")
        await witness.wait_until_all_are_gone()

    async def test_files_that_belong_to_the_server_cannot_be_changed(  # RUN-02
        self,
        strategy: spi.ExecutionStrategy,
        sandbox: spi.Sandbox,
        place: Workplace,
        tmp_path: Path,
    ) -> None:
        if not sandbox.protects_inputs or strategy.user is not None:
            # It binds those that promise it; and another user cannot, whatever the sandbox.
            return
        names = ["append", "truncate", "chmod", "touch", "link", "replace", "remove", "map"]
        blobs = {name: tmp_path / f"blob-{name}" for name in names}
        for name, blob in blobs.items():
            blob.write_text(name)
            blob.chmod(0o444)
            (place.root / name).hardlink_to(blob)
        before = {name: _state(blob) for name, blob in blobs.items()}
        script = place.script(
            "chmod 644 *; echo more >> append; : > truncate; chmod 777 chmod; "
            "touch -d 2001-01-01 touch; ln link linked; echo more >> linked; "
            "echo new > other; mv -f other replace; rm -f remove; mv map moved; echo more >> moved"
        )
        assert await run_enclosed(strategy, sandbox, script) == spi.Exit(0)
        assert {name: _state(blob) for name, blob in blobs.items()} == before
        # What the action did is there all the same, in files of its own.
        assert (place.root / "append").read_text() == "appendmore\n"
        assert (place.root / "truncate").read_text() == ""
        assert (place.root / "chmod").stat().st_mode & 0o777 == 0o777
        assert (place.root / "touch").stat().st_mtime < 1_000_000_000
        assert (place.root / "linked").samefile(place.root / "link")
        assert (place.root / "replace").read_text() == "new\n"
        assert not (place.root / "remove").exists()
        assert (place.root / "moved").read_text() == "mapmore\n"


@asynccontextmanager
async def _killed_at_last(process: trio.Process) -> AsyncIterator[trio.Process]:
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def _contents(*paths: str) -> dict[str, str]:
    """What is in those of the files that are there."""
    there = [Path(path) for path in paths if Path(path).exists()]
    return {str(path): path.read_text(errors="replace") for path in there}


def _state(path: Path) -> tuple[object, ...]:
    # The number of links, and with it the time of change, is the server's own doing.
    status = path.stat()
    facts = (status.st_ino, status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns)
    return (path.read_bytes(), *facts)

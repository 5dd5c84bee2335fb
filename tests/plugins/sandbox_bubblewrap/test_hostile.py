"""Actions that try to get out, and those that only look as if they did."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from stoker import spi
from stoker.execution.enclosed import Enclosed
from stoker.testing.execution_strategy_laws import Witness, Workplace
from stoker.testing.sandbox_laws import run_plain as run

OpenBox = Callable[..., AbstractAsyncContextManager[spi.Sandbox]]

SECRET = "nothing for actions"


@pytest.fixture(params=["as-laid", "overlay"])
async def enclosed(
    request: pytest.FixtureRequest, open_box: OpenBox, strategy: spi.ExecutionStrategy
) -> AsyncIterator[spi.ExecutionStrategy]:
    async with open_box(inputs=request.param) as sandbox:
        yield Enclosed(strategy, sandbox)


SERVER = """
import sys
from pathlib import Path
import trio
from stoker import spi
from stoker.execution.enclosed import Enclosed
from stoker.testing.execution_strategy_laws import Workplace, run
from stoker_exec_local import stoker_execution_strategies
from stoker_sandbox_bubblewrap import stoker_sandboxes

async def serve():
    folder = Path(sys.argv[1])
    provider = stoker_sandboxes()["bubblewrap"]
    context = spi.Context("box", folder, {})
    local = stoker_execution_strategies()["local"]
    async with (
        provider.open(provider.settings(inputs=sys.argv[2]), context) as sandbox,
        local.open(local.settings(), context) as strategy,
    ):
        spec = Workplace(folder / "state" / "action").script(sys.argv[3], str(folder))
        await run(Enclosed(strategy, sandbox), spec)

trio.run(serve)
"""


@pytest.mark.parametrize("inputs", ["as-laid", "overlay"])
async def test_an_action_reads_nothing_of_the_server(tmp_path: Path, inputs: str) -> None:
    # A whole server process, as its environment and its files are what the action is after.
    files = ["stoker.toml", "store/blob", "state/other/root/input", "state/other/tmp/made"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(SECRET)
    action = tmp_path / "state" / "action"
    action.mkdir()
    text = (
        'cd "$1"; cat stoker.toml store/* state/*/root/* state/*/tmp/*; '
        "cat /proc/*/environ /proc/*/task/*/environ; cat /proc/*/root/*; ls -R /proc/*/cwd/; "
        "cat /proc/self/fd/*; mount --bind / /mnt; umount -l /tmp; "
        'umount -l "$1/state/action/root"; '
        'chroot /proc/1/root cat "$1/stoker.toml"; nsenter -t 1 -a cat "$1/stoker.toml"; '
        'unshare -Urm sh -c "umount -l /tmp; cat $1/stoker.toml"; '
        'ls "$1" "$1/state" "$1/store"; echo tried; cat ~/* ~root/* /home/*/*'
    )
    await trio.run_process(
        [sys.executable, "-c", SERVER, str(tmp_path), inputs, text],
        env={**os.environ, "STOKER_SENTINEL": SECRET},
    )
    seen = (action / "stdout").read_text(errors="replace")
    assert "tried" in seen
    assert SECRET not in seen
    assert not {"stoker.toml", "store", "blob", "other"} & set(seen.split())


async def test_nothing_of_what_the_enclosure_is_made_from_can_be_reached(
    enclosed: spi.ExecutionStrategy, place: Workplace
) -> None:
    script = place.script(
        "ls -A /tmp /run; ls -d /tmp/sandbox-*; cd .. && ls -A; "
        "ls -d /proc/1/root/tmp/ready /proc/1/root/tmp/upper /proc/1/root/oldroot"
    )
    await run(enclosed, script)
    seen = set(place.stdout.read_text().split())
    # The folders that lead to the action's own are there, and nothing else.
    assert not seen & {"ready", "upper", "lower", "work", "merged", "command"}
    assert {"root", "temporary"} < seen
    assert not [word for word in seen if word.startswith(("sandbox-", "/proc"))]


async def test_a_library_to_be_preloaded_is_not_loaded_outside(
    enclosed: spi.ExecutionStrategy, place: Workplace
) -> None:
    # The loader complains of one that is absent, once for each program that is started with it.
    environment = {"LD_PRELOAD": "/no/such/library.so", "PATH": "/usr/bin:/bin"}
    assert await run(enclosed, place.spec("true", environment=environment)) == spi.Exit(0)
    assert place.stderr.read_text().count("/no/such/library.so") == 1


@pytest.mark.parametrize("name", ["PATH", "ENV", "BASH_ENV", "IFS", "PWD", "LD_LIBRARY_PATH"])
async def test_no_variable_means_anything_outside(
    enclosed: spi.ExecutionStrategy, place: Workplace, name: str
) -> None:
    place.program("sh", b"#!/bin/sh\ntouch outside\n")
    spec = place.spec("/usr/bin/env", environment={name: str(place.root)})
    assert await run(enclosed, spec) == spi.Exit(0)
    assert place.stdout.read_text() == f"{name}={place.root}\n"
    assert [path.name for path in place.root.iterdir()] == ["sh"]


async def test_a_temporary_directory_below_the_root_is_not_led_astray(
    enclosed: spi.ExecutionStrategy, place: Workplace, tmp_path: Path
) -> None:
    (tmp_path / "aim").mkdir()
    (place.root / "link").symlink_to(tmp_path / "aim")
    spec = replace(
        place.script("echo x > link/x; echo y > y"), temporary_directory=place.root / "link"
    )
    await run(enclosed, spec)
    assert list((tmp_path / "aim").iterdir()) == []
    assert (place.root / "y").read_text() == "y\n"


@pytest.mark.parametrize(
    "argv",
    [("--bind", "/", "/"), ("-i",), ("--", "true"), ("A=b",), ("",)],
    ids=["option", "short", "dashes", "assignment", "empty"],
)
async def test_odd_names_of_programs_are_nothing_but_names(
    enclosed: spi.ExecutionStrategy, place: Workplace, argv: tuple[str, ...]
) -> None:
    with pytest.raises(spi.ProgramNotStarted) as caught:
        await run(enclosed, place.spec(*argv))
    assert caught.value.exit_code == 127


async def test_a_program_with_an_equals_sign_is_started(
    enclosed: spi.ExecutionStrategy, place: Workplace
) -> None:
    place.program("a=b", b"#!/bin/sh\necho $0 $1\n")
    assert await run(enclosed, place.spec("./a=b", "c=d")) == spi.Exit(0)
    assert place.stdout.read_text() == "./a=b c=d\n"


async def test_nobody_finds_out_what_is_on_the_machine(
    enclosed: spi.ExecutionStrategy, place: Workplace, tmp_path: Path
) -> None:
    # A client lays out links to files that it cannot see, and asks to have them started.
    (tmp_path / "there").write_text(SECRET)
    (tmp_path / "link").symlink_to("there")
    (place.root / "out").symlink_to(tmp_path)
    reasons = set()
    for name in ("there", "link", "absent"):
        (place.root / f"to-{name}").symlink_to(tmp_path / name)
        for program in (f"./to-{name}", f"out/{name}"):
            with pytest.raises(spi.ProgramNotStarted) as caught:
                await run(enclosed, place.spec(program))
            reasons.add((program.split("/")[0], str(caught.value).replace(name, "it")))
    assert len(reasons) == 2


async def test_a_program_outside_of_the_enclosure_is_not_there(
    enclosed: spi.ExecutionStrategy, place: Workplace, tmp_path: Path
) -> None:
    # RUN-17
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    (place.root / "link").symlink_to(tool)
    for program in (str(tool), "./link"):
        with pytest.raises(spi.ProgramNotStarted, match="not found in the sandbox") as caught:
            await run(enclosed, place.spec(program))
        assert caught.value.exit_code == 127


@pytest.mark.parametrize(
    ("argv", "environment"),
    [
        (("true", "x" * 140_000), {}),
        (("true",), {"X": "x" * 140_000}),
        (("true", *["x" * 1000] * 9000), {}),
    ],
)
async def test_too_long_arguments_are_the_fault_of_the_command(
    enclosed: spi.ExecutionStrategy,
    place: Workplace,
    argv: tuple[str, ...],
    environment: dict[str, str],
) -> None:
    with pytest.raises(spi.ProgramNotStarted, match=r"true: .* too long") as caught:
        await run(enclosed, place.spec(*argv, environment=environment))
    assert caught.value.exit_code == 126


async def test_large_arguments_arrive(enclosed: spi.ExecutionStrategy, place: Workplace) -> None:
    words = [f"{number:06}" + "x" * 130_000 for number in range(12)]
    assert await run(enclosed, place.script('printf "%s\n" "$@"', *words)) == spi.Exit(0)
    assert place.stdout.read_text().split() == words


@pytest.mark.parametrize("environment", [{"A=B": "c"}, {"": "c"}, {"A": "b\0c"}])
async def test_impossible_variables_are_refused(
    enclosed: spi.ExecutionStrategy, place: Workplace, environment: dict[str, str]
) -> None:
    with pytest.raises(spi.ProgramNotStarted, match="true"):
        await run(enclosed, place.spec("true", environment=environment))


async def test_a_working_directory_that_leads_nowhere_is_the_fault_of_the_request(
    enclosed: spi.ExecutionStrategy, place: Workplace
) -> None:
    # RUN-08
    (place.root / "link").symlink_to("nowhere")
    for name in ("link", "absent"):
        with pytest.raises(spi.FailedPrecondition, match=f"working directory {name} "):
            await run(enclosed, place.spec("true", working_directory=name))
        place.stderr.unlink()


async def test_the_death_of_the_outermost_process_is_that_of_all(
    enclosed: spi.ExecutionStrategy, place: Workplace
) -> None:
    # As when the server is killed, or somebody kills what looks like the action.
    witness = Witness(place.spec("true").temporary_directory / "witness")
    text = f"exec 9>{witness.path}; trap '' TERM; (setsid sleep 1000 &); echo ready >&9; sleep 1000"
    before = Path("/proc/self/mountinfo").read_text()
    async with enclosed.start(place.script(text)) as process:
        await witness.wait_for("ready")
        os.kill(int(process.name.removeprefix("process ")), signal.SIGKILL)
        await witness.wait_until_all_are_gone()
        assert (await process.wait()).signal == signal.SIGKILL
    witness.close()
    assert Path("/proc/self/mountinfo").read_text() == before


async def test_the_network_of_the_machine_where_it_is_given(
    open_box: OpenBox, strategy: spi.ExecutionStrategy, place: Workplace
) -> None:
    async with open_box(network="host") as sandbox:
        assert await run(
            Enclosed(strategy, sandbox), place.spec("cat", "/proc/net/dev")
        ) == spi.Exit(0)
    outside = Path("/proc/net/dev").read_text().splitlines()
    inside = place.stdout.read_text().splitlines()
    assert [line.split(":")[0] for line in inside] == [line.split(":")[0] for line in outside]


async def test_the_size_of_shared_folders(
    open_box: OpenBox, strategy: spi.ExecutionStrategy, place: Workplace
) -> None:
    async with open_box(tmpfs_bytes=1024 * 1024) as sandbox:
        script = place.script("head -c 2000000 /dev/zero > /tmp/large || exit 7")
        assert await run(Enclosed(strategy, sandbox), script) == spi.Exit(7)


async def test_namespaces_within_are_forbidden_unless_set(
    open_box: OpenBox, strategy: spi.ExecutionStrategy, place: Workplace
) -> None:
    script = place.script("unshare --user true || exit 7")
    for namespaces, code in ((False, 7), (True, 0)):
        async with open_box(namespaces=namespaces) as sandbox:
            assert await run(Enclosed(strategy, sandbox), script) == spi.Exit(code)

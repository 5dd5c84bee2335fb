"""A server is what its TOML says: every setting reaches the room that it is for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path

import pytest
import structlog
import trio

from stoker import plugins, spi
from stoker.client import open_remote
from stoker.compose import executors, open_server
from stoker.config import check_document
from stoker.digest import SHA256, Digest
from stoker.errors import ConfigurationError, sole_cause
from stoker.execution.executor import open_executor
from stoker.plugins import Catalogue, Kind, load_catalogue
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import RpcError, StatusCode, open_channel
from stoker.rpc.protos import health_pb2
from stoker.spi import ProcessSpec, Provider, Sandbox, Settings

EXECUTOR = {
    "strategy": "local",
    "sandbox": "marking",
    "slots": 1,
    "worker_protocols": ["json"],
    "limits": {"maximum_timeout_seconds": 50.0, "default_timeout_seconds": 40.0},
    "workers": {"max_workers": 3, "max_workers_per_key": 2, "idle_seconds": 7.0},
}
DOCUMENT = {
    "server": {"listen": ["127.0.0.1:0"], "drain_seconds": 0.1},
    "scheduler": {"max_queued": 2},
    "sandboxes": {"marking": {"kind": "marking", "word": "enclosed"}},
    "blob_stores": {"main": {"kind": "memory"}},
    "action_caches": {"main": {"kind": "memory"}},
    "executors": {"one": EXECUTOR},
    "instances": {"": {"blob_store": "main", "action_cache": "main", "executors": ["one"]}},
}


class MarkingSettings(Settings, frozen=True):
    """What the sandbox of this test puts before each command."""

    word: str


class Marking(Sandbox):
    """Has the command printed, after a word, instead of run."""

    def __init__(self, word: str) -> None:
        self.word = word

    @asynccontextmanager
    async def enclose(self, spec: ProcessSpec) -> AsyncIterator[ProcessSpec]:
        argv = ("echo", self.word, *spec.argv)
        fields = {name: getattr(spec, name) for name in ProcessSpec.__dataclass_fields__}
        yield ProcessSpec(**{**fields, "argv": argv})


@asynccontextmanager
async def open_marking(settings: MarkingSettings, _: spi.Context) -> AsyncIterator[Sandbox]:
    yield Marking(settings.word)


@pytest.fixture
def catalogue() -> Catalogue:
    installed = {table: dict(load_catalogue().kinds(table)) for table in plugins.HOOKS}
    provider: Provider[Sandbox] = Provider(MarkingSettings, open_marking)
    installed["sandboxes"]["marking"] = Kind("marking", "sandboxes", provider, "test", "0")
    return Catalogue(installed)


async def upload(address: str, *arguments: str) -> reapi.ExecuteRequest:
    command = reapi.Command(arguments=arguments).SerializeToString()
    action = reapi.Action(
        command_digest=SHA256.digest(command).to_proto(),
        input_root_digest=SHA256.empty.to_proto(),
    ).SerializeToString()
    async with open_remote(address) as remote:
        await remote.upload_blobs({SHA256.digest(data): data for data in (command, action)})
    return reapi.ExecuteRequest(action_digest=SHA256.digest(action).to_proto())


async def test_an_executor_encloses_what_it_runs(  # ISO-11
    catalogue: Catalogue, tmp_path: Path
) -> None:
    configuration = check_document(DOCUMENT, tmp_path, catalogue)
    async with open_server(configuration, catalogue) as server:
        request = await upload(server.addresses[0], "rm", "-rf", "/")
        async with open_remote(server.addresses[0]) as remote:
            response = await remote.run(SHA256.parse(request.action_digest))
            stdout = await remote.read_blob(SHA256.parse(response.result.stdout_digest))
    assert stdout == b"enclosed rm -rf /\n"


class Protecting(Sandbox):
    """Says that nobody can change inputs in it, unless they change by themselves."""

    protects_inputs = True

    def enforcement(self) -> Sequence[str]:
        return ("behind bars", "degraded: the bars are of wood")

    def enclose(self, spec: ProcessSpec) -> AbstractAsyncContextManager[ProcessSpec]:
        return nullcontext(spec)


async def test_the_start_log_tells_how_an_executor_isolates(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    @asynccontextmanager
    async def open_protecting(_: Settings, __: spi.Context) -> AsyncIterator[Sandbox]:
        yield Protecting()

    installed = {table: dict(catalogue.kinds(table)) for table in plugins.HOOKS}
    provider: Provider[Sandbox] = Provider(MarkingSettings, open_protecting)
    installed["sandboxes"]["marking"] = Kind("marking", "sandboxes", provider, "test", "0")
    document = {**DOCUMENT, "executors": {"one": {**EXECUTOR, "memory_bytes": "1GiB"}}}
    configuration = check_document(document, tmp_path, Catalogue(installed))
    with structlog.testing.capture_logs() as logs:
        async with open_server(configuration, Catalogue(installed)):
            pass
    [told] = [entry for entry in logs if entry["event"] == "executor opens"]
    assert (told["executor"], told["slots"], told["memory_bytes"]) == ("one", 1, 2**30)
    assert "behind bars" in told["enforcement"]
    assert [entry["reason"] for entry in logs if entry["log_level"] == "warning"] == [
        "degraded: the bars are of wood"
    ]
    [inputs] = [text for text in told["enforcement"] if text.startswith("inputs are")]
    assert "linked to blobs, which actions cannot change; those of persistent workers are" in inputs


async def test_executors_that_have_more_than_the_machine_are_a_warning(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    # Each has all of it unless told otherwise; what they hand out together would not be there.
    executors = {"one": EXECUTOR, "two": EXECUTOR}
    instance = {"blob_store": "main", "action_cache": "main", "executors": ["one", "two"]}
    document = {**DOCUMENT, "instances": {"": instance}}
    shared = {name: {**EXECUTOR, "cpus": 0.5, "memory_bytes": "1MiB"} for name in executors}
    warnings = []
    for tables in (executors, shared):
        configuration = check_document({**document, "executors": tables}, tmp_path, catalogue)
        with structlog.testing.capture_logs() as logs:
            async with open_server(configuration, catalogue):
                pass
        warnings.append([e["event"] for e in logs if e["event"].startswith("executors have more")])
    assert list(map(len, warnings)) == [1, 0]


async def test_settings_reach_executor_workers_and_scheduler(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    real = open_executor

    @asynccontextmanager
    async def open_and_tell(**parameters: object) -> AsyncIterator[object]:
        seen.update(parameters)
        async with real(**parameters) as executor:  # type: ignore[arg-type] # passed on as they come
            yield executor

    monkeypatch.setattr(executors, "open_executor", open_and_tell)
    configuration = check_document(DOCUMENT, tmp_path, catalogue)
    async with open_server(configuration, catalogue):
        pass
    executor = configuration.executors["one"]
    assert (seen["settings"], seen["worker_settings"]) == (executor.limits, executor.workers)
    assert (executor.workers.max_workers, executor.workers.idle_seconds) == (3, 7.0)
    assert (seen["link_inputs"], seen["link_worker_inputs"], seen["user"]) == (False, False, None)
    assert list(seen["protocols"]) == ["json"]  # type: ignore[call-overload] # a mapping
    assert seen["folder"] == tmp_path / "stoker-state" / "executors" / "one"


async def test_a_server_that_stops_drains_and_says_so(
    catalogue: Catalogue, tmp_path: Path
) -> None:  # GEN-17
    document = {**DOCUMENT, "server": {"listen": ["127.0.0.1:0"], "drain_seconds": 30.0}}
    document["executors"] = {"one": {**EXECUTOR, "sandbox": "none"}}
    configuration = check_document(document, tmp_path, catalogue)
    let_on = tmp_path / "let-on"
    ended: list[reapi.ExecuteResponse] = []
    health: list[int] = []
    async with trio.open_nursery() as nursery:
        stop, serving = trio.Event(), trio.Event()

        async def serve(task_status: trio.TaskStatus[str]) -> None:
            async with open_server(configuration, catalogue) as server:
                task_status.started(server.addresses[0])
                await stop.wait()

        address = await nursery.start(serve)
        script = f"while [ ! -e {let_on} ]; do sleep 0.02; done"
        request = await upload(address, "sh", "-c", script)

        async def watch_health() -> None:
            async with open_channel(address) as channel:
                method = "/grpc.health.v1.Health/Watch"
                async with channel.open_stream(method, health_pb2.HealthCheckResponse) as stream:
                    await stream.send(health_pb2.HealthCheckRequest())
                    await stream.send_eof()
                    while len(health) < 2:
                        told = await stream.receive()
                        assert told is not None
                        health.append(told.status)
                        serving.set()
                    let_on.touch()  # only now may the action end: the call outlived the stop

        async with (
            open_remote(address) as remote,
            remote.execute(SHA256.parse(request.action_digest)) as operations,
        ):
            async for operation in operations:
                if operation.done:
                    response = reapi.ExecuteResponse()
                    operation.response.Unpack(response)
                    ended.append(response)
                elif not stop.is_set():
                    nursery.start_soon(watch_health)
                    await serving.wait()
                    stop.set()
    assert health == [
        health_pb2.HealthCheckResponse.SERVING,
        health_pb2.HealthCheckResponse.NOT_SERVING,
    ]
    assert [response.status.code for response in ended] == [0]


@pytest.mark.slow
async def test_patience_ends_when_it_is_told_to(catalogue: Catalogue, tmp_path: Path) -> None:
    document = {**DOCUMENT, "server": {"listen": ["127.0.0.1:0"], "drain_seconds": 1e6}}
    document["executors"] = {"one": {**EXECUTOR, "sandbox": "none"}}
    configuration = check_document(document, tmp_path, catalogue)
    codes: list[StatusCode] = []

    async def run(address: str, action: Digest, begun: trio.Event) -> None:
        try:
            async with (
                open_remote(address) as remote,
                remote.execute(action) as operations,
            ):
                async for _ in operations:
                    begun.set()
        except RpcError as error:
            codes.append(error.code)

    with trio.fail_after(60):
        async with (
            trio.open_nursery() as nursery,
            open_server(configuration, catalogue) as server,
        ):
            request = await upload(server.addresses[0], "sleep", "1000")
            action, begun = SHA256.parse(request.action_digest), trio.Event()
            nursery.start_soon(run, server.addresses[0], action, begun)
            await begun.wait()
            server.draining.cancel()
    assert codes == [StatusCode.UNAVAILABLE]


async def test_what_cannot_be_listened_on_is_named(catalogue: Catalogue, tmp_path: Path) -> None:
    taken = trio.socket.socket()
    await taken.bind(("127.0.0.1", 0))
    taken.listen()
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    document = {**DOCUMENT, "server": {"listen": [address]}}
    with pytest.raises((ConfigurationError, ExceptionGroup)) as info:
        async with open_server(check_document(document, tmp_path, catalogue), catalogue):
            pass
    taken.close()
    assert f"[server] listen: cannot listen on {address}" in str(sole_cause(info.value))

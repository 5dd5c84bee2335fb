"""``stoker run``: one command on a server, with a folder of this machine as its input root."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import trio
from google.protobuf.duration_pb2 import Duration
from rich.console import Console
from rich.filesize import decimal

from stoker.cli.connection import Connection, assignments_of, finite, server_options
from stoker.cli.live_output import LiveOutput, open_live_output
from stoker.client import (
    Downloaded,
    MerkleTree,
    RemoteInstance,
    digest_folder,
    download_outputs,
    response_of,
    stage_of,
)
from stoker.digest import Digest, DigestFunction
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import RpcError
from stoker.rpc.status import status_code

_CANCEL_BOUND_SECONDS = 2.0

_STAGES = {
    reapi.ExecutionStage.CACHE_CHECK: "looking into the action cache",
    reapi.ExecutionStage.QUEUED: "queued",
    reapi.ExecutionStage.EXECUTING: "executing",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the user asks for."""

    arguments: Sequence[str]
    input_root: Path
    exclude: Sequence[str]
    outputs: Sequence[str]
    environment: Mapping[str, str]
    properties: Sequence[tuple[str, str]]
    timeout_seconds: float | None
    working_directory: str
    use_cache: bool

    def command(self) -> reapi.Command:
        """The Command message, in canonical form."""
        return reapi.Command(
            arguments=self.arguments,
            environment_variables=[
                reapi.Command.EnvironmentVariable(name=name, value=value)
                for name, value in sorted(self.environment.items())
            ],
            output_paths=sorted(set(self.outputs)),
            platform=self.platform(),
            working_directory=self.working_directory,
        )

    def platform(self) -> reapi.Platform:
        """The platform properties, sorted as REAPI wants them."""
        return reapi.Platform(
            properties=[
                reapi.Platform.Property(name=name, value=value)
                for name, value in sorted(self.properties)
            ]
        )

    def action(self, command: Digest, input_root: Digest) -> reapi.Action:
        """The Action message."""
        action = reapi.Action(
            command_digest=command.to_proto(),
            input_root_digest=input_root.to_proto(),
            do_not_cache=not self.use_cache,
            platform=self.platform(),
        )
        if self.timeout_seconds is not None:
            timeout = Duration()
            timeout.FromNanoseconds(int(self.timeout_seconds * 1e9))
            action.timeout.CopyFrom(timeout)
        return action


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How it ended."""

    action: Digest
    response: reapi.ExecuteResponse
    stdout: bytes
    stderr: bytes
    downloaded: Downloaded | None


@click.command()
@server_options
@click.option(
    "--input-root",
    default=".",
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that the command sees; all of it is uploaded.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="GLOB",
    help="Leave out what matches, by name or by path below the input root. May be repeated.",
)
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="PATH",
    help="File or folder to bring back, relative to the working directory. What is there already "
    "is uploaded like any other file, unless it is excluded. May be repeated.",
)
@click.option(
    "--env",
    "environment",
    multiple=True,
    metavar="NAME=VALUE",
    callback=assignments_of,
    help="Environment variable of the command. May be repeated.",
)
@click.option(
    "--property",
    "properties",
    multiple=True,
    metavar="NAME=VALUE",
    callback=assignments_of,
    help="Platform property that the executor must have. May be repeated.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True, max=10**9),
    callback=finite,
    metavar="SECONDS",
    help="Stop the command after this time.",
)
@click.option(
    "--working-directory",
    default="",
    metavar="PATH",
    help="Where to start the command, relative to the input root.",
)
@click.option(
    "--no-cache", is_flag=True, help="Run it even if its result is known, and do not keep it."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of the command's output."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(
    context: click.Context,
    /,
    *,
    connection: Connection,
    as_json: bool,
    no_cache: bool,
    command: Sequence[str],
    environment: Sequence[tuple[str, str]],
    **options: object,
) -> None:
    """Run COMMAND on a server: stoker run -- cc -c hello.c -o hello.o

    Stdout, stderr and exit code are those of the command. Write -- before it, so that its
    options are not taken for those of stoker.
    """
    job = Job(
        arguments=command,
        environment=dict(environment),
        use_cache=not no_cache,
        **options,  # type: ignore[arg-type]  # click has converted them as declared above
    )
    say = Say(Console(stderr=True))
    try:
        finished = trio.run(partial(_run, connection, job, say, as_json=as_json))
    finally:
        say.end()
    if as_json:
        click.echo(json.dumps(_facts(finished), indent=2))
    status = finished.response.status
    if status.code:
        raise RpcError(status_code(status.code), status.message)
    for path in missing_outputs(job.outputs, finished.response.result):
        click.echo(f"Warning: output {path} was not produced", err=True)
    if not as_json:
        click.echo(_summary(finished), err=True)
    context.exit(finished.response.result.exit_code)


def missing_outputs(asked: Sequence[str], result: reapi.ActionResult) -> list[str]:
    """Those of the outputs `asked` for that `result` does not have. That is no error in REAPI."""
    produced = {
        output.path
        for outputs in (
            result.output_files,
            result.output_directories,
            result.output_symlinks,
            result.output_file_symlinks,
            result.output_directory_symlinks,
        )
        for output in outputs
    }
    return [path for path in dict.fromkeys(asked) if path not in produced]


class Say:
    """Tells the user what goes on: in one changing line on a terminal, otherwise line by line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("") if console.is_terminal else None
        self._last = ""

    def __call__(self, text: str) -> None:
        """Show `text`, unless it is shown already."""
        if text == self._last:
            return
        self._last = text
        if self._status is None:
            click.echo(text, err=True)
        else:
            self._status.update(text)
            self._status.start()

    def end(self) -> None:
        """Clear the line."""
        if self._status is not None:
            self._status.stop()


async def _run(connection: Connection, job: Job, say: Say, *, as_json: bool) -> Finished:
    async with connection.open() as remote:
        remote.check_executes()
        say(f"digesting {job.input_root}")
        tree = await digest_folder(job.input_root, remote.digest_function, job.exclude)
        action = await _upload(remote, job, tree, say)
        stdout = stderr = b""
        if as_json:
            response = await _execute(remote, job, action, say)
            stdout, stderr = await _outputs_of(remote, response.result, action.function)
        else:
            response = await _execute_live(remote, job, action, say)
        say.end()
        downloaded = None
        if job.outputs:
            say("downloading outputs")
            downloaded = await download_outputs(
                remote,
                response.result,
                job.input_root,
                action.function,
                working_directory=job.working_directory,
            )
    return Finished(
        action=action, response=response, stdout=stdout, stderr=stderr, downloaded=downloaded
    )


async def _upload(remote: RemoteInstance, job: Job, tree: MerkleTree, say: Say) -> Digest:
    """Upload what the server lacks. Returns the action's digest."""
    function = remote.digest_function
    command_data = job.command().SerializeToString(deterministic=True)
    command = function.digest(command_data)
    action_data = job.action(command, tree.root).SerializeToString(deterministic=True)
    action = function.digest(action_data)
    blobs = {**tree.directories, command: command_data, action: action_data}
    missing = await remote.find_missing([*blobs, *tree.files])
    files = {digest: path for digest, path in tree.files.items() if digest in missing}
    size_bytes = sum(digest.size_bytes for digest in missing)
    say(f"uploading {len(files)} of {len(tree.files)} files, {decimal(size_bytes)}")
    await remote.upload_files(files)
    await remote.upload_blobs({digest: data for digest, data in blobs.items() if digest in missing})
    return action


async def _execute_live(
    remote: RemoteInstance, job: Job, action: Digest, say: Say
) -> reapi.ExecuteResponse:
    """Execute the action, and show what it prints as it comes."""
    async with open_live_output(remote) as live:
        live.before_first = say.end
        response = await _execute(remote, job, action, say, live)
        say.end()
        await live.show_rest(response, action.function)
    return response


async def _execute(
    remote: RemoteInstance, job: Job, action: Digest, say: Say, live: LiveOutput | None = None
) -> reapi.ExecuteResponse:
    """Execute the action. A user who gives up takes the action along."""
    async with remote.execute(action, skip_cache_lookup=not job.use_cache) as operations:
        done = None
        try:
            async for operation in operations:
                if stage := _STAGES.get(stage_of(operation)):
                    say(stage)
                if live is not None:
                    await live.follow(operation)
                done = operation if operation.done else None
        finally:
            if done is None and operations.name:
                await _cancel(remote, operations.name)
    assert done is not None, "the iteration ends with an operation that is done, or raises"
    return response_of(done)


async def _cancel(remote: RemoteInstance, operation_name: str) -> None:
    # The user is leaving; a server that cannot be told has noticed by itself.
    with trio.move_on_after(_CANCEL_BOUND_SECONDS, shield=True), suppress(RpcError):
        await remote.cancel(operation_name)


async def _outputs_of(
    remote: RemoteInstance, result: reapi.ActionResult, function: DigestFunction
) -> tuple[bytes, bytes]:
    """What the command has printed."""
    return (
        result.stdout_raw or await _read(remote, result.stdout_digest, function),
        result.stderr_raw or await _read(remote, result.stderr_digest, function),
    )


async def _read(remote: RemoteInstance, digest: reapi.Digest, function: DigestFunction) -> bytes:
    return await remote.read_blob(function.parse(digest)) if digest.size_bytes else b""


def _summary(finished: Finished) -> str:
    result = finished.response.result
    words = [f"exit code {result.exit_code}"]
    if finished.response.cached_result:
        words.append("from the action cache")
    elif result.execution_metadata.worker:
        words.append(f"ran on {result.execution_metadata.worker}")
    if finished.downloaded is None:
        words.append("nothing brought back (--output PATH would)")
    else:
        files, size_bytes = finished.downloaded
        noun = "file" if files == 1 else "files"
        words.append(f"{files} {noun} brought back, {decimal(size_bytes)}")
    return "; ".join(words)


def _facts(finished: Finished) -> dict[str, object]:
    response = finished.response
    return {
        "action": str(finished.action),
        "exit_code": response.result.exit_code,
        "cached": response.cached_result,
        "executor": response.result.execution_metadata.worker,
        "stdout": finished.stdout.decode(errors="replace"),
        "stderr": finished.stderr.decode(errors="replace"),
        "message": response.message,
        "status": {
            "code": status_code(response.status.code).name,
            "message": response.status.message,
        },
        "outputs": None if finished.downloaded is None else finished.downloaded._asdict(),
    }

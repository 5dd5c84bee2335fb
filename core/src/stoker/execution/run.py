"""One action that is being run, and how its result is put together."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from stoker.action import LoadedAction, Outcome, resolve_output
from stoker.digest import Digest
from stoker.errors import FailedPrecondition, StokerError, TimedOut
from stoker.execution.arrangement import parent_of
from stoker.execution.disk import Disk
from stoker.execution.input_root import InputRoot
from stoker.execution.output_limits import OutputBudget
from stoker.execution.outputs import collect_outputs
from stoker.execution.stages import Stages
from stoker.execution.uploads import LocalFile, Uploads
from stoker.log_streams.names import StreamNames
from stoker.log_streams.run_output import RunOutput
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import BlobStore
from stoker.storage.input_tree import InputTree

Started = Callable[[reapi.ExecutedActionMetadata, StreamNames | None], None]


@dataclass(slots=True, kw_only=True)
class Run:
    """An action on an executor, from its inputs to its outcome."""

    action: LoadedAction
    tree: InputTree
    limit_seconds: float
    started: Started
    stages: Stages
    disk: Disk
    begun: float
    """In trio time."""
    budget: OutputBudget
    """What it may leave behind."""
    output: RunOutput
    """What it prints, for those who read it meanwhile."""
    messages: list[str] = field(default_factory=list)
    """Sentences for the person who reads the client's output."""
    server_logs: dict[str, reapi.LogFile] = field(default_factory=dict)
    """What the server's own processes have said, for that person, by the log's name."""

    @property
    def folders(self) -> frozenset[str]:
        """The folders that must be there before it starts: where it works, and where its outputs
        go (RUN-06, EXE-29)."""
        directory = self.action.command.working_directory
        outputs = (resolve_output(directory, path) for path in self.action.output_paths)
        return frozenset({directory, *map(parent_of, outputs)} - {""})

    def start(self) -> None:
        """The command starts now."""
        self.stages.mark("execution_start")
        self.started(self.stages.so_far(), self.output)

    def tell(self, facts: Mapping[str, str | float | bool]) -> None:
        """Tell all who wait what is being done for the action, before its command starts."""
        self.started(self.stages.with_progress(facts), None)

    def without_worker(self, reason: str) -> None:
        """The action asked for a persistent worker and is run without: say why."""
        self.messages.append(f"run without a persistent worker: {reason}")
        self.stages.note({"one_shot_reason": reason})


class Ending(NamedTuple):
    """How the command ended, and what it said."""

    exit_code: int
    stdout: Path | bytes = b""
    stderr: Path | bytes = b""
    error: StokerError | None = None
    reusable: bool = True
    """As for `Outcome`."""
    processes_ended: bool = False
    """Whether nothing that has written, or reads, what is in the input root lives any more: large
    files may then be moved away from there. Not so for a persistent worker."""


async def conclude(run: Run, ending: Ending, root: InputRoot | None, blobs: BlobStore) -> Outcome:
    """Store outputs and streams, and say how it went. Without a `root` there are no outputs.

    Outputs are collected whatever the exit code (RUN-16). Raises StorageFull or Unavailable; the
    former also where the executor's own disk may have cut short what the command wrote.
    """
    if root is not None and ending.error is None:
        run.disk.check_room(since=run.begun)
    run.stages.mark("output_upload_start")
    uploads = Uploads(run.action.digest.function, blobs, gives_files=ending.processes_ended)
    result, error = await _store(run, ending, root, uploads)
    try:
        await uploads.publish()
    except FailedPrecondition as refused:
        # Nothing may be named that is perhaps not in the store.
        result, error = reapi.ActionResult(), error or refused
    whole = error is None or isinstance(error, TimedOut)
    run.output.end(result, uploads.function, whole=whole)
    run.stages.mark("output_upload_completed")
    result.exit_code = ending.exit_code
    result.execution_metadata.CopyFrom(run.stages.complete())
    return Outcome(
        result=result,
        error=error,
        reusable=ending.reusable,
        message="\n".join(run.messages),
        server_logs=run.server_logs,
    )


async def _store(
    run: Run, ending: Ending, root: InputRoot | None, uploads: Uploads
) -> tuple[reapi.ActionResult, StokerError | None]:
    """A result that names all that can be stored, and the first reason why something cannot."""
    result, error = reapi.ActionResult(), ending.error
    streams = reapi.ActionResult()
    # Before the outputs: what the command said must not fall victim to how much it left.
    for stream, field_ in ((ending.stdout, "stdout_digest"), (ending.stderr, "stderr_digest")):
        try:
            digest = await _store_stream(stream, uploads, run.budget)
        except FailedPrecondition as unfit:
            error = error or unfit
            continue
        # RUN-14: an empty stream has no digest.
        if digest is not None:
            getattr(streams, field_).CopyFrom(digest.to_proto())
    if root is not None:
        try:
            result = await _outputs(run, root, uploads)
        except FailedPrecondition as unfit:
            error = error or unfit
    result.MergeFrom(streams)
    return result, error


async def _outputs(run: Run, root: InputRoot, uploads: Uploads) -> reapi.ActionResult:
    root.check_intact()
    collected = await collect_outputs(root.folder, run.action.command, uploads, run.budget)
    if collected.skipped:
        run.messages.append(
            f"left out, as neither file, directory nor symbolic link: "
            f"{', '.join(collected.skipped[:5])}{' …' if len(collected.skipped) > 5 else ''}"
        )
    return collected.result


async def _store_stream(
    stream: Path | bytes, uploads: Uploads, budget: OutputBudget
) -> Digest | None:
    if isinstance(stream, bytes):
        budget.count_bytes("what was said on stderr", len(stream))
        return uploads.add(stream) if stream else None
    try:
        status = stream.lstat()  # noqa: ASYNC240 -- a trip to a thread costs more
    except OSError as error:
        raise FailedPrecondition(f"the action has removed its own {stream.name}") from error
    if not stat.S_ISREG(status.st_mode):
        raise FailedPrecondition(f"the action has put something else in place of {stream.name}")
    budget.count_bytes(stream.name, status.st_size)
    if not status.st_size:
        return None
    file = LocalFile(os.fspath(stream), status.st_size)
    return (await uploads.add_files([file]))[file.location]

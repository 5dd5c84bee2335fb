"""The output of an action on this program's own stdout and stderr: as it comes, and once."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import BinaryIO, TextIO

import click
import trio
from google.longrunning import operations_pb2

from stoker.client import OutputNames, RemoteInstance, output_names_of
from stoker.digest import SHA256, Digest, DigestFunction, digest_function
from stoker.errors import sole_cause
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc import RpcError

_NONE = OutputNames("", "")

_REST_SECONDS = 2.0
"""How long the streams of an action that has failed may take to end by themselves."""


@asynccontextmanager
async def open_live_output(
    remote: RemoteInstance, *, stdout: bool = True, stderr: bool = True
) -> AsyncIterator[LiveOutput]:
    """Show one operation's output, or one of its streams, while the context is open.

    Raises OSError where it cannot be written, BrokenPipeError among it.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield LiveOutput(remote, nursery, stdout=stdout, stderr=stderr)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise sole_cause(group) from None


class LiveOutput:
    """Both streams of an operation."""

    def __init__(
        self, remote: RemoteInstance, nursery: trio.Nursery, *, stdout: bool, stderr: bool
    ) -> None:
        self._nursery = nursery
        self._names = _NONE
        self.before_first: Callable[[], None] = lambda: None
        """Called before the first byte is shown."""
        self._has_shown = False
        self._stdout = _Stream(remote, _bytes_of(sys.stdout) if stdout else None, self._begin)
        self._stderr = _Stream(remote, _bytes_of(sys.stderr) if stderr else None, self._begin)

    def _begin(self) -> None:
        if not self._has_shown:
            self.before_first()
        self._has_shown = True

    async def follow(self, operation: operations_pb2.Operation) -> None:
        """Show what `operation` prints from now on, if the server says where."""
        names = output_names_of(operation)
        if names in (_NONE, self._names) or operation.done:
            return
        if self._names != _NONE:
            await self._stop()
            click.echo("Warning: the action is run again; what follows is all new", err=True)
        self._names = names
        function = function_of(operation)
        self._stdout.follow(names.stdout, function, self._nursery)
        self._stderr.follow(names.stderr, function, self._nursery)

    async def wait_ended(self) -> None:
        """Wait until the streams that are followed have ended."""
        await self._stdout.ended.wait()
        await self._stderr.ended.wait()

    async def show_rest(self, response: reapi.ExecuteResponse, function: DigestFunction) -> None:
        """The operation has ended: show what was not shown yet."""
        if response.status.code:
            # What it printed may be in no blob.
            with trio.move_on_after(_REST_SECONDS):
                await self.wait_ended()
        await self._stop()
        result = response.result
        await self._stdout.show_rest(result.stdout_raw, result.stdout_digest, function)
        await self._stderr.show_rest(result.stderr_raw, result.stderr_digest, function)

    async def _stop(self) -> None:
        await self._stdout.stop()
        await self._stderr.stop()


class _Stream:
    """One stream, and what was shown of it: so many bytes, from the first on."""

    def __init__(
        self, remote: RemoteInstance, target: BinaryIO | None, before: Callable[[], None]
    ) -> None:
        self._remote = remote
        self._target = target
        self._before = before
        self._scope = trio.CancelScope()
        self.ended = trio.Event()
        self.ended.set()
        self._forget(SHA256)

    def _forget(self, function: DigestFunction) -> None:
        self._shown_bytes, self._hasher = 0, function.new()

    def follow(self, name: str, function: DigestFunction, nursery: trio.Nursery) -> None:
        """Show the stream `name`, from its beginning, in a task of `nursery`."""
        self._forget(function)
        if name and self._target is not None:
            self._scope, self.ended = trio.CancelScope(), trio.Event()
            nursery.start_soon(self._follow, name)

    async def stop(self) -> None:
        """Follow no more."""
        self._scope.cancel()
        await self.ended.wait()

    async def _follow(self, name: str) -> None:
        try:
            with self._scope:
                async with self._remote.open_log(name) as chunks:
                    async for chunk in chunks:
                        await self._show(chunk)
        except RpcError:
            # The rest comes with the result, as from servers that have no streams.
            pass
        finally:
            self.ended.set()

    async def _show(self, data: bytes) -> None:
        assert self._target is not None, "it is not followed otherwise"
        self._before()
        await trio.to_thread.run_sync(_write, self._target, data)
        self._shown_bytes += len(data)
        self._hasher.update(data)

    async def show_rest(self, raw: bytes, message: reapi.Digest, function: DigestFunction) -> None:
        """Show what follows on what was shown of a whole, which is `raw` or the blob `message`."""
        if self._target is None or not (raw or message.size_bytes):
            return
        digest = function.digest(raw) if raw else function.parse(message)
        if not self._shown_bytes:
            self._forget(function)
        if self._hasher.hexdigest() == digest.hash:
            return
        if not await self._show_behind(raw, digest):
            click.echo("Warning: the command has changed what it printed; here is all", err=True)
            self._forget(function)
            await self._show_behind(raw, digest)

    async def _show_behind(self, raw: bytes, digest: Digest) -> bool:
        """Show what lies behind what was shown; nothing, and return False, if it begins otherwise.

        What was shown is read once more, since a blob can be told to be whole only so.
        """
        to_pass, check, shown = self._shown_bytes, digest.function.new(), self._hasher.hexdigest()
        is_same = False
        async with self._open(raw, digest) as chunks:
            async for chunk in chunks:
                check.update(chunk[:to_pass])
                rest, to_pass = chunk[to_pass:], max(0, to_pass - len(chunk))
                if to_pass:
                    continue
                is_same = is_same or check.hexdigest() == shown
                if not is_same:
                    return False
                if rest:
                    await self._show(rest)
        return is_same

    @asynccontextmanager
    async def _open(self, raw: bytes, digest: Digest) -> AsyncIterator[AsyncIterator[bytes]]:
        if raw:
            yield _only(raw)
            return
        async with self._remote.open_blob(digest) as chunks:
            yield chunks


async def _only(data: bytes) -> AsyncIterator[bytes]:
    yield data


def function_of(operation: operations_pb2.Operation) -> DigestFunction:
    """The digest function of an operation's blobs."""
    metadata = reapi.ExecuteOperationMetadata()
    operation.metadata.Unpack(metadata)
    return digest_function(metadata.digest_function, len(metadata.action_digest.hash))


def _bytes_of(stream: TextIO | None) -> BinaryIO | None:
    """Python has None for a stream that was closed from the start, as by ``>&-`` in a shell."""
    return None if stream is None else stream.buffer


def _write(target: BinaryIO, data: bytes) -> None:
    target.write(data)
    target.flush()

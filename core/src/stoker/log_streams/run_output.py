"""Stdout and stderr of a run, while it runs and afterwards (OPS-16, LOG-06)."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple
from weakref import WeakValueDictionary

from stoker.digest import Digest, DigestFunction
from stoker.errors import FailedPrecondition, LogStreamNotFound
from stoker.log_streams.names import StreamNames, new_names
from stoker.log_streams.stream import LogStream
from stoker.protos import remote_execution_pb2 as reapi

# A fifo in place of the file would block for ever without O_NONBLOCK.
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LiveFile(NamedTuple):
    """A file that a process appends to, and may do other things to."""

    path: str
    device: int
    inode: int
    """What tells it from a file that the process has put in its place."""

    def open(self) -> int | None:
        """A descriptor to read from, or None if something else is there now, or nothing."""
        try:
            descriptor = os.open(self.path, _LOOK)
        except OSError:
            return None
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status[1:3] == (self.inode, self.device):
            return descriptor
        os.close(descriptor)
        return None


class RunStream(LogStream):
    """One of the two streams of a run."""

    __slots__ = ("_digest", "_ended", "_file", "_is_altered")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._file: LiveFile | None = None
        self._ended = False
        self._is_altered = False
        self._digest: Digest | None = None

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def digest(self) -> Digest | None:
        return self._digest

    def attach(self, file: LiveFile) -> None:
        """The run writes to `file` from now on."""
        self._file = file

    def detach(self) -> None:
        """The file may be another run's from now on. Who has it open reads what this one wrote."""
        self._file = None

    def end(self, digest: Digest | None) -> None:
        """Nothing more comes. The whole is in the blob `digest`, if there is one; else those who
        read it already get what is there, and nobody who comes later. Later calls do nothing."""
        if not self._ended:
            self._ended, self._digest = True, digest
            self._is_altered = digest is not None and not self._has_size(digest.size_bytes)
            self.detach()
            if digest is None:
                self.hurry()

    def _has_size(self, size_bytes: int) -> bool:
        """Whether readers, if there are any, have as much before them."""
        return self._descriptor is None or self.size_bytes(self._descriptor) == size_bytes

    def check(self, *, has_read: bool) -> None:
        """Raises FailedPrecondition for who has read what is not in the result."""
        if has_read and self._is_altered:
            raise FailedPrecondition(
                "the action has put something else in place of what was read of its output"
            )

    def open_descriptor(self) -> int | None:
        if self._file is None:
            return None
        descriptor = self._file.open()
        if descriptor is None:
            # Whatever the process has put there, it is not what counts as its output.
            self._file = None
        return descriptor

    def size_bytes(self, descriptor: int) -> int:
        try:
            return os.fstat(descriptor).st_size
        except OSError:
            return 0


class RunOutput(StreamNames):
    """Both streams of a run, which ends each of them once."""

    __slots__ = ("_err", "_out")

    def __init__(self, out: RunStream, err: RunStream) -> None:
        super().__init__(out.name, err.name)
        self._out = out
        self._err = err

    def attach(self, stdout: LiveFile, stderr: LiveFile) -> None:
        """A process writes to these files from now on."""
        self._out.attach(stdout)
        self._err.attach(stderr)

    def detach(self) -> None:
        """The files may be another run's from now on."""
        self._out.detach()
        self._err.detach()

    def end(self, result: reapi.ActionResult, function: DigestFunction, *, whole: bool) -> None:
        """All of it is in the blobs that `result` names. A stream without a digest is empty if
        `whole`, and else lost."""
        empty = function.empty if whole else None
        for stream, message in (
            (self._out, result.stdout_digest),
            (self._err, result.stderr_digest),
        ):
            stream.end(function.parse(message) if message.hash else empty)

    def lose(self) -> None:
        """The run is over, and if it has not ended its streams, nothing was kept of them."""
        self._out.end(None)
        self._err.end(None)


class RunOutputs:
    """The streams of all runs, for as long as anybody keeps a run's `StreamNames`."""

    def __init__(self) -> None:
        self._streams: WeakValueDictionary[str, RunStream] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._streams)

    def begin(self, instance_name: str) -> RunOutput:
        """The streams of a new run, of which nothing is there yet."""
        out, err = map(RunStream, new_names(instance_name))
        self._streams[out.name], self._streams[err.name] = out, err
        return RunOutput(out, err)

    def find(self, name: str) -> RunStream:
        """The stream to read by this name. Raises LogStreamNotFound, also for what was lost."""
        stream = self._streams.get(name)
        if stream is None or (stream.ended and stream.digest is None):
            raise LogStreamNotFound(name)
        return stream

"""What a tool is given of one request."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TextIO


class Cancelled(BaseException):
    """The request is wanted no more. It passes through ``except Exception``, as it should."""


class Request:
    """One piece of work. What is public may be used from any thread."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        inputs: Mapping[str, bytes] | None = None,
        request_id: int = 0,
        verbosity: int = 0,
        sandbox_dir: str = "",
        output: TextIO | None = None,
    ) -> None:
        self.arguments = list(arguments)
        """The whole command line but for the program, as a process of its own would see it: what
        the worker was started with, then what the request adds. Flag files are expanded."""
        self.inputs = dict(inputs or {})
        """Every input file with a digest that changes with its content and means nothing more.
        Empty where they are not known: in an ordinary run, and from some servers."""
        self.request_id = request_id
        self.verbosity = verbosity
        """Above 0, tell more in the output; 10 is what Bazel sends where it wants that."""
        self.sandbox_dir = sandbox_dir
        """Where the files of this request are, relative to the working directory; empty for the
        working directory itself. `path` takes it into account."""
        self.output: TextIO = sys.stderr if output is None else output
        """What the user is to read. What is printed while the function runs comes here too, but
        for what threads print that the function has started itself: they print to this."""
        self._lock = Lock()
        self._callbacks: list[Callable[[], object]] = []
        self._cancelled = False

    def path(self, name: str) -> Path:
        """The file that an argument or an input of this request names."""
        return Path(self.sandbox_dir, name)

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the result any more. Once true, it stays so, and however the
        function ends the answer is that it was cancelled."""
        return self._cancelled

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` if `cancelled`. For calling now and then in what takes long."""
        if self._cancelled:
            raise Cancelled

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Call `callback` once, from another thread, when the request is cancelled; at once if it
        already is. For what cannot ask, such as a child process: ``on_cancel(child.kill)``.

        What `callback` raises goes to the worker's log.
        """
        with self._lock:
            if not self._cancelled:
                self._callbacks.append(callback)
                return
        _call(callback)

    def cancel(self) -> None:
        """Make `cancelled` true. The worker calls this; tests of a tool may."""
        with self._lock:
            self._cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            _call(callback)


def _call(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:  # noqa: BLE001 - the tool's own, which must not end the reading of requests
        sys.excepthook(*sys.exc_info())


class CapturedOutput(io.BufferedIOBase):
    """Keeps the bytes of one request's output until it is answered; later ones go to the log."""

    def __init__(self, log: Callable[[bytes], object]) -> None:
        self._log = log
        self._kept: list[bytes] | None = []

    def writable(self) -> bool:
        """As every stream that is written to."""
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # any buffer, as bytes() takes
        """Append `data`."""
        piece = bytes(data)
        if self._kept is None:
            self._log(piece)
        else:
            self._kept.append(piece)
        return len(piece)

    def take(self) -> str:
        """All that was written, at the end of the request."""
        kept, self._kept = self._kept, None
        return b"".join(kept or []).decode("utf-8", "replace")


def text_stream(binary: io.BufferedIOBase) -> io.TextIOWrapper:
    """A text stream on `binary` that holds nothing back and refuses no character."""
    return io.TextIOWrapper(
        binary,  # type: ignore[arg-type]  # typeshed asks for what is used only in reading
        encoding="utf-8",
        errors="backslashreplace",
        newline="\n",
        write_through=True,
    )

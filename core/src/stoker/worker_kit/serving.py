"""The life of a worker: reading requests, running the tool's function, answering."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from threading import Thread, current_thread, main_thread
from typing import NoReturn

from stoker.worker_kit import streams
from stoker.worker_kit.codecs import Codec, MalformedRequest, WorkRequest, WorkResponse
from stoker.worker_kit.in_flight import InFlight
from stoker.worker_kit.request import Cancelled, CapturedOutput, Request, text_stream

Tool = Callable[[Request], int | None]


def serve_requests(tool: Tool, startup: Sequence[str], codec: Codec, threads: int) -> int:
    """Answer requests until stdin ends and all of them are answered; returns the exit code.

    SIGTERM and Ctrl-C cancel what is in flight, end this without further answers and raise
    SystemExit, so that whatever the program has to clean up is cleaned up.
    """
    worker = _Worker(tool, startup, codec)
    _listen_for_end()
    try:
        return worker.run(threads)
    except (_Terminated, KeyboardInterrupt) as signalled:
        worker.abandon()
        code = signal.SIGTERM if isinstance(signalled, _Terminated) else signal.SIGINT
        sys.exit(128 + code)


def run_tool(tool: Tool, request: Request) -> int:
    """Call `tool`; returns what a process of its own would end with, 0 to 255.

    An exception is printed to the request's output, without frames that are not the tool's.
    """
    try:
        return _status(tool(request))
    except SystemExit as end:
        return _status_of_exit(end, request)
    except Cancelled:
        return 1
    except Exception as error:  # noqa: BLE001 - the next request may go well
        import traceback  # noqa: PLC0415 - as long to import as all the rest here

        frames = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(error.with_traceback(frames), file=request.output)
        return 1


def _status_of_exit(end: SystemExit, request: Request) -> int:
    """As the interpreter does when a program ends by it."""
    if end.code is None or isinstance(end.code, int):
        return _status(end.code)
    print(end.code, file=request.output)
    return 1


def _status(code: int | None) -> int:
    """The system keeps the lowest eight bits of an exit code. A failure stays a failure."""
    if code is not None and not isinstance(code, int):
        raise TypeError(f"the function of a worker returns an exit code or None, not {code!r}")
    return (code or 0) & 0xFF or int(bool(code))


class _Worker:
    def __init__(self, tool: Tool, startup: Sequence[str], codec: Codec) -> None:
        self._tool = tool
        self._startup = list(startup)
        self._codec = codec
        self._in_flight: InFlight[_Accepted] = InFlight()
        self._pipes = streams.take_pipes()
        self._problem = ""
        self._deserted = False  # nobody reads answers any more

    def run(self, threads: int) -> int:
        """Work in this thread and as many others as make up `threads`."""
        # Daemons: a worker that is to end does not wait for a request that nobody wants.
        Thread(target=self._read, name="requests", daemon=True).start()
        for number in range(2, threads + 1):
            Thread(target=self._work, name=f"work {number}", daemon=True).start()
        self._work()
        if not self._deserted:
            self._in_flight.wait_empty()
        if self._problem:
            streams.write_log(f"{self._problem}\n".encode())
        return 1 if self._problem else 0

    def abandon(self) -> None:
        """Answer nothing more."""
        self._in_flight.cancel_all()

    def _read(self) -> None:
        try:
            while data := self._pipes.read():
                for request in self._codec.feed(data):
                    self._accept(request)
            self._codec.end()
        except (MalformedRequest, OSError) as error:
            self._problem = f"reading requests: {error}"
        finally:
            self._in_flight.close()

    def _accept(self, message: WorkRequest) -> None:
        if not message.cancel:
            self._in_flight.add(_Accepted(message, self._startup))
            return
        for request in self._in_flight.cancel(message.request_id):
            # Not here: requests must be read whether or not somebody reads answers.
            Thread(target=self._answer, args=[request, 1], daemon=True).start()

    def _work(self) -> None:
        while (request := self._in_flight.take()) is not None:
            with streams.capture(request.captured):
                exit_code = run_tool(self._tool, request)
            self._answer(request, exit_code)

    def _answer(self, request: _Accepted, exit_code: int) -> None:
        response = WorkResponse(
            exit_code=exit_code,
            output=request.captured.take(),
            request_id=request.request_id,
            was_cancelled=request.cancelled,
        )
        try:
            self._pipes.write(self._codec.encode(response))
        except OSError as error:
            self._problem = f"nobody reads answers: {error}"
            self._deserted = True
            self._in_flight.cancel_all()
        finally:
            self._in_flight.remove(request)


class _Accepted(Request):
    """A request of a worker, whose output is kept for the answer."""

    def __init__(self, message: WorkRequest, startup: Sequence[str]) -> None:
        self.captured = CapturedOutput(streams.write_log)
        super().__init__(
            [*startup, *message.arguments],
            inputs=message.inputs,
            request_id=message.request_id,
            verbosity=message.verbosity,
            sandbox_dir=message.sandbox_dir,
            output=text_stream(self.captured),
        )


class _Terminated(BaseException):
    """SIGTERM, in the main thread."""


def _listen_for_end() -> None:
    if current_thread() is main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever asks twice is in a hurry
    raise _Terminated

"""When what happened to an action.

Source: build.bazel.remote.execution.v2.ExecutedActionMetadata.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping

from google.protobuf.struct_pb2 import Struct

from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import Exit


class Stages:
    """The metadata of one action as it comes about (RUN-27).

    The wall clock is read once and time is counted from there, so that no adjustment of the clock
    puts the end of a stage before its beginning. A stage that is tried again is marked again, and
    so are those after it.
    """

    def __init__(self, executor: str) -> None:
        """Begin now, on the executor of this name."""
        self._wall_ns = time.time_ns()
        self._counter_ns = time.monotonic_ns()
        self._metadata = reapi.ExecutedActionMetadata(worker=executor)
        self._marks: dict[str, int] = {}
        self.mark("worker_start")

    def mark(self, stage: str, at_ns: int | None = None) -> None:
        """`stage`, the name of a timestamp without its ending, happens now, or happened at that
        time of time.monotonic_ns."""
        if at_ns is None:
            at_ns = time.monotonic_ns()
        self._stamp(stage, self._wall_ns + at_ns - self._counter_ns)

    def _stamp(self, stage: str, now_ns: int) -> None:
        self._marks[stage] = now_ns
        stamp = getattr(self._metadata, f"{stage}_timestamp")
        # By hand: it is done nine times for every action.
        stamp.seconds, stamp.nanos = divmod(now_ns, 10**9)

    def note(self, facts: Mapping[str, str | float | bool]) -> None:
        """Tell `facts` to the client, as a google.protobuf.Struct in auxiliary_metadata."""
        message = Struct()
        message.update(facts)
        self._metadata.auxiliary_metadata.add().Pack(message)

    def note_exit(self, ended: Exit) -> None:
        """Tell how a process ended, where there is something to tell (RUN-29): of ``user_seconds``,
        ``system_seconds`` and ``peak_memory_bytes`` what was measured, ``signal`` by its name, and
        ``breach``, the limit that it ended by."""
        facts: dict[str, str | float] = {}
        if ended.usage is not None:
            facts |= ended.usage._asdict()
        if ended.signal is not None:
            facts["signal"] = signal_name(ended.signal)
        if ended.breach:
            facts["breach"] = ended.breach
        if facts:
            self.note(facts)

    def so_far(self) -> reapi.ExecutedActionMetadata:
        """A copy of what is known now."""
        copy = reapi.ExecutedActionMetadata()
        copy.CopyFrom(self._metadata)
        return copy

    def with_progress(
        self, facts: Mapping[str, str | float | bool]
    ) -> reapi.ExecutedActionMetadata:
        """As `so_far`, and `facts` of this moment, which no later metadata has."""
        copy = self.so_far()
        message = Struct()
        message.update(facts)
        copy.auxiliary_metadata.add().Pack(message)
        return copy

    def complete(self) -> reapi.ExecutedActionMetadata:
        """The action ends now, and every stage has been marked."""
        self.mark("worker_completed")
        self._fill_gaps()
        marks = self._marks
        executed_ns = marks["execution_completed"] - marks["execution_start"]
        self._metadata.virtual_execution_duration.FromNanoseconds(executed_ns)
        return self.so_far()

    def _fill_gaps(self) -> None:
        """A stage that was never reached took no time: it is where the next one is (RUN-27)."""
        following = self._marks["worker_completed"]
        for stage in _BACKWARDS:
            marked = self._marks.get(stage)
            # One may be left over from an attempt before the last.
            if marked is None or marked > following:
                self._stamp(stage, following)
            else:
                following = marked


_BACKWARDS = (
    "output_upload_completed",
    "output_upload_start",
    "execution_completed",
    "execution_start",
    "input_fetch_completed",
    "input_fetch_start",
    "worker_start",
)


def signal_name(number: int) -> str:
    """As ``SIGSEGV``, or ``SIG40`` where it has no name here."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"

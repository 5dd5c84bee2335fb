"""The laws of `WorkerProtocol`, for the tests of a plugin that offers one.

A test module subclasses `WorkerProtocolLaws`, with a fixture and one function::

    class TestMyProtocol(WorkerProtocolLaws):
        @pytest.fixture
        def protocol(self) -> WorkerProtocol:
            return MyProtocol()

        def encode_response(self, response: WorkResponse) -> bytes:
            return ...  # as a real worker writes it
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoker.spi import MalformedResponse, WorkerProtocol, WorkRequest, WorkResponse

__all__ = ["WorkerProtocolLaws"]

INT32 = st.integers(-(2**31), 2**31 - 1)
RESPONSES = st.builds(
    WorkResponse,
    exit_code=INT32,
    output=st.text(),
    request_id=INT32,
    was_cancelled=st.booleans(),
)
CUTS = st.lists(st.integers(min_value=0), max_size=20)
LIMIT_BYTES = 1 << 20
# The longest excerpt that is still fit for a log line and an error message.
MAX_EXCERPT_BYTES = 4096

# The fixture keeps no state between examples, and that one law runs in several subclasses, each
# with examples of its own, is what a class of laws is for.
examples = settings(
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
    ],
)


def _cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """`data` in pieces, some of them empty."""
    positions = sorted(cut % (len(data) + 1) for cut in cuts)
    return [
        data[begin:end] for begin, end in zip([0, *positions], [*positions, len(data)], strict=True)
    ]


class WorkerProtocolLaws:
    """One law a test."""

    def encode_response(self, response: WorkResponse) -> bytes:
        """What a real worker of this protocol writes to its stdout."""
        raise NotImplementedError

    def decode(self, protocol: WorkerProtocol, pieces: Sequence[bytes]) -> list[WorkResponse]:
        """What a new decoder finds in a whole stdout."""
        decoder = protocol.decoder(LIMIT_BYTES)
        responses = [response for piece in pieces for response in decoder.feed(piece)]
        decoder.end()
        return responses

    # PWK-05 and PWK-07
    def test_a_request_becomes_the_same_bytes_each_time(self, protocol: WorkerProtocol) -> None:
        request = WorkRequest(arguments=["-d", "out"], request_id=7, verbosity=10)
        request.inputs.add(path="a.txt", digest=b"ab" * 32)
        before = request.SerializeToString()
        encoded = protocol.encode(request)
        assert encoded == protocol.encode(request)
        assert encoded
        assert request.SerializeToString() == before

    def test_different_requests_become_different_bytes(self, protocol: WorkerProtocol) -> None:
        requests = [
            WorkRequest(),
            WorkRequest(arguments=[""]),
            WorkRequest(arguments=["", ""]),
            WorkRequest(arguments=["é\n\"\\'<&"]),
            WorkRequest(request_id=1),
            WorkRequest(request_id=1, cancel=True),
            WorkRequest(verbosity=1),
            WorkRequest(sandbox_dir="s"),
        ]
        assert len({protocol.encode(request) for request in requests}) == len(requests)

    # PWK-07
    def test_inputs_that_are_serialized_already_are_as_all_others(
        self, protocol: WorkerProtocol
    ) -> None:
        parts = [WorkRequest() for _ in range(3)]
        for number, part in enumerate(parts):
            for name in ("é", "b"):
                part.inputs.add(path=f"{number}/{name}", digest=b"ab" * 32)
        serialized = [part.SerializeToString() for part in parts[1:]]
        request = WorkRequest(arguments=["-d"], inputs=parts[0].inputs)
        before = request.SerializeToString()
        encoded = protocol.encode_with(request, serialized)
        assert request.SerializeToString() == before
        request.inputs.extend(file for part in parts[1:] for file in part.inputs)
        assert encoded == protocol.encode(request)

    @examples
    @given(responses=st.lists(RESPONSES, max_size=5), cuts=CUTS)
    def test_responses_are_found_wherever_the_stream_is_cut(
        self, protocol: WorkerProtocol, responses: list[WorkResponse], cuts: list[int]
    ) -> None:
        stream = b"".join(map(self.encode_response, responses))
        assert self.decode(protocol, _cut(stream, cuts)) == responses

    @examples
    @given(response=RESPONSES)
    def test_a_response_is_found_byte_by_byte(
        self, protocol: WorkerProtocol, response: WorkResponse
    ) -> None:
        stream = self.encode_response(response)
        assert self.decode(protocol, [bytes([byte]) for byte in stream]) == [response]

    @examples
    @given(response=RESPONSES)
    def test_a_response_needs_nothing_after_its_last_byte(
        self, protocol: WorkerProtocol, response: WorkResponse
    ) -> None:
        decoder = protocol.decoder(LIMIT_BYTES)
        assert decoder.feed(self.encode_response(response)) == [response]
        assert decoder.feed(self.encode_response(response)) == [response]

    def test_a_response_of_default_values_is_a_success(self, protocol: WorkerProtocol) -> None:
        assert self.decode(protocol, [self.encode_response(WorkResponse())]) == [WorkResponse()]

    def test_nothing_is_no_response(self, protocol: WorkerProtocol) -> None:
        assert self.decode(protocol, []) == []
        assert self.decode(protocol, [b"", b""]) == []

    def test_decoders_share_nothing(self, protocol: WorkerProtocol) -> None:
        first, second = protocol.decoder(LIMIT_BYTES), protocol.decoder(LIMIT_BYTES)
        response = WorkResponse(exit_code=3, output="half of this")
        stream = self.encode_response(response)
        first.feed(stream[:5])
        assert second.feed(stream) == [response]
        assert first.feed(stream[5:]) == [response]

    def test_a_response_as_large_as_the_limit_is_found(self, protocol: WorkerProtocol) -> None:
        response = WorkResponse(output="x" * 10_000)
        stream = self.encode_response(response)
        assert protocol.decoder(len(stream)).feed(stream) == [response]

    def test_a_response_above_the_limit_is_refused_before_it_is_whole(
        self, protocol: WorkerProtocol
    ) -> None:
        stream = self.encode_response(WorkResponse(output="x" * 100_000))
        with pytest.raises(MalformedResponse, match="1000"):
            protocol.decoder(1000).feed(stream[:2000])

    @examples
    @given(response=RESPONSES, data=st.data())
    def test_an_end_inside_of_a_response_is_refused(
        self, protocol: WorkerProtocol, response: WorkResponse, data: st.DataObject
    ) -> None:
        stream = self.encode_response(response).rstrip()
        held = data.draw(st.integers(0, len(stream) - 1))
        decoder = protocol.decoder(LIMIT_BYTES)
        assert decoder.feed(stream[:held]) == []
        if held == 0:
            decoder.end()
            return
        with pytest.raises(MalformedResponse) as caught:
            decoder.end()
        assert caught.value.excerpt
        assert stream.startswith(caught.value.excerpt)

    # PWK-09
    @pytest.mark.parametrize(
        "garbage",
        [
            b"Downloading dependencies ... done, 3 files were fetched from the mirror, all well\n",
            b"Traceback (most recent call last):\n" + b'  File "tool.py", line 1\n' * 40,
            b"\xff" * 100,
            b"Picked up JAVA_TOOL_OPTIONS: -Xmx512m\n" * 1000,
        ],
    )
    def test_text_from_elsewhere_is_refused_and_quoted(
        self, protocol: WorkerProtocol, garbage: bytes
    ) -> None:
        with pytest.raises(MalformedResponse) as caught:
            self.decode(protocol, [garbage])
        assert caught.value.excerpt
        assert garbage.startswith(caught.value.excerpt)
        assert len(caught.value.excerpt) <= MAX_EXCERPT_BYTES
        assert "stdout" in str(caught.value)

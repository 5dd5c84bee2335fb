from __future__ import annotations

from pathlib import Path

import pytest

from stoker.spi import Context, MalformedResponse, WorkerProtocol, WorkRequest, WorkResponse
from stoker.testing.worker_protocol_laws import WorkerProtocolLaws
from stoker_worker_proto import ProtoProtocol, stoker_worker_protocols
from stoker_worker_proto.codec import encode_varint


class TestProtoProtocol(WorkerProtocolLaws):
    @pytest.fixture
    def protocol(self) -> WorkerProtocol:
        return ProtoProtocol()

    def encode_response(self, response: WorkResponse) -> bytes:
        return encode_varint(response.ByteSize()) + response.SerializeToString()


# The bytes that a real Bazel writes: zero values are absent, so a singleplex request has no id.
def test_a_request_is_its_length_and_the_message() -> None:
    request = WorkRequest(arguments=["a"], request_id=0)
    request.inputs.add(path="b", digest=b"c")
    assert ProtoProtocol().encode(request) == bytes.fromhex(
        "0b 0a0161 1206 0a0162 120163".replace(" ", "")
    )


def test_a_length_of_more_than_seven_bits_is_a_varint() -> None:
    encoded = ProtoProtocol().encode(WorkRequest(arguments=["x" * 300]))
    assert encoded[:2] == b"\xaf\x02"
    assert len(encoded) == 2 + 303


def test_a_zero_byte_is_a_success() -> None:
    assert ProtoProtocol().decoder(100).feed(b"\0\0") == [WorkResponse(), WorkResponse()]


def test_a_padded_length_is_understood() -> None:
    assert ProtoProtocol().decoder(100).feed(b"\x82\x80\x00\x08\x01") == [WorkResponse(exit_code=1)]


def test_a_length_without_end_is_refused() -> None:
    with pytest.raises(MalformedResponse, match="takes more than 10 bytes") as caught:
        ProtoProtocol().decoder(100).feed(b"\0" + b"\x80" * 12)
    assert caught.value.excerpt == b"\x80" * 12


def test_a_length_above_the_limit_is_refused_as_soon_as_it_shows() -> None:
    with pytest.raises(MalformedResponse, match="101 bytes or more"):
        ProtoProtocol().decoder(100).feed(b"\x65")


def test_unknown_fields_are_ignored() -> None:
    assert ProtoProtocol().decoder(100).feed(b"\x04\x08\x01\x78\x05") == [
        WorkResponse.FromString(b"\x08\x01\x78\x05")
    ]


async def test_the_hook_offers_kind_proto() -> None:
    provider = stoker_worker_protocols()["proto"]
    context = Context("proto", Path(), {})
    async with provider.open(provider.settings(), context) as protocol:
        assert protocol.decoder(10).feed(b"\0") == [WorkResponse()]

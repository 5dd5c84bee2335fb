from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import json_format

from stoker.spi import Context, MalformedResponse, WorkerProtocol, WorkRequest, WorkResponse
from stoker.testing.worker_protocol_laws import WorkerProtocolLaws
from stoker_worker_json import JsonProtocol, stoker_worker_protocols


def as_object(response: WorkResponse) -> dict[str, object]:
    return {
        "exitCode": response.exit_code,
        "output": response.output,
        "requestId": response.request_id,
        "wasCancelled": response.was_cancelled,
    }


class LawsOfJson(WorkerProtocolLaws):
    @pytest.fixture
    def protocol(self) -> WorkerProtocol:
        return JsonProtocol()


class TestAsBazelsJavaLibraryWrites(LawsOfJson):
    """All four fields, and no newline."""

    def encode_response(self, response: WorkResponse) -> bytes:
        return json.dumps(as_object(response), ensure_ascii=False).encode()


class TestLineByLine(LawsOfJson):
    """Escaped characters, and a newline."""

    def encode_response(self, response: WorkResponse) -> bytes:
        return json.dumps(as_object(response), separators=(",", ":")).encode() + b"\n"


class TestPrettyPrinted(LawsOfJson):
    def encode_response(self, response: WorkResponse) -> bytes:
        return json.dumps(as_object(response), indent=4).encode() + b"\r\n"


class TestAsProtobufPrints(LawsOfJson):
    """Without fields of default values."""

    def encode_response(self, response: WorkResponse) -> bytes:
        return json_format.MessageToJson(response).encode()


class TestWithProtobufFieldNames(LawsOfJson):
    def encode_response(self, response: WorkResponse) -> bytes:
        return json_format.MessageToJson(response, preserving_proto_field_name=True).encode()


def decode(text: bytes) -> list[WorkResponse]:
    decoder = JsonProtocol().decoder(100_000)
    responses = decoder.feed(text)
    decoder.end()
    return responses


def test_a_request_is_one_line_as_bazel_writes_it() -> None:
    request = WorkRequest(arguments=["-x=1", "é"], request_id=3)
    request.inputs.add(path="a", digest=b"ab" * 32)
    request.inputs.add(path="b")
    encoded = JsonProtocol().encode(request)
    digest = (
        "YWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYmFiYWJhYg=="
    )
    assert encoded.decode() == (
        f'{{"arguments":["-x=1","é"],"inputs":[{{"path":"a","digest":"{digest}"}},{{"path":"b"}}],'
        f'"requestId":3}}\n'
    )
    assert json_format.Parse(encoded, WorkRequest()) == request


def test_a_cancel_request_names_its_fields_in_camel_case() -> None:
    request = WorkRequest(request_id=2, cancel=True, verbosity=10, sandbox_dir="s/1")
    encoded = JsonProtocol().encode(request)
    assert encoded == b'{"requestId":2,"cancel":true,"verbosity":10,"sandboxDir":"s/1"}\n'


def test_a_line_break_in_an_argument_does_not_break_the_line() -> None:
    assert JsonProtocol().encode(WorkRequest(arguments=["a\nb"])).count(b"\n") == 1


def test_unknown_fields_are_ignored_and_missing_ones_default() -> None:
    text = b'{"new": {"exitCode": 9, "list": ["}", {}]}, "output": null, "exitCode": 1}{}'
    assert decode(text) == [WorkResponse(exit_code=1), WorkResponse()]


def test_quotes_and_braces_inside_of_strings_end_nothing() -> None:
    text = rb'{"output": "a } \" \\"}{"output": "{\\\"["}'
    assert decode(text) == [WorkResponse(output='a } " \\'), WorkResponse(output='{\\"[')]


@pytest.mark.parametrize("number", [b"3", b'"3"', b"3.0"])
def test_integers_are_read_as_proto3_json_has_them(number: bytes) -> None:
    assert decode(b'{"exitCode": ' + number + b"}") == [WorkResponse(exit_code=3)]


def test_half_a_surrogate_pair_is_replaced() -> None:
    assert decode(rb'{"output": "a\ud83d, \ud83d\ude00"}') == [WorkResponse(output="a\ufffd, 😀")]


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert decode(b'{"output": "caf\xe9\nau lait"}') == [WorkResponse(output="caf\ufffd\nau lait")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"hello", "no JSON object"),
        (b"[{}]", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b"{}]", "no JSON object"),
        (b"{nope}", "no work response"),
        (b"{]", "no work response"),
        (b'{"exitCode": 1, "exitCode": 0}', "there twice"),
        (b'{"exitCode": 1, "exit_code": 0}', "there twice"),
        (b'{"exitCode": true}', "not of type int"),
        (b'{"exitCode": 1.5}', "not of type int"),
        (b'{"exitCode": 4294967296}', "no work response"),
        (b'{"exitCode": 1e999}', "no work response"),
        (b'{"exitCode": ' + b"1" * 5000 + b"}", "no work response"),
        (b'{"output": 1}', "not of type str"),
        (b'{"wasCancelled": 1}', "not of type bool"),
        (b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}", "nested"),
        (b'{"output": "', "stdout ended 12 bytes into"),
    ],
)
def test_what_is_no_response_is_refused_and_quoted(text: bytes, reason: str) -> None:
    with pytest.raises(MalformedResponse, match=reason) as caught:
        decode(text)
    assert caught.value.excerpt
    assert caught.value.excerpt in text


async def test_the_hook_offers_kind_json() -> None:
    provider = stoker_worker_protocols()["json"]
    async with provider.open(provider.settings(), Context("json", Path(), {})) as protocol:
        assert protocol.decoder(10).feed(b"{}") == [WorkResponse()]

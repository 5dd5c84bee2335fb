"""Server reflection, both versions."""

import functools
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from stoker.rpc import StatusCode, open_channel, reflection_services
from stoker.rpc.protos import health_pb2, reflection_v1_pb2, reflection_v1alpha_pb2

VERSIONS = {"v1": reflection_v1_pb2, "v1alpha": reflection_v1alpha_pb2}


@pytest.fixture(params=list(VERSIONS))
async def ask(request: pytest.FixtureRequest, serve: Any) -> Any:
    """Ask one question of a server that says it serves `z.Z` and `a.A`."""
    messages: Any = VERSIONS[request.param]
    running = await serve({}, *reflection_services(["z.Z", "a.A"]))
    path = f"/grpc.reflection.{request.param}.ServerReflection/ServerReflectionInfo"

    async def ask_one(**question: Any) -> Any:
        asked = messages.ServerReflectionRequest(host="here", **question)
        async with (
            open_channel(running.target) as channel,
            channel.open_stream(path, messages.ServerReflectionResponse) as stream,
        ):
            await stream.send(asked)
            response: Any = await stream.receive()
            await stream.send_eof()
            assert await stream.receive() is None
        assert response.original_request == asked
        assert response.valid_host == "here"
        return response

    return ask_one


def files(response: Any) -> list[descriptor_pb2.FileDescriptorProto]:
    return [
        descriptor_pb2.FileDescriptorProto.FromString(encoded)
        for encoded in response.file_descriptor_response.file_descriptor_proto
    ]


async def test_list_services(ask: Any) -> None:
    # GEN-24
    response = await ask(list_services="*")
    assert [service.name for service in response.list_services_response.service] == [
        "a.A",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "z.Z",
    ]


async def test_file_by_name(ask: Any) -> None:
    response = await ask(file_by_filename=health_pb2.DESCRIPTOR.name)
    assert [file.package for file in files(response)] == ["grpc.health.v1"]


@pytest.mark.parametrize(
    "symbol",
    [
        "grpc.health.v1.Health",
        "grpc.health.v1.Health.Check",
        "grpc.health.v1.HealthCheckResponse",
        "grpc.health.v1.HealthCheckResponse.ServingStatus",
    ],
)
async def test_file_containing_symbol(ask: Any, symbol: str) -> None:
    response = await ask(file_containing_symbol=symbol)
    assert [file.package for file in files(response)] == ["grpc.health.v1"]


async def test_a_file_comes_with_all_that_it_imports(ask: Any) -> None:
    response = await ask(file_containing_symbol="google.rpc.Status")
    names = [file.name for file in files(response)]
    assert names[0] == "google/rpc/status.proto"
    assert "google/protobuf/any.proto" in names
    pool = descriptor_pool.DescriptorPool()
    for file in reversed(files(response)):
        pool.Add(file)
    assert pool.FindMessageTypeByName("google.rpc.Status").full_name == "google.rpc.Status"


async def test_extensions(ask: Any) -> None:
    declare_extension()
    response = await ask(all_extension_numbers_of_type="stoker.test.Extended")
    numbers = response.all_extension_numbers_response
    assert (numbers.base_type_name, list(numbers.extension_number)) == (
        "stoker.test.Extended",
        [100, 150],
    )
    response = await ask(
        file_containing_extension={
            "containing_type": "stoker.test.Extended",
            "extension_number": 150,
        }
    )
    assert [file.name for file in files(response)] == ["stoker/test/extended.proto"]


@functools.cache
def declare_extension() -> None:
    file = descriptor_pb2.FileDescriptorProto(
        name="stoker/test/extended.proto", package="stoker.test", syntax="proto2"
    )
    extended = file.message_type.add(name="Extended")
    extended.extension_range.add(start=100, end=200)
    for number in (150, 100):
        file.extension.add(
            name=f"extension_{number}",
            number=number,
            label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
            type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
            extendee=".stoker.test.Extended",
        )
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


@pytest.mark.parametrize(
    "question",
    [
        {"file_by_filename": "no/such.proto"},
        {"file_containing_symbol": "no.Such"},
        {"all_extension_numbers_of_type": "no.Such"},
        {"file_containing_extension": {"containing_type": "no.Such", "extension_number": 1}},
        {
            "file_containing_extension": {
                "containing_type": "grpc.health.v1.HealthCheckRequest",
                "extension_number": 1,
            }
        },
    ],
)
async def test_what_is_unknown_is_not_found(ask: Any, question: dict[str, Any]) -> None:
    response = await ask(**question)
    assert response.error_response.error_code == StatusCode.NOT_FOUND


async def test_a_question_about_nothing(ask: Any) -> None:
    response = await ask()
    assert response.error_response.error_code == StatusCode.INVALID_ARGUMENT

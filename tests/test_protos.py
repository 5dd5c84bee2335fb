"""The wire format: numbers, names and paths that no change of ours may move."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from google.longrunning import operations_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from stoker.protos import (
    bytestream_pb2,
    logstream_pb2,
    remote_asset_pb2,
    semver_pb2,
    worker_protocol_pb2,
)
from stoker.protos import remote_execution_pb2 as reapi
from stoker.rpc.protos import health_pb2, reflection_v1_pb2, reflection_v1alpha_pb2

REPOSITORY = Path(__file__).resolve().parents[1]

FILES = [
    bytestream_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    logstream_pb2.DESCRIPTOR,
    reapi.DESCRIPTOR,
    reflection_v1_pb2.DESCRIPTOR,
    reflection_v1alpha_pb2.DESCRIPTOR,
    remote_asset_pb2.DESCRIPTOR,
    semver_pb2.DESCRIPTOR,
    worker_protocol_pb2.DESCRIPTOR,
]


@pytest.fixture
def generate() -> ModuleType:
    """protos/generate.py, where the compilers that it wants are installed."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    path = REPOSITORY / "protos" / "generate.py"
    specification = importlib.util.spec_from_file_location("stoker_generate_protos", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    if others := module.other_compilers():
        pytest.skip(f"these exact versions are needed: {' '.join(others)}")
    return module


# --- The compiled files -------------------------------------------------------------------------


def test_committed_files_are_what_the_sources_compile_to(generate: ModuleType) -> None:
    committed = generate.generated_files(generate.TARGET_ROOT)
    assert generate.stale_files(generate.freshly_compiled(), committed) == []


def test_check_names_changed_missing_and_orphaned_files(
    generate: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main([], tmp_path) == 0
    compiled = tmp_path / "stoker" / "protos"
    (compiled / "semver_pb2.py").write_text("changed")
    (compiled / "logstream_pb2.pyi").unlink()
    (compiled / "without_source_pb2.py").write_text("")
    capsys.readouterr()

    assert generate.main(["--check"], tmp_path) == 1

    assert capsys.readouterr().out.splitlines() == [
        "stale: stoker/protos/logstream_pb2.pyi",
        "stale: stoker/protos/semver_pb2.py",
        "stale: stoker/protos/without_source_pb2.py",
    ]


def test_generating_again_repairs_what_check_found(generate: ModuleType, tmp_path: Path) -> None:
    generate.main([], tmp_path)
    orphan = tmp_path / "stoker" / "protos" / "without_source_pb2.py"
    orphan.write_text("")
    (tmp_path / "stoker" / "protos" / "semver_pb2.py").unlink()

    assert generate.main([], tmp_path) == 0

    assert generate.main(["--check"], tmp_path) == 0
    assert not orphan.exists()


def compiled_for(file: FileDescriptor) -> tuple[int, ...]:
    """The protobuf version that a compiled file says it needs at least."""
    name = file.name.replace(".proto", "_pb2.py")
    text = (REPOSITORY / "core" / "src" / name).read_text()
    found = re.search(r"^# Protobuf Python Version: (\S+)$", text, re.MULTILINE)
    assert found is not None
    return tuple(int(part) for part in found[1].split("."))


def oldest_protobuf_required() -> tuple[int, ...]:
    project = tomllib.loads((REPOSITORY / "core" / "pyproject.toml").read_text())["project"]
    bounds = [re.match(r"protobuf>=([\d.]+)", line) for line in project["dependencies"]]
    (bound,) = (found[1] for found in bounds if found)
    return tuple(int(part) for part in bound.split("."))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_compiled_files_accept_the_oldest_protobuf_we_require(file: FileDescriptor) -> None:
    assert compiled_for(file) <= oldest_protobuf_required()


# --- Numbers on the wire ------------------------------------------------------------------------

DIGEST = reapi.Digest(hash="a", size_bytes=3)
DIGEST_BYTES = b"\x0a\x01a\x10\x03"
BLAKE3 = reapi.DigestFunction.BLAKE3


@pytest.mark.parametrize(
    ("message", "number"),
    [
        (reapi.ExecuteRequest(digest_function=BLAKE3), 9),
        (reapi.ExecuteOperationMetadata(digest_function=BLAKE3), 6),
        (reapi.GetActionResultRequest(digest_function=BLAKE3), 6),
        (reapi.UpdateActionResultRequest(digest_function=BLAKE3), 5),
        (reapi.FindMissingBlobsRequest(digest_function=BLAKE3), 3),
        (reapi.BatchUpdateBlobsRequest(digest_function=BLAKE3), 5),
        (reapi.BatchReadBlobsRequest(digest_function=BLAKE3), 4),
        (reapi.GetTreeRequest(digest_function=BLAKE3), 5),
        (reapi.SplitBlobRequest(digest_function=BLAKE3), 3),
        (reapi.SpliceBlobRequest(digest_function=BLAKE3), 4),
        (remote_asset_pb2.FetchBlobRequest(digest_function=BLAKE3), 6),
        (remote_asset_pb2.FetchDirectoryResponse(digest_function=BLAKE3), 6),
        (remote_asset_pb2.PushBlobRequest(digest_function=BLAKE3), 8),
        (remote_asset_pb2.PushDirectoryRequest(digest_function=BLAKE3), 8),
    ],
    ids=lambda value: value.DESCRIPTOR.name if isinstance(value, Message) else str(value),
)
def test_each_request_has_a_number_of_its_own_for_the_digest_function(
    message: Message, number: int
) -> None:
    assert message.SerializeToString() == bytes([number << 3, 9])


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (DIGEST, DIGEST_BYTES),
        (reapi.Directory(), b""),
        (reapi.FileNode(name="a", is_executable=True), b"\x0a\x01a\x20\x01"),
        (reapi.SymlinkNode(name="a", target="b"), b"\x0a\x01a\x12\x01b"),
        (reapi.Action(do_not_cache=True, salt=b"s"), b"\x38\x01\x4a\x01s"),
        (reapi.Action(platform=reapi.Platform()), b"\x52\x00"),
        (
            reapi.Command(output_paths=["p"], output_directory_format=reapi.Command.DIRECTORY_ONLY),
            b"\x3a\x01p\x48\x01",
        ),
        (reapi.FindMissingBlobsResponse(missing_blob_digests=[DIGEST]), b"\x12\x05" + DIGEST_BYTES),
        (
            reapi.ExecuteRequest(skip_cache_lookup=True, action_digest=DIGEST),
            b"\x18\x01\x32\x05" + DIGEST_BYTES,
        ),
        (
            reapi.ExecutedActionMetadata(virtual_execution_duration=Duration(seconds=1)),
            b"\x62\x02\x08\x01",
        ),
        (
            reapi.ActionResult(output_symlinks=[reapi.OutputSymlink(path="p", target="t")]),
            b"\x62\x06\x0a\x01p\x12\x01t",
        ),
        (
            reapi.OutputDirectory(path="p", tree_digest=DIGEST, root_directory_digest=DIGEST),
            b"\x0a\x01p\x1a\x05" + DIGEST_BYTES + b"\x2a\x05" + DIGEST_BYTES,
        ),
        (
            reapi.BatchReadBlobsResponse.Response(
                data=b"d", status=status_pb2.Status(code=5), compressor=reapi.Compressor.ZSTD
            ),
            b"\x12\x01d\x1a\x02\x08\x05\x20\x01",
        ),
        (
            reapi.ExecuteResponse(server_logs={"k": reapi.LogFile(human_readable=True)}),
            b"\x22\x07\x0a\x01k\x12\x02\x10\x01",
        ),
        (
            reapi.CacheCapabilities(max_cas_blob_size_bytes=1, splice_blob_support=True),
            b"\x40\x01\x50\x01",
        ),
        (bytestream_pb2.ReadResponse(data=b"d"), b"\x52\x01d"),
        (
            bytestream_pb2.WriteRequest(
                resource_name="r", write_offset=1, finish_write=True, data=b"d"
            ),
            b"\x0a\x01r\x10\x01\x18\x01\x52\x01d",
        ),
        # A varint of ten bytes: what a compressed write of a known blob is answered with.
        (bytestream_pb2.WriteResponse(committed_size=-1), b"\x08" + b"\xff" * 9 + b"\x01"),
        (
            worker_protocol_pb2.WorkRequest(
                arguments=["a"],
                inputs=[worker_protocol_pb2.Input(path="p", digest=b"d")],
                request_id=1,
                cancel=True,
                verbosity=1,
                sandbox_dir="s",
            ),
            b"\x0a\x01a\x12\x06\x0a\x01p\x12\x01d\x18\x01\x20\x01\x28\x01\x32\x01s",
        ),
        (
            worker_protocol_pb2.WorkResponse(
                exit_code=1, output="o", request_id=2, was_cancelled=True
            ),
            b"\x08\x01\x12\x01o\x18\x02\x20\x01",
        ),
        (
            health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING),
            b"\x08\x02",
        ),
        (reflection_v1_pb2.ServerReflectionRequest(list_services="*"), b"\x3a\x01*"),
        (reflection_v1alpha_pb2.ServerReflectionRequest(list_services="*"), b"\x3a\x01*"),
    ],
    ids=lambda value: value.DESCRIPTOR.name if isinstance(value, Message) else "",
)
def test_messages_have_these_bytes(message: Message, wire: bytes) -> None:
    assert message.SerializeToString() == wire


def declared_messages(file: FileDescriptor) -> list[DescriptorProto]:
    """The top-level messages as they were declared; only this form has the reserved numbers."""
    return list(FileDescriptorProto.FromString(file.serialized_pb).message_type)


def retired_numbers(message: DescriptorProto) -> set[int]:
    return {number for span in message.reserved_range for number in range(span.start, span.end)}


def test_retired_numbers_stay_reserved() -> None:
    messages = declared_messages(reapi.DESCRIPTOR)
    retired = {message.name: retired_numbers(message) for message in messages}
    assert {name: numbers for name, numbers in retired.items() if numbers} == {
        "Action": {3, 4, 5, 8},
        "Directory": {4},
        "FileNode": {3, 5},
        "SymlinkNode": {3},
        "ActionResult": {1},
        "OutputFile": {3, 6},
        "OutputDirectory": {2},
        "OutputSymlink": {3},
        "ExecuteRequest": {2, 4, 5},
    }


def test_fields_of_older_clients_are_kept_and_marked() -> None:
    deprecated = {
        f"{message.name}.{field.name}"
        for message in declared_messages(reapi.DESCRIPTOR)
        for field in message.field
        if field.options.deprecated
    }
    assert deprecated == {
        "Command.output_files",
        "Command.output_directories",
        "Command.platform",
        "ActionResult.output_file_symlinks",
        "ActionResult.output_directory_symlinks",
    }


# --- Names on the wire --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "type_url"),
    [
        (
            reapi.ExecuteOperationMetadata(),
            "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteOperationMetadata",
        ),
        (
            reapi.ExecuteResponse(),
            "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteResponse",
        ),
        (
            error_details_pb2.PreconditionFailure(),
            "type.googleapis.com/google.rpc.PreconditionFailure",
        ),
        (error_details_pb2.RetryInfo(), "type.googleapis.com/google.rpc.RetryInfo"),
        (error_details_pb2.BadRequest(), "type.googleapis.com/google.rpc.BadRequest"),
    ],
    ids=lambda value: value.DESCRIPTOR.name if isinstance(value, Message) else "",
)
def test_packed_messages_have_these_type_urls(message: Message, type_url: str) -> None:
    operation = operations_pb2.Operation()
    operation.metadata.Pack(message)
    assert operation.metadata.type_url == type_url


REAPI = "/build.bazel.remote.execution.v2"
ASSET = "/build.bazel.remote.asset.v1"


def test_calls_have_these_paths_and_streams() -> None:
    paths = {
        f"{'stream ' if method.client_streaming else ''}"
        f"/{service.full_name}/{method.name}"
        f"{' stream' if method.server_streaming else ''}"
        for file in FILES
        for service in file.services_by_name.values()
        for method in service.methods
    }
    assert paths == {
        f"{REAPI}.Execution/Execute stream",
        f"{REAPI}.Execution/WaitExecution stream",
        f"{REAPI}.ActionCache/GetActionResult",
        f"{REAPI}.ActionCache/UpdateActionResult",
        f"{REAPI}.ContentAddressableStorage/FindMissingBlobs",
        f"{REAPI}.ContentAddressableStorage/BatchUpdateBlobs",
        f"{REAPI}.ContentAddressableStorage/BatchReadBlobs",
        f"{REAPI}.ContentAddressableStorage/GetTree stream",
        f"{REAPI}.ContentAddressableStorage/SplitBlob",
        f"{REAPI}.ContentAddressableStorage/SpliceBlob",
        f"{REAPI}.Capabilities/GetCapabilities",
        "/google.bytestream.ByteStream/Read stream",
        "stream /google.bytestream.ByteStream/Write",
        "/google.bytestream.ByteStream/QueryWriteStatus",
        f"{ASSET}.Fetch/FetchBlob",
        f"{ASSET}.Fetch/FetchDirectory",
        f"{ASSET}.Push/PushBlob",
        f"{ASSET}.Push/PushDirectory",
        "/build.bazel.remote.logstream.v1.LogStreamService/CreateLogStream",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch stream",
        "stream /grpc.reflection.v1.ServerReflection/ServerReflectionInfo stream",
        "stream /grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo stream",
    }

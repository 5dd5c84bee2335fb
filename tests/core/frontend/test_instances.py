"""Several instances on one server: what they share and what they do not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.longrunning import operations_pb2

from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi

from .conftest import OPERATIONS, REAPI, Client, chunks, open_client

AC = REAPI + "ActionCache/"
CAS = REAPI + "ContentAddressableStorage/"

TOML = """
[blob_stores.one]
kind = "memory"
[blob_stores.two]
kind = "memory"
[blob_stores.one-to-read]
kind = "read-only"
of = "one"
[action_caches.shared]
kind = "memory"
[executors.one]
strategy = "local"
slots = 1
properties = { site = "one" }
[executors.two]
strategy = "local"
slots = 1
properties = { site = "two" }
[instances."team/one"]
blob_store = "one"
action_cache = "shared"
executors = ["one"]
[instances.two]
blob_store = "two"
action_cache = "shared"
executors = ["two"]
[instances.readers]
blob_store = "one-to-read"
action_cache = "shared"
client_updates = false
"""


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with open_client(TOML, tmp_path) as client:
        yield client


async def put_action(client: Client, instance_name: str, site: str) -> Digest:
    command = reapi.Command(arguments=["sh", "-c", "echo ran"])
    [digest] = await client.put(command.SerializeToString(), instance_name=instance_name)
    action = reapi.Action(
        command_digest=digest.to_proto(), input_root_digest=SHA256.empty.to_proto()
    )
    if site:
        action.platform.properties.add(name="site", value=site)
    [digest] = await client.put(action.SerializeToString(), instance_name=instance_name)
    return digest


async def execute(client: Client, instance_name: str, digest: Digest) -> reapi.ExecuteResponse:
    request = reapi.ExecuteRequest(instance_name=instance_name, action_digest=digest.to_proto())
    operations = await client.stream(REAPI + "Execution/Execute", request, operations_pb2.Operation)
    response = reapi.ExecuteResponse()
    assert operations[-1].response.Unpack(response)
    return response


async def test_blobs_are_where_their_store_is(client: Client) -> None:
    [digest] = await client.put(b"only in one", instance_name="team/one")
    assert await client.missing(digest, instance_name="two") == {digest.hash}
    assert await client.missing(digest, instance_name="readers") == set()
    assert await client.read(f"team/one/blobs/{digest}") == b"only in one"  # BSR-02
    assert await client.read(f"readers/blobs/{digest}") == b"only in one"
    with pytest.raises(grpc.RpcError):
        await client.read(f"two/blobs/{digest}")


async def test_to_know_a_digest_is_not_to_have_the_blob(client: Client) -> None:
    # STO-09: an instance on another store gives nothing away, by no route that takes a digest,
    # and takes nothing on the word of who knows one.
    secret = reapi.Directory(symlinks=[reapi.SymlinkNode(name="s", target="ecret")])
    [digest] = await client.put(secret.SerializeToString(), instance_name="team/one")
    action = SHA256.digest(b"an action")
    named = reapi.ActionResult(
        output_files=[reapi.OutputFile(path="secret", digest=digest.to_proto())]
    )
    for name in ("team/one", "two"):
        request = reapi.UpdateActionResultRequest(
            instance_name=name, action_digest=action.to_proto(), action_result=named
        )
        await client.unary(AC + "UpdateActionResult", request, reapi.ActionResult)

    assert await routes_to(client, "two", digest, action) == set()
    upload = f"two/uploads/u/blobs/{digest}"
    assert await client.write_status(upload) == (0, False)
    with pytest.raises(grpc.RpcError) as info:
        await client.write(chunks(upload, bytes(digest.size_bytes), 100))
    assert info.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await routes_to(client, "two", digest, action) == set()

    # Who has the bytes may bring them.
    assert await client.write(chunks(upload, secret.SerializeToString(), 100)) == digest.size_bytes
    every = {"FindMissingBlobs", "Read", "BatchReadBlobs", "GetTree", "GetActionResult"}
    assert await routes_to(client, "two", digest, action) == every
    # Instances on one store are one house: what is in one can be read in the other.
    assert await routes_to(client, "readers", digest, action) == every - {"GetActionResult"}


async def routes_to(client: Client, name: str, digest: Digest, action: Digest) -> set[str]:
    """The methods by which instance `name` admits that it has a directory, or a result of it."""
    batch = reapi.BatchReadBlobsRequest(instance_name=name, digests=[digest.to_proto()])
    tree = reapi.GetTreeRequest(instance_name=name, root_digest=digest.to_proto())
    result = reapi.GetActionResultRequest(instance_name=name, action_digest=action.to_proto())
    found = set()
    if not await client.missing(digest, instance_name=name):
        found.add("FindMissingBlobs")
    answer = await client.unary(CAS + "BatchReadBlobs", batch, reapi.BatchReadBlobsResponse)
    if answer.responses[0].data or answer.responses[0].status.code != 5:
        found.add("BatchReadBlobs")
    for method, asked in (
        ("Read", client.read(f"{name}/blobs/{digest}")),
        ("GetTree", client.stream(CAS + "GetTree", tree, reapi.GetTreeResponse)),
        ("GetActionResult", client.unary(AC + "GetActionResult", result, reapi.ActionResult)),
    ):
        try:
            await asked
            found.add(method)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                found.add(f"{method}: {error.code()}")
    return found


async def test_each_instance_runs_on_its_own_executors(client: Client) -> None:
    for name, site in (("team/one", "one"), ("two", "two")):
        response = await execute(client, name, await put_action(client, name, site))
        assert response.result.execution_metadata.worker == site
        other = "two" if site == "one" else "one"
        misplaced = await put_action(client, name, other)
        with pytest.raises(grpc.RpcError) as info:
            await execute(client, name, misplaced)
        assert f"executor {site!r}: wants site={other}, offers {site}" in info.value.details()


async def test_results_are_not_shared_in_a_shared_cache(client: Client) -> None:  # ACG-10
    digests = [await put_action(client, name, "") for name in ("team/one", "two")]
    assert digests[0] == digests[1]
    for name in ("team/one", "two"):
        assert not (await execute(client, name, digests[0])).cached_result
        assert (await execute(client, name, digests[0])).cached_result


async def test_operations_are_those_of_their_instance(client: Client) -> None:  # OPS-20
    await execute(client, "two", await put_action(client, "two", ""))
    for name, count in (("two", 1), ("two/operations", 1), ("team/one", 0)):
        listed = await client.unary(
            OPERATIONS + "ListOperations",
            operations_pb2.ListOperationsRequest(name=name),
            operations_pb2.ListOperationsResponse,
        )
        assert [
            operation.name.startswith("two/operations/") for operation in listed.operations
        ] == [True] * count


async def test_readers_only_read(client: Client) -> None:  # ACU-06, CAP-01, CAP-07
    answer = await client.unary(
        REAPI + "Capabilities/GetCapabilities",
        reapi.GetCapabilitiesRequest(instance_name="readers"),
        reapi.ServerCapabilities,
    )
    update = answer.cache_capabilities.action_cache_update_capabilities
    assert not update.update_enabled
    assert not answer.HasField("execution_capabilities")
    request = reapi.UpdateActionResultRequest(
        instance_name="readers",
        action_digest=SHA256.digest(b"a").to_proto(),
        action_result=reapi.ActionResult(exit_code=0),
    )
    with pytest.raises(grpc.RpcError) as info:
        await client.unary(REAPI + "ActionCache/UpdateActionResult", request, reapi.ActionResult)
    assert info.value.code() is grpc.StatusCode.PERMISSION_DENIED

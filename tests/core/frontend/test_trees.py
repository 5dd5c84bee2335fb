"""GetTree beyond its plain answers: tokens, huge and deep trees, pages (section 5)."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import grpc
import pytest

from stoker.digest import SHA256, Digest
from stoker.protos import remote_execution_pb2 as reapi
from stoker.storage.memory import MemoryBlobStore

from .conftest import REAPI, Client, failure_of, instance_of, open_front_door

CAS = REAPI + "ContentAddressableStorage/"
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with open_front_door(instance_of(MemoryBlobStore())) as client:
        yield client


async def pages(
    client: Client, root: Digest, page_size: int = 0, token: str = ""
) -> list[reapi.GetTreeResponse]:
    request = reapi.GetTreeRequest(
        root_digest=root.to_proto(), page_size=page_size, page_token=token
    )
    return await client.stream(CAS + "GetTree", request, reapi.GetTreeResponse)


async def chain(client: Client, depth: int, width: int = 1) -> Digest:
    """A tree of `depth` directories, each `width` times in the one above it."""
    blobs = []
    digest = SHA256.empty
    for _ in range(depth):
        directory = reapi.Directory(
            directories=[
                reapi.DirectoryNode(name=f"d{number}", digest=digest.to_proto())
                for number in range(width)
            ]
        )
        blobs.append(directory.SerializeToString())
        digest = SHA256.digest(blobs[-1])
    for start in range(0, len(blobs), 2_000):
        await client.put(*blobs[start : start + 2_000])
    return digest


async def test_tokens_are_good_for_other_servers() -> None:  # GTR-05
    store = MemoryBlobStore()
    async with open_front_door(instance_of(store)) as client:
        root = await chain(client, 7)
        whole = await pages(client, root, 3)
        assert [len(page.directories) for page in whole] == [3, 3, 2]  # GTR-04
        assert [bool(page.next_page_token) for page in whole] == [True, True, False]  # GTR-06
    async with open_front_door(instance_of(store)) as client:
        for number in (0, 1):
            rest = await pages(client, root, 3, whole[number].next_page_token)
            assert rest == whole[number + 1 :]


def token_of(text: bytes) -> str:
    return base64.urlsafe_b64encode(text).decode()


async def test_bad_tokens(client: Client) -> None:  # GTR-07
    root = await chain(client, 3)
    prefix = root.hash[:16].encode()
    for token in (
        "bad",
        "é",
        "====",
        token_of(b"\xff\xff"),
        token_of(prefix),
        token_of(prefix + b":-1"),
        token_of(prefix + ":²".encode()),
        token_of(prefix + b":" + b"9" * 5_000),
        token_of(b"0" * 16 + b":1"),
    ):
        error = await failure_of(pages(client, root, 0, token))
        assert error.code() is INVALID
    [beyond] = await pages(client, root, 0, token_of(prefix + b":1000000"))
    assert not beyond.directories


async def test_a_huge_tree_of_few_directories(client: Client) -> None:  # GTR-08
    root = await chain(client, 30, width=2)  # 2**30 places
    [page] = await pages(client, root)
    assert len(page.directories) == 31


async def test_a_deep_tree(client: Client) -> None:  # GTR-11
    root = await chain(client, 10_000)
    answer = await pages(client, root)
    assert sum(len(page.directories) for page in answer) == 10_001


async def test_pages_stay_messages_that_clients_take(client: Client) -> None:  # GTR-13
    names = [f"{number:03}" + "x" * 1_000 for number in range(900)]
    nodes = []
    for salt in range(8):
        directory = reapi.Directory(
            symlinks=[reapi.SymlinkNode(name=name, target=str(salt)) for name in names]
        )
        nodes.append(
            reapi.DirectoryNode(
                name=str(salt), digest=(await client.put_message(directory)).to_proto()
            )
        )
    root = await client.put_message(reapi.Directory(directories=nodes))
    answer = await pages(client, root)
    assert len(answer) > 1
    assert max(page.ByteSize() for page in answer) < 4 << 20
    assert sum(len(page.directories) for page in answer) == 9

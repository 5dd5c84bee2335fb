"""The admin service on its own socket."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
import trio
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from stoker.digest import SHA256, Digest
from stoker.frontend.admin import AdminService
from stoker.frontend.provenance import stamp
from stoker.frontend.status import translate
from stoker.protos import admin_pb2 as admin
from stoker.protos import remote_execution_pb2 as reapi
from stoker.protos.provenance_pb2 import Provenance
from stoker.rpc import RpcError, Server, StatusCode, open_channel
from stoker.spi import ActionKey, ActionResult, ScrubFinding
from stoker.storage.memory import MemoryActionCache, MemoryBlobStore
from stoker.storage.read_only import ReadOnlyActionCache
from stoker.testing.server import MEMORY_ONLY, open_test_server

from .conftest import REAPI, Client

ResponseT = TypeVar("ResponseT", bound=Message)
ADMIN = "/stoker.admin.v1.Admin/"


def at(seconds: int) -> Timestamp:
    return Timestamp(seconds=seconds)


ENTRIES = {
    "a": Provenance(tool_name="bazel", tool_invocation_id="i1", written_at=at(100), peer="here"),
    "b": Provenance(tool_name="buck2", tool_invocation_id="i2", written_at=at(200)),
    "c": Provenance(tool_name="bazel", executor="local", written_at=at(300), principal="eve"),
    "d": None,
}


def action(name: str) -> Digest:
    return SHA256.digest(name.encode())


@dataclass
class House:
    """An admin service on a cache with the entries above and an empty one."""

    cache: MemoryActionCache
    address: str

    async def call(self, method: str, request: Message) -> list[str]:
        """The names of the entries that were told, in order."""
        names = {action(name).hash: name for name in ENTRIES}
        return sorted(names[each.action_hash] for each in await self.results(method, request))

    async def results(self, method: str, request: Message) -> list[admin.ListedResult]:
        return await answers(self.address, method, request, admin.ListedResult)

    async def left(self) -> list[str]:
        return [name for name in ENTRIES if await self.cache.get(ActionKey("main", action(name)))]


async def answers(
    address: str, method: str, request: Message, response: type[ResponseT]
) -> list[ResponseT]:
    async with (
        open_channel(address) as channel,
        channel.open_stream(ADMIN + method, response) as stream,
    ):
        await stream.send(request)
        await stream.send_eof()
        found = []
        while (one := await stream.receive()) is not None:
            found.append(one)
        return found


@asynccontextmanager
async def serving(service: AdminService, folder: Path) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        server = Server([service.service()], translate_error=translate)
        address = f"unix:{folder}/a.socket"
        server.add_listener(address)
        await nursery.start(server.serve)
        yield address
        await server.stop(0)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    cache = MemoryActionCache()
    for name, written in ENTRIES.items():
        result = ActionResult(exit_code=2 if name == "b" else 0)
        if written is not None:
            stamp(result, written)
        await cache.update(ActionKey("main", action(name)), result)
    service = AdminService({"empty": MemoryActionCache(), "full": cache}, {})
    async with serving(service, tmp_path) as address:
        yield House(cache, address)


FILTERS = [
    (admin.ResultFilter(), "abcd"),
    (admin.ResultFilter(instance_name="main"), "abcd"),
    (admin.ResultFilter(instance_name=""), ""),
    (admin.ResultFilter(action_hash=action("b").hash), "b"),
    (admin.ResultFilter(action_hash=action("d").hash[:12]), "d"),
    (admin.ResultFilter(tool_name="bazel"), "ac"),
    (admin.ResultFilter(tool_invocation_id="i2"), "b"),
    (admin.ResultFilter(executor="local"), "c"),
    (admin.ResultFilter(principal="eve"), "c"),
    (admin.ResultFilter(peer="here"), "a"),
    (admin.ResultFilter(written_before=at(200)), "a"),
    (admin.ResultFilter(written_after=at(200)), "c"),
    (admin.ResultFilter(written_after=at(100), written_before=at(300)), "b"),
    (admin.ResultFilter(tool_name="bazel", written_after=at(150)), "c"),
    (admin.ResultFilter(tool_name="bazel", executor="other"), ""),
]


@pytest.mark.parametrize(("wanted", "names"), FILTERS)
async def test_filters(house: House, wanted: admin.ResultFilter, names: str) -> None:  # ACU-12
    assert await house.call("ListResults", admin.ListResultsRequest(filter=wanted)) == [*names]
    request = admin.PurgeResultsRequest(filter=wanted, dry_run=True, all=True)
    assert await house.call("PurgeResults", request) == [*names]
    assert await house.left() == [*ENTRIES]
    request.dry_run = False
    assert await house.call("PurgeResults", request) == [*names]
    assert await house.left() == [name for name in ENTRIES if name not in names]


async def test_a_listed_result_tells_all_there_is(house: House) -> None:
    request = admin.ListResultsRequest(filter=admin.ResultFilter(tool_name="buck2"))
    [listed] = await house.results("ListResults", request)
    assert listed == admin.ListedResult(
        action_cache="full",
        instance_name="main",
        digest_function="SHA256",
        action_hash=action("b").hash,
        action_size_bytes=1,
        exit_code=2,
        provenance=ENTRIES["b"],
    )


async def test_everything_is_purged_only_on_request(house: House) -> None:
    for request in (admin.PurgeResultsRequest(), admin.PurgeResultsRequest(dry_run=True)):
        with pytest.raises(RpcError) as info:
            await house.call("PurgeResults", request)
        assert info.value.code is StatusCode.INVALID_ARGUMENT
    assert await house.left() == [*ENTRIES]
    await house.call("PurgeResults", admin.PurgeResultsRequest(all=True))
    assert await house.left() == []


async def test_many_results_are_purged(tmp_path: Path) -> None:
    cache = MemoryActionCache()
    for number in range(1_000):
        await cache.update(ActionKey("", action(str(number))), ActionResult())
    async with serving(AdminService({"main": cache}, {}), tmp_path) as address:
        request = admin.PurgeResultsRequest(all=True)
        assert len(await answers(address, "PurgeResults", request, admin.ListedResult)) == 1_000
        everything = admin.ListResultsRequest()
        assert await answers(address, "ListResults", everything, admin.ListedResult) == []


class Counting(MemoryActionCache):
    """Counts how often its entries are used."""

    uses = 0

    async def get(self, key: ActionKey) -> ActionResult | None:
        self.uses += 1
        return await super().get(key)

    async def peek(self, key: ActionKey) -> ActionResult | None:
        return await super().get(key)


async def test_to_be_listed_is_not_to_be_used(tmp_path: Path) -> None:
    cache = Counting()
    await cache.update(ActionKey("", action("a")), ActionResult())
    async with serving(AdminService({"main": cache}, {}), tmp_path) as address:
        everything = admin.ListResultsRequest()
        assert len(await answers(address, "ListResults", everything, admin.ListedResult)) == 1
    assert cache.uses == 0


async def test_a_cache_that_cannot_be_listed_is_told_beside_the_others(tmp_path: Path) -> None:
    inner = MemoryActionCache()
    await inner.update(ActionKey("", action("a")), ActionResult())
    caches = {"shut": ReadOnlyActionCache(inner, "shut"), "open": inner}
    async with serving(AdminService(caches, {}), tmp_path) as address:
        for method, request in (
            ("ListResults", admin.ListResultsRequest()),
            ("PurgeResults", admin.PurgeResultsRequest(all=True)),
        ):
            shut, found = await answers(address, method, request, admin.ListedResult)
            assert (shut.action_cache, "cannot list" in shut.trouble) == ("shut", True)
            assert found.action_hash == action("a").hash


# --- scrubbing


class Scrubbed(MemoryBlobStore):
    """Finds what it is told to find."""

    def __init__(self, *findings: ScrubFinding) -> None:
        super().__init__()
        self._findings = findings

    @asynccontextmanager
    async def scrub(self) -> AsyncIterator[AsyncIterator[ScrubFinding]]:
        yield _Findings(self._findings)


class _Findings(AsyncIterator[ScrubFinding]):
    def __init__(self, findings: Sequence[ScrubFinding]) -> None:
        self._findings = iter(findings)

    async def __anext__(self) -> ScrubFinding:
        await trio.lowlevel.checkpoint()
        if (finding := next(self._findings, None)) is None:
            raise StopAsyncIteration
        return finding


async def test_scrub_tells_findings_and_progress(tmp_path: Path) -> None:  # STO-08
    bad = ScrubFinding(action("bad"), "it hashes to something else, and was dropped", 7)
    nameless = ScrubFinding(None, "a file that is no blob", 8)
    stores = {
        "sound": Scrubbed(ScrubFinding(None, "", 2000)),
        "damaged": Scrubbed(bad, nameless),
        "plain": MemoryBlobStore(),
    }
    progress = admin.ScrubProgress
    async with serving(AdminService({}, stores), tmp_path) as address:
        sound, sound_end, one, two, damaged_end, plain = await answers(
            address, "Scrub", admin.ScrubRequest(), progress
        )
        assert sound == progress(blob_store="sound", checked=2000)
        assert sound_end == progress(blob_store="sound", checked=2000, done=True)
        assert one == progress(
            blob_store="damaged", digest=str(bad.digest), problem=bad.problem, checked=7
        )
        assert two == progress(blob_store="damaged", problem=nameless.problem, checked=8)
        assert damaged_end == progress(blob_store="damaged", checked=8, done=True)
        assert (plain.done, "cannot be scrubbed" in plain.problem) == (True, True)
        request = admin.ScrubRequest(blob_stores=["sound"])
        assert await answers(address, "Scrub", request, progress) == [sound, sound_end]
        with pytest.raises(RpcError, match="'nope'"):
            await answers(address, "Scrub", admin.ScrubRequest(blob_stores=["nope"]), progress)


# --- where it is served

COMPOSED = """
[blob_stores.main]
kind = "memory"
[blob_stores.window]
kind = "read-only"
of = "main"
[action_caches.main]
kind = "memory"
[action_caches.near]
kind = "memory"
[action_caches.both]
kind = "tiered"
near = "near"
far = "main"
[instances.""]
blob_store = "main"
action_cache = "both"
[server]
state_directory = "state"
"""


async def test_the_socket_is_private_and_the_only_way(tmp_path: Path) -> None:
    async with open_test_server(COMPOSED, tmp_path) as server:
        socket = tmp_path / "state" / "admin.socket"
        assert stat.filemode(socket.stat().st_mode) == "srw-------"
        assert stat.filemode(socket.parent.stat().st_mode) == "drwx------"
        with pytest.raises(RpcError) as info:
            await answers(
                server.address, "ListResults", admin.ListResultsRequest(), admin.ListedResult
            )
        assert info.value.code is StatusCode.UNIMPLEMENTED
        client = Client(server.address)
        await client.unary(
            REAPI + "ActionCache/UpdateActionResult",
            reapi.UpdateActionResultRequest(
                action_digest=action("a").to_proto(), action_result=reapi.ActionResult()
            ),
            reapi.ActionResult,
        )
        # Each entry once, in the caches that the tiered one is made of.
        address = f"unix:{socket}"
        request = admin.ListResultsRequest()
        listed = await answers(address, "ListResults", request, admin.ListedResult)
        assert [(each.action_cache, each.trouble) for each in listed] == [
            ("main", ""),
            ("near", ""),
        ]
        purge = admin.PurgeResultsRequest(filter=admin.ResultFilter(instance_name=""))
        assert len(await answers(address, "PurgeResults", purge, admin.ListedResult)) == 2
        get = reapi.GetActionResultRequest(action_digest=action("a").to_proto())
        with pytest.raises(grpc.RpcError) as gone:
            await client.unary(REAPI + "ActionCache/GetActionResult", get, reapi.ActionResult)
        assert gone.value.code() is grpc.StatusCode.NOT_FOUND
        client.channel.close()
    assert not socket.exists()


async def test_a_server_serves_without_a_place_for_the_socket(tmp_path: Path) -> None:
    deep = "d" * 120
    async with open_test_server(COMPOSED.replace('"state"', f'"{deep}"'), tmp_path) as server:
        client = Client(server.address)
        assert await client.missing(SHA256.empty) == set()
        client.channel.close()


async def test_nothing_is_listed_of_an_empty_server(tmp_path: Path) -> None:
    async with open_test_server(MEMORY_ONLY, tmp_path):
        address = f"unix:{tmp_path}/stoker-state/admin.socket"
        request = admin.ListResultsRequest()
        assert await answers(address, "ListResults", request, admin.ListedResult) == []

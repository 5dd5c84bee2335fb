"""What every action cache promises, one law a test."""

from __future__ import annotations

import pytest
import trio

from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import SHA256, ActionCache, ActionKey, ActionResult

ACTION = SHA256.digest(b"an action")


class ActionCacheLaws:
    """Inherit it in a class named ``Test…`` and override the fixture `cache`.

    The fixture yields an empty, open cache, a new one for each test. It must take a result of
    1 MiB.
    """

    @pytest.fixture
    async def cache(self) -> ActionCache:
        """Override this: an empty, open cache."""
        raise NotImplementedError("a subclass of ActionCacheLaws has to define a fixture `cache`")

    async def test_unknown_key_is_absent(self, cache: ActionCache) -> None:
        # ACG-01
        assert await cache.get(ActionKey("", ACTION)) is None

    async def test_result_comes_back_as_it_was(self, cache: ActionCache) -> None:
        # ACU-01, ACG-14
        result = ActionResult(
            output_files=[
                reapi.OutputFile(
                    path="out/ä b", digest=SHA256.digest(b"x").to_proto(), is_executable=True
                )
            ],
            stdout_raw=b"\x00\xff",
            execution_metadata=reapi.ExecutedActionMetadata(worker="executor 1"),
        )
        result.execution_metadata.queued_timestamp.FromSeconds(1_000_000_000)
        await cache.update(ActionKey("main", ACTION), result)
        assert await cache.get(ActionKey("main", ACTION)) == result

    async def test_looking_at_a_result_finds_it(self, cache: ActionCache) -> None:
        assert await cache.peek(ActionKey("main", ACTION)) is None
        await cache.update(ActionKey("main", ACTION), _result(b"main"))
        assert await cache.peek(ActionKey("main", ACTION)) == _result(b"main")
        assert await cache.peek(ActionKey("", ACTION)) is None

    async def test_last_update_wins(self, cache: ActionCache) -> None:
        # ACU-05
        key = ActionKey("", ACTION)
        for size in (100, 3, 50):
            await cache.update(key, _result(b"x" * size))
            assert await cache.get(key) == _result(b"x" * size)

    async def test_large_result(self, cache: ActionCache) -> None:
        key = ActionKey("", ACTION)
        await cache.update(key, _result(bytes(1024 * 1024)))
        assert await cache.get(key) == _result(bytes(1024 * 1024))

    async def test_namespaces_do_not_see_each_other(self, cache: ActionCache) -> None:
        # ACG-10
        await cache.update(ActionKey("main", ACTION), _result(b"main"))
        await cache.update(ActionKey("other", ACTION), _result(b"other"))
        assert await cache.get(ActionKey("main", ACTION)) == _result(b"main")
        assert await cache.get(ActionKey("other", ACTION)) == _result(b"other")
        assert await cache.get(ActionKey("", ACTION)) is None

    async def test_any_text_is_a_namespace(self, cache: ActionCache) -> None:
        # SEC-05
        namespaces = [
            "",
            ".",
            "..",
            "../../x",
            "/etc",
            "a/b",
            "a//b",
            "a",
            "A",
            "a b",
            "ä",
            "a\u0308",
            "nul\0",
            "new\nline",
            "n" * 1000,
        ]
        for name in namespaces:
            await cache.update(ActionKey(name, ACTION), _result(name.encode()))
        for name in namespaces:
            assert await cache.get(ActionKey(name, ACTION)) == _result(name.encode()), name

    async def test_size_is_part_of_the_key(self, cache: ActionCache) -> None:
        # ACG-09
        await cache.update(ActionKey("", ACTION), _result(b"x"))
        wrong = SHA256.named(ACTION.hash, ACTION.size_bytes + 1)
        assert await cache.get(ActionKey("", wrong)) is None

    async def test_changing_a_message_changes_nothing_stored(self, cache: ActionCache) -> None:
        key = ActionKey("", ACTION)
        filed = _result(b"as filed")
        await cache.update(key, filed)
        filed.stdout_raw = b"changed after"
        got = await cache.get(key)
        assert got == _result(b"as filed")
        got.stdout_raw = b"changed by a reader"
        assert await cache.get(key) == _result(b"as filed")

    async def test_cancelled_update_leaves_old_or_new(self, cache: ActionCache) -> None:
        key = ActionKey("", ACTION)
        old, new = _result(b"old" * 1000), _result(b"new" * 100_000)
        await cache.update(key, old)
        with trio.CancelScope() as scope:
            scope.cancel()
            await cache.update(key, new)
        assert await cache.get(key) in (old, new)

    async def test_concurrent_updates_leave_one_of_them_whole(self, cache: ActionCache) -> None:
        key = ActionKey("", ACTION)
        results = [_result(bytes([number]) * 10_000) for number in range(20)]
        seen: list[ActionResult | None] = []

        async def read() -> None:
            seen.append(await cache.get(key))

        async with trio.open_nursery() as nursery:
            for result in results:
                nursery.start_soon(cache.update, key, result)
                nursery.start_soon(read)
        assert await cache.get(key) in results
        assert all(result is None or result in results for result in seen)


def _result(stdout: bytes) -> ActionResult:
    return ActionResult(stdout_raw=stdout)

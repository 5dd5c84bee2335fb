"""Actions as processes of their own, really started."""

from __future__ import annotations

from typing import Any

Rig = Any


async def test_streams_are_kept_apart_and_byte_exact(rig: Rig) -> None:
    # RUN-13
    result = await rig.shell(r"printf 'a\000\377' ; printf 'b' >&2")
    assert await rig.cas.get(result.stdout_digest) == b"a\0\xff"
    assert await rig.cas.get(result.stderr_digest) == b"b"
    assert rig.leftovers() == []

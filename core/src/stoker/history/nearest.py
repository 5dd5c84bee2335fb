"""The earlier action that one is likely meant to be the same as, and what they differ in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from stoker.action import parse_command
from stoker.digest import Digest
from stoker.errors import DataLoss, InvalidRequest
from stoker.history.difference import (
    Difference,
    action_differences,
    command_differences,
    encoding_difference,
    platform_differences,
)
from stoker.history.kept_run import KeptRun
from stoker.history.records import History
from stoker.history.tree_difference import tree_differences
from stoker.protos import remote_execution_pb2 as reapi
from stoker.spi import BlobStore

MAX_CANDIDATES = 8
"""How many earlier actions are compared, at most."""

MAX_DIFFERENCES = 1_000

# What is alike, best first. A target may hold hundreds of actions of one
# mnemonic, which their outputs tell apart.
_LIKENESSES: Sequence[tuple[str, ...]] = (
    ("target", "mnemonic", "output"),
    ("target", "mnemonic"),
    ("mnemonic", "output"),
    ("mnemonic", "program"),
)
_TELLING = {"target", "output", "program"}
"""Columns that are alike by chance where they are empty."""


@dataclass(slots=True)
class Comparison:
    """What an action differs in from an earlier one."""

    run: KeptRun
    """Of the earlier one."""
    alike: str
    """What they have in common: target, mnemonic, output (the first), program."""
    differences: list[Difference] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    """What could not be compared, as the CAS holds it no longer."""
    cut_off: bool = False
    """Whether there are more differences than are told."""

    @property
    def weight(self) -> tuple[int, int]:
        """How far apart they are; what could not be compared may be anything."""
        return len(self.gone), len(self.differences)


async def nearest_earlier(
    history: History,
    run: KeptRun,
    blobs: BlobStore,
    *,
    max_differences: int = MAX_DIFFERENCES,
    cache_failures: bool = False,
) -> Comparison | None:
    """The nearest of the actions before `run`; None where there is nothing like it.

    Of those that have most in common with it, as far as names tell, the newest are compared, of
    which one that was in the action cache counts before others; then the one that differs in
    least, then the newest. Raises Unavailable.
    """
    for columns in _LIKENESSES:
        if not all(getattr(run, name) for name in columns if name in _TELLING):
            continue
        candidates = await history.earlier(run, columns, MAX_CANDIDATES)
        cached = [c for c in candidates if c.was_cached(cache_failures=cache_failures)]
        if candidates:
            alike = ", ".join(name for name in columns if getattr(run, name))
            compared = [
                await compare(earlier, run, blobs, alike=alike, max_differences=max_differences)
                for earlier in cached or candidates
            ]
            return min(compared, key=lambda comparison: comparison.weight)
    return None


async def compare(
    before: KeptRun, after: KeptRun, blobs: BlobStore, *, alike: str, max_differences: int
) -> Comparison:
    """What `after` differs in from `before`. Raises Unavailable."""
    found = Comparison(before, alike)
    found.differences += action_differences(before.action, after.action)
    if before.command != after.command:
        await _compare_commands(found, after, blobs)
    else:
        await _compare_platforms(found, after, blobs)
    await _compare_inputs(found, after, blobs, max_differences)
    if not (found.differences or found.gone):
        found.differences.append(encoding_difference("action"))
    found.cut_off |= len(found.differences) > max_differences
    del found.differences[max_differences:]
    return found


async def _compare_commands(found: Comparison, after: KeptRun, blobs: BlobStore) -> None:
    old = await _read_command(blobs, found.run.command)
    new = await _read_command(blobs, after.command)
    for whose, command in (("earlier action", old), ("action", new)):
        if command is None:
            found.gone.append(f"the Command of the {whose}")
    if old is None or new is None:
        return
    start = len(found.differences)
    found.differences += command_differences(old, new)
    found.differences += platform_differences((found.run.action, old), (after.action, new))
    if len(found.differences) == start:
        found.differences.append(encoding_difference("command"))


async def _compare_platforms(found: Comparison, after: KeptRun, blobs: BlobStore) -> None:
    before = found.run
    if before.action.platform == after.action.platform:
        return
    # The Command's platform counts where the Action has none.
    command = await _read_command(blobs, after.command) or reapi.Command()
    found.differences += platform_differences((before.action, command), (after.action, command))


async def _read_command(blobs: BlobStore, digest: Digest) -> reapi.Command | None:
    try:
        data = await blobs.read_many([digest])
        return parse_command(digest, data[digest]) if digest in data else None
    except (DataLoss, InvalidRequest):
        return None


async def _compare_inputs(
    found: Comparison, after: KeptRun, blobs: BlobStore, max_differences: int
) -> None:
    before = found.run
    if before.digest.function is not after.digest.function:
        found.gone.append("the inputs: the actions are of unlike digest functions")
        return
    try:
        trees = await tree_differences(
            blobs, before.input_root, after.input_root, max_differences=max_differences
        )
    except (DataLoss, InvalidRequest) as error:
        found.gone.append(f"the inputs: {error}")
        return
    found.differences += trees.differences
    found.gone += [f"input directory {path}" for path in trees.gone]
    found.cut_off |= trees.cut_off

"""Running many actions, a few at a time, and what came of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import trio
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from examples.demo.actions import REPORT, CheckAction
from stoker.client import RemoteInstance
from stoker.protos import remote_execution_pb2 as reapi


class ActionFailed(Exception):
    """An action did not come to what was promised of it."""


class Service(NamedTuple):
    """What a persistent worker tells of an action."""

    worker: str
    number: int
    """Which request of that worker's this was, from 1."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An action that has ended well."""

    name: str
    seconds: float
    """From asking for it to having its result."""
    cached: bool
    report: tuple[str, int]
    """The report's hash and size."""
    service: Service | None
    """None if it ran on no worker."""
    one_shot_reason: str
    """Why not, where it asked for one."""


@dataclass(frozen=True, slots=True)
class Pass:
    """All actions, once."""

    title: str
    at_once: int
    wall_seconds: float
    actions: tuple[Ended, ...]

    @property
    def action_seconds(self) -> float:
        """What one action takes of one of the `at_once` places, on average.

        Whatever else goes by while the pass lasts is in it, such as the start of workers.
        """
        return self.wall_seconds * self.at_once / len(self.actions)

    @property
    def reports(self) -> dict[str, tuple[str, int]]:
        """The hash and size of the report of each action."""
        return {ended.name: ended.report for ended in self.actions}

    @property
    def workers(self) -> set[str]:
        """The workers that served."""
        return {ended.service.worker for ended in self.actions if ended.service}

    def median_seconds(self, *, first: bool) -> float:
        """Of the actions that were first at their worker, or of all later ones; 0 of none."""
        chosen = [
            ended.seconds
            for ended in self.actions
            if ended.service and (ended.service.number == 1) == first
        ]
        return statistics.median(chosen) if chosen else 0.0


async def run_pass(
    title: str,
    remote: RemoteInstance,
    actions: Sequence[CheckAction],
    at_once: int,
    on_ended: Callable[[], None],
) -> Pass:
    """Run `actions`, `at_once` of them at a time. Raises ActionFailed, and what the client does.

    Their blobs are uploaded before the clock starts.
    """
    await _upload(remote, actions)
    ended: list[Ended] = []
    waiting = iter(actions)

    async def run_some() -> None:
        for action in waiting:
            ended.append(await _run(remote, action))
            on_ended()

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(run_some)
    return Pass(title, at_once, time.perf_counter() - began, tuple(ended))


async def _upload(remote: RemoteInstance, actions: Sequence[CheckAction]) -> None:
    blobs = {digest: data for action in actions for digest, data in action.blobs.items()}
    missing = await remote.find_missing(blobs)
    await remote.upload_blobs({digest: blobs[digest] for digest in missing})


async def _run(remote: RemoteInstance, action: CheckAction) -> Ended:
    began = time.perf_counter()
    response = await remote.run(action.digest)
    seconds = time.perf_counter() - began
    facts = _facts(response.result.execution_metadata)
    return Ended(
        name=action.name,
        seconds=seconds,
        cached=response.cached_result,
        report=await _report(remote, action, response),
        service=_service(facts),
        one_shot_reason=str(facts.get("one_shot_reason", "")),
    )


async def _report(
    remote: RemoteInstance, action: CheckAction, response: reapi.ExecuteResponse
) -> tuple[str, int]:
    result = response.result
    for file in result.output_files:
        if file.path == REPORT and result.exit_code == 0 and not response.status.code:
            return file.digest.hash, file.digest.size_bytes
    words = response.status.message or response.message or await _stderr(remote, result)
    raise ActionFailed(f"the check of {action.name} failed, exit code {result.exit_code}: {words}")


async def _stderr(remote: RemoteInstance, result: reapi.ActionResult) -> str:
    if result.stderr_raw or not result.stderr_digest.size_bytes:
        return result.stderr_raw.decode("utf-8", "replace")
    stderr = await remote.read_blob(remote.digest_function.parse(result.stderr_digest))
    return stderr.decode("utf-8", "replace")


def _facts(metadata: reapi.ExecutedActionMetadata) -> dict[str, object]:
    """What stoker tells of how an action ran, for people and for demos: no part of REAPI."""
    facts: dict[str, object] = {}
    for packed in metadata.auxiliary_metadata:
        message = Struct()
        if packed.Unpack(message):
            facts.update(json_format.MessageToDict(message))
    return facts


def _service(facts: Mapping[str, object]) -> Service | None:
    match facts:
        case {"worker": str(worker), "served": float(number)}:
            return Service(worker, int(number))
        case _:
            return None

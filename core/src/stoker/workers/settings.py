"""What the operator says of persistent workers: ``[executors.NAME.workers]``."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from stoker import spi
from stoker.resources import ByteCount

ProtocolName = Annotated[str, msgspec.Meta(extra={"refers_to": "worker_protocols"})]
_Argument = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]
_Patience = Annotated[float, msgspec.Meta(gt=0)]


class WorkerRule(spi.Settings, frozen=True):
    """``[[executors.NAME.workers.rules]]``: what holds for some actions.

    The first rule that fits an action counts, alone. What a rule leaves unset is as without it.
    """

    mnemonics: tuple[str, ...] = ()
    """Which mnemonics it fits, as shell patterns such as ``*Javac``; empty for all."""
    programs: tuple[str, ...] = ()
    """Which programs it fits, as shell patterns of the command's first argument such as
    ``*/bin/javac``; empty for all."""
    use: Literal["asked", "always", "never"] = "asked"
    """Whether a worker is used where the action asks for one, or whenever it can be, or never."""
    protocol: ProtocolName | None = None
    """How to speak to it where the action does not say; proto otherwise."""
    multiplex: bool | None = None
    """Whether it takes several requests at once, where the action does not say."""
    multiplex_sandboxing: bool | None = None
    """Whether it then heeds ``sandbox_dir``, where the action does not say."""
    cancellation: bool | None = None
    """Whether it heeds cancel requests, where the action does not say."""
    extra_flags: tuple[_Argument, ...] = ()
    """What its command line ends with, behind ``--persistent_worker``."""
    verbosity: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    """What requests tell it of how much to say; Bazel's ``--worker_verbose`` is 10."""
    tools: tuple[str, ...] = ()
    """Which inputs belong to the tool where the client marks none, as shell patterns of paths
    below the input root; beside what its command line names."""
    keep_containers: bool = False
    """Whether an action with a container image may use a worker although it does not say
    ``dockerReuse=True``. Not needed where the strategy keeps all containers, and of no effect where
    it keeps none."""
    max_workers_per_key: _Count | None = None
    """In place of the setting of that name, as are the next three."""
    max_workers_per_mnemonic: _Count | None = None
    max_requests: _Count | None = None
    max_requests_in_flight: _Count | None = None
    high_priority: bool = False
    """Whether its actions are given workers first, and its idle workers make way last."""


class WorkerSettings(spi.Settings, frozen=True):
    """How many workers there may be, for how long, and for whom."""

    max_workers: _Count = 16
    """How many processes there may be at once, idle ones included. When all places are taken,
    an idle worker makes way for one of another key."""
    max_workers_per_key: _Count = 4
    """How many of those may be interchangeable."""
    max_workers_per_mnemonic: _Count | None = None
    """How many may be of one mnemonic, whatever else they differ in; unset for no bound."""
    max_memory_bytes: ByteCount | None = None
    """How much memory all workers may use together, as it is measured. Above it no other is
    started, and idle ones are ended, the largest first and those of high priority last; if that
    is not enough, busy ones once they are idle. Unset for no bound."""
    max_worker_memory_bytes: ByteCount | None = None
    """How much memory one worker may use, as it is measured: above it, it is ended once it is
    idle. Unset for no bound."""
    max_requests: _Count | None = None
    """After how many requests a worker is replaced; unset for never."""
    max_requests_in_flight: _Count = 8
    """How many requests a multiplex worker is given at once."""
    idle_seconds: _Patience = 300.0
    """After how long without a request a worker is ended."""
    quit_after_invocation_seconds: _Patience | None = None
    """How long after the last action of an invocation of the build tool the idle workers that
    served it last are ended; unset for leaving that to `idle_seconds`. Actions of no invocation,
    whose client names none, have none end."""
    separate_clients: bool = False
    """Whether clients that are known by certificates have workers of their own (PWK-11). Without it
    those of an instance share them, as they share its blobs and results: what a tool that runs
    foreign code does for one of them may then spoil what it does for the next."""
    cancel_grace_seconds: _Seconds = 5.0
    """How long a worker may take to answer after it was sent a cancel request."""
    shutdown_grace_seconds: _Seconds = 5.0
    """How long an idle worker may take to end after its stdin was closed, and again after
    SIGTERM, before it is killed."""
    retries: Annotated[int, msgspec.Meta(ge=0)] = 1
    """On how many fresh workers an action is tried again whose worker failed without having
    answered anything."""
    one_shot_fallback: bool = True
    """Whether an action that workers have failed is then run without one; otherwise it fails, as
    unavailable."""
    max_response_bytes: ByteCount = 64 * 2**20
    """How large one response may be."""
    max_log_bytes: ByteCount = 16 * 2**20
    """How large the log of a worker, which is its stderr, may grow before it is rotated."""
    kept_logs: Annotated[int, msgspec.Meta(ge=0)] = 32
    """How many logs of workers that have ended are kept, for as long as the server runs. What
    clients are to see of them is sent with the actions that fail."""
    rules: tuple[WorkerRule, ...] = ()

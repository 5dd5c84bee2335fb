"""What is remembered of actions whose executors were lost, and which are kept out for it. Pure.

An executor that is lost while the server lives points at the few actions that it had. When the
whole server is killed, all that ran is under suspicion, most of it without guilt: so that counts
apart, may happen more often, and the more often it has, the fewer suspects run at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from stoker.action import LoadedAction
from stoker.digest import Digest
from stoker.errors import Quarantined, Unavailable

KEY_BYTES = 32
_DECADES_SECONDS = 1e9
_ALL_AT_ONCE = 16
"""So many doublings allow more at once than any server runs."""
_TOLD = 10
"""How many losses are told of: the last ones."""


class Loss(NamedTuple):
    """One time that an action was handed out and nothing more was heard of it."""

    began_nanoseconds: int
    lost_nanoseconds: int
    executor: str
    with_server: bool

    def __str__(self) -> str:
        seconds = max(0, self.lost_nanoseconds - self.began_nanoseconds) / 1e9
        if self.with_server:
            return f"{_moment(self.began_nanoseconds)} on {self.executor}, the server was killed"
        return f"{_moment(self.began_nanoseconds)} on {self.executor}, lost after {seconds:.1f} s"


def loss_key(namespace: str, digest: Digest) -> bytes:
    """What losses of an action of this instance are filed under; of KEY_BYTES bytes."""
    return sha256(f"{namespace}\0{digest.function.name}\0{digest}".encode()).digest()


def key_of(action: LoadedAction) -> bytes:
    """`loss_key` of `action`."""
    return loss_key(action.namespace, action.digest)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is put up with."""

    max_attempts: int
    max_server_losses: int
    quarantine_seconds: float

    @property
    def quarantine_nanoseconds(self) -> int:
        """The same; a few decades at most, which is what databases can count."""
        return int(min(self.quarantine_seconds, _DECADES_SECONDS) * 1e9)


@dataclass(slots=True)
class Losses:
    """The losses of each action, until it has ended or they are old enough to be forgotten."""

    bounds: Bounds
    _by_key: dict[bytes, list[Loss]] = field(default_factory=dict)

    def note(self, key: bytes, loss: Loss) -> None:
        """The action of this key was lost."""
        self._by_key.setdefault(key, []).append(loss)

    def clear(self, key: bytes) -> bool:
        """The action of this key has ended by itself. Returns whether anything was known of it."""
        return self._by_key.pop(key, None) is not None

    def forget_before(self, nanoseconds: int, *, but: bytes = b"") -> None:
        """Forget the actions that were last lost before this time, `but` this one."""
        old = [k for k, held in self._by_key.items() if held[-1].lost_nanoseconds < nanoseconds]
        for key in old:
            if key != but:
                del self._by_key[key]

    def suspects_at_once(self, losses: int) -> int:
        """How many actions that were lost with the server may run at the same time, where one of
        them was lost this often: half as many with each loss, and one alone for the second half
        of what is put up with."""
        return 1 << min(max(0, self.bounds.max_server_losses // 2 - losses), _ALL_AT_ONCE)

    def with_server(self, key: bytes) -> int:
        """How often the action of this key was lost with the server."""
        return sum(loss.with_server for loss in self._by_key.get(key, ()))

    def verdict(self, action: LoadedAction) -> Unavailable | None:
        """What its client is told of an action that may not be handed out again (OPS-14)."""
        key = key_of(action)
        if not self._spent(key):
            return None
        lost = [loss.executor for loss in self._by_key[key] if not loss.with_server]
        return Unavailable(
            f"the action was lost {len(lost)} times by its executors: {', '.join(lost)}"
        )

    def _spent(self, key: bytes) -> bool:
        held = self._by_key.get(key, ())
        with_server = sum(loss.with_server for loss in held)
        return (
            with_server >= self.bounds.max_server_losses
            or len(held) - with_server >= self.bounds.max_attempts
        )

    def check(self, action: LoadedAction) -> None:
        """Raise Quarantined for an action that is kept out now."""
        if not self._by_key or (key := key_of(action)) not in self._by_key:
            return
        quarantine = self.bounds.quarantine_nanoseconds
        self.forget_before(time.time_ns() - quarantine)
        if self._spent(key):
            held = self._by_key[key]
            until = _moment(held[-1].lost_nanoseconds + quarantine)
            raise Quarantined(str(action.digest), until, [str(loss) for loss in held[-_TOLD:]])

    def __bool__(self) -> bool:
        """Whether anything is remembered."""
        return bool(self._by_key)

    def __iter__(self) -> Iterator[tuple[bytes, Loss]]:
        """Each loss with the key of its action."""
        return ((key, loss) for key, held in self._by_key.items() for loss in held)


def _moment(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(nanoseconds / 1e9))

"""How a persistent worker is spoken to."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from stoker.protos.worker_protocol_pb2 import WorkRequest, WorkResponse


class ResponseDecoder(abc.ABC):
    """Finds responses in what one worker process writes to its stdout."""

    @abc.abstractmethod
    def feed(self, data: bytes) -> list[WorkResponse]:
        """The responses that `data` completes, in order.

        `data` may be cut anywhere. Raises MalformedResponse, after which the decoder is of no
        more use.
        """

    @abc.abstractmethod
    def end(self) -> None:
        """Stdout has ended. Raises MalformedResponse if that was inside of a response."""


class WorkerProtocol(abc.ABC):
    """How work requests and responses become bytes. Without I/O, tasks or clocks."""

    @abc.abstractmethod
    def encode(self, request: WorkRequest) -> bytes:
        """`request` as the worker reads it from its stdin."""

    def encode_with(self, request: WorkRequest, inputs: Sequence[bytes]) -> bytes:
        """As `encode`, of `request` with more inputs: those of the serialized messages `inputs`.

        Thousands, as a rule, which were serialized once for many requests. A protocol whose frame
        is made of such bytes need not parse them.
        """
        whole = WorkRequest()
        whole.CopyFrom(request)
        whole.MergeFromString(b"".join(inputs))
        return self.encode(whole)

    @abc.abstractmethod
    def decoder(self, limit_bytes: int) -> ResponseDecoder:
        """A decoder for one process, which refuses a response of more than `limit_bytes`."""

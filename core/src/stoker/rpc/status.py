"""gRPC status: the codes, and the error that carries one with its details over the wire."""

from collections.abc import Iterable, Sequence
from enum import IntEnum

from google.protobuf import any_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

STATUS_DETAILS_KEY = "grpc-status-details-bin"

_MAX_MESSAGE_BYTES = 2048
_UTF8_MAX_BYTES = 4


class StatusCode(IntEnum):
    """The canonical gRPC status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call that ends with a status other than OK.

    A handler raises it to end its call so; a client call raises it when the server did.
    `details` are messages of any type; an `Any` goes out as it is. They travel as one
    google.rpc.Status in the trailing metadata `grpc-status-details-bin`, with the same code and
    message. Clients bound the metadata that they accept, many at 8 KiB, and see
    RESOURCE_EXHAUSTED instead when it is more: so a message is cut at 2 KiB when it is sent, and
    details should be small.
    """

    def __init__(self, code: StatusCode, message: str, details: Sequence[Message] = ()) -> None:
        if code is StatusCode.OK:
            raise ValueError("an RpcError cannot carry the status OK")
        super().__init__(code, message, details)
        self.code = code
        self.message = message
        self.details = tuple(details)

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


def sent_message(error: RpcError) -> str:
    """Return the message of `error` as it is sent: whole, or its first 2 KiB."""
    if len(error.message) * _UTF8_MAX_BYTES <= _MAX_MESSAGE_BYTES:
        return error.message
    encoded = error.message.encode(errors="replace")
    if len(encoded) <= _MAX_MESSAGE_BYTES:
        return error.message
    return encoded[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + " [cut]"


def encode_details(error: RpcError) -> bytes:
    """Return the google.rpc.Status of `error`, serialised."""
    status = status_pb2.Status(code=error.code, message=sent_message(error))
    for detail in error.details:
        if isinstance(detail, any_pb2.Any):
            status.details.append(detail)
        else:
            status.details.add().Pack(detail)
    return status.SerializeToString()


def decode_details(encoded: bytes) -> list[Message]:
    """Return the details in a serialised google.rpc.Status.

    Messages of a type that this process does not know stay wrapped in their `Any`; bytes that
    are no Status give no details, as the status itself came by another way.
    """
    try:
        status = status_pb2.Status.FromString(encoded)
    except DecodeError:
        return []
    return [_unpack(wrapped) for wrapped in status.details]


def _unpack(wrapped: any_pb2.Any) -> Message:
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(wrapped.TypeName())
        return message_factory.GetMessageClass(descriptor).FromString(wrapped.value)
    except (KeyError, DecodeError):
        return wrapped


def status_code(number: int) -> StatusCode:
    """Return the code with this number; UNKNOWN for a number outside the specification."""
    try:
        return StatusCode(number)
    except ValueError:
        return StatusCode.UNKNOWN


def error_from_status(
    number: int, message: str, trailing_metadata: Iterable[tuple[str, str | bytes]]
) -> RpcError:
    """Return the error for a status other than OK that came over the wire."""
    details: list[Message] = []
    for key, value in trailing_metadata:
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            details = decode_details(value)
    return RpcError(status_code(number), message, details)

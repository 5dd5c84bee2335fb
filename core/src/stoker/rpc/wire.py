"""How the client codes messages."""

from typing import cast

from google.protobuf.message import DecodeError, Message

from stoker.rpc.service import ResponseT
from stoker.rpc.status import RpcError, StatusCode


def encode_request(message: Message | bytes) -> bytes:
    """Return a request as it goes out; bytes go out as they are."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def decode_response(message: bytes, response_type: type[ResponseT]) -> ResponseT:
    """Return a response as `response_type`; RpcError INTERNAL when it is none."""
    if not issubclass(response_type, Message):
        return cast("ResponseT", message)
    try:
        return response_type.FromString(message)
    except DecodeError as error:
        name = response_type.__name__
        raise RpcError(StatusCode.INTERNAL, f"the response is not a valid {name}") from error

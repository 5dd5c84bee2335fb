"""gRPC on trio: a server and a client on grpcio's completion queue.

It knows nothing of what is served with it, and is the only package here that imports grpc.
"""

from stoker.rpc.allocator import tune_allocator
from stoker.rpc.client import Channel, open_channel
from stoker.rpc.client_stream import ClientStream
from stoker.rpc.credentials import ClientTlsCredentials, TlsCredentials
from stoker.rpc.health import Health
from stoker.rpc.metadata import Metadata
from stoker.rpc.method import Method
from stoker.rpc.reflection import reflection_services
from stoker.rpc.server import MAX_RECEIVE_MESSAGE_BYTES, Server
from stoker.rpc.server_call import ServerCall
from stoker.rpc.service import (
    Service,
    stream_stream,
    stream_unary,
    unary_stream,
    unary_unary,
)
from stoker.rpc.status import RpcError, StatusCode, status_code

__all__ = [
    # serving
    "Server",
    "Service",
    "Method",
    "unary_unary",
    "unary_stream",
    "stream_unary",
    "stream_stream",
    "ServerCall",
    "MAX_RECEIVE_MESSAGE_BYTES",
    "Health",
    "reflection_services",
    # calling
    "open_channel",
    "Channel",
    "ClientStream",
    # both sides
    "RpcError",
    "StatusCode",
    "status_code",
    "Metadata",
    "TlsCredentials",
    "ClientTlsCredentials",
    "tune_allocator",
]

"""Listeners, TLS, unix sockets, limits, and many streams."""

import socket
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trustme

from stoker.rpc import (
    MAX_RECEIVE_MESSAGE_BYTES,
    ClientTlsCredentials,
    RpcError,
    Server,
    ServerCall,
    Service,
    StatusCode,
    TlsCredentials,
    open_channel,
    stream_stream,
    stream_unary,
    unary_unary,
)


async def echo(request: bytes, call: ServerCall) -> bytes:
    return request


async def size_of(request: bytes, call: ServerCall) -> bytes:
    return b"%d" % len(request)


METHODS = {
    "Echo": unary_unary(echo, bytes, bytes),
    "SizeOf": unary_unary(size_of, bytes, bytes),
}
AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("127.0.0.1", "localhost")
ROOT = AUTHORITY.cert_pem.bytes()


def server_tls(client_ca: bytes | None = None) -> TlsCredentials:
    return TlsCredentials(
        b"".join(blob.bytes() for blob in CERTIFICATE.cert_chain_pems),
        CERTIFICATE.private_key_pem.bytes(),
        client_ca,
    )


async def echo_over(target: str, credentials: ClientTlsCredentials | None) -> bytes:
    async with open_channel(target, credentials=credentials) as channel:
        return await channel.unary_unary("/test.Service/Echo", b"hello", bytes)


async def test_tls(serve: Any) -> None:
    running = await serve(METHODS, credentials=server_tls())
    assert await echo_over(running.target, ClientTlsCredentials(ROOT)) == b"hello"


@pytest.mark.parametrize(
    "credentials",
    [None, ClientTlsCredentials(trustme.CA().cert_pem.bytes())],
    ids=["none", "other"],
)
async def test_tls_without_trust(serve: Any, credentials: ClientTlsCredentials | None) -> None:
    running = await serve(METHODS, credentials=server_tls())
    with pytest.raises(RpcError) as caught:
        await echo_over(running.target, credentials)
    assert caught.value.code is StatusCode.UNAVAILABLE


async def test_mutual_tls(serve: Any) -> None:
    clients = trustme.CA()
    shown = clients.issue_cert("someone@example.org")
    running = await serve(METHODS, credentials=server_tls(clients.cert_pem.bytes()))
    credentials = ClientTlsCredentials(
        ROOT, shown.cert_chain_pems[0].bytes(), shown.private_key_pem.bytes()
    )
    assert await echo_over(running.target, credentials) == b"hello"
    with pytest.raises(RpcError) as caught:
        await echo_over(running.target, ClientTlsCredentials(ROOT))
    assert caught.value.code is StatusCode.UNAVAILABLE


def test_private_keys_are_not_shown() -> None:
    secret = CERTIFICATE.private_key_pem.bytes()
    client = ClientTlsCredentials(ROOT, b"", secret)
    assert "PRIVATE KEY" not in repr(server_tls()) + repr(client)


async def test_a_unix_socket(serve: Any, tmp_path: Path) -> None:
    running = await serve(METHODS, address=f"unix:{tmp_path}/socket")
    assert await echo_over(running.target, None) == b"hello"


async def test_a_unix_socket_is_not_taken_from_a_living_server(serve: Any, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    running = await serve(METHODS, address=address)
    with pytest.raises(OSError, match="another server listens there"):
        Server([]).add_listener(address)
    assert await echo_over(running.target, None) == b"hello"


async def test_a_unix_socket_is_taken_over_from_a_dead_server(serve: Any, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/socket")
    running = await serve(METHODS, address=f"unix:{tmp_path}/socket")
    assert await echo_over(running.target, None) == b"hello"


async def test_several_listeners(nursery: trio.Nursery, tmp_path: Path) -> None:
    server = Server([Service("test.Service", METHODS)])
    plain = server.add_listener("127.0.0.1:0")
    secure = server.add_listener("127.0.0.1:0", server_tls())
    server.add_listener(f"unix:{tmp_path}/socket")
    await nursery.start(server.serve)
    assert await echo_over(f"127.0.0.1:{plain}", None) == b"hello"
    assert await echo_over(f"127.0.0.1:{secure}", ClientTlsCredentials(ROOT)) == b"hello"
    assert await echo_over(f"unix:{tmp_path}/socket", None) == b"hello"
    with pytest.raises(RuntimeError):
        server.add_listener("127.0.0.1:0")


async def test_a_port_is_not_shared() -> None:
    server = Server([])
    port = server.add_listener("127.0.0.1:0")
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
        Server([]).add_listener(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("unix:/no/such/folder/socket", "No such file or directory"),
        ("unix:/" + "long" * 40, "path too long"),
        ("nonsense", "neither host:port nor unix:path"),
        ("127.0.0.1:port", "neither host:port nor unix:path"),
        ("192.0.2.1:0", "Cannot assign requested address"),
    ],
)
async def test_an_address_that_cannot_be_had(address: str, reason: str) -> None:
    with pytest.raises(OSError, match=f"cannot listen on {address}: .*{reason}"):
        Server([]).add_listener(address)


async def test_tls_that_makes_no_sense() -> None:
    with pytest.raises(OSError, match="credentials"):
        Server([]).add_listener("127.0.0.1:0", TlsCredentials(b"no", b"sense"))


async def test_a_message_above_the_limit_ends_its_call_only(serve: Any) -> None:
    # GEN-14
    peers = set()

    async def size_and_peer(request: bytes, call: ServerCall) -> bytes:
        peers.add(call.peer)
        return b"%d" % len(request)

    async def size_of_first(call: ServerCall) -> bytes:
        return b"%d" % len(await call.receive() or b"")

    running = await serve(
        {
            "Unary": unary_unary(size_and_peer, bytes, bytes),
            "Stream": stream_unary(size_of_first, bytes, bytes),
        }
    )
    limit = MAX_RECEIVE_MESSAGE_BYTES
    async with open_channel(running.target) as channel:
        for _ in range(2):
            assert await channel.unary_unary("/test.Service/Unary", bytes(limit), bytes) == (
                b"%d" % limit
            )
            with pytest.raises(RpcError) as caught:
                await channel.unary_unary("/test.Service/Unary", bytes(limit + 1), bytes)
            assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED
            async with channel.open_stream("/test.Service/Stream", bytes) as stream:
                await stream.send(bytes(limit + 1))
                with pytest.raises(RpcError) as caught:
                    await stream.receive()
            assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED
    assert len(peers) == 1, "the connection broke and was made anew"


async def test_the_limit_is_a_parameter(serve: Any) -> None:
    running = await serve(METHODS, max_receive_message_bytes=1000)
    async with open_channel(running.target) as channel:
        assert await channel.unary_unary("/test.Service/SizeOf", bytes(1000), bytes) == b"1000"
        with pytest.raises(RpcError) as caught:
            await channel.unary_unary("/test.Service/SizeOf", bytes(1001), bytes)
    assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED


async def test_the_client_has_a_limit_too(serve: Any) -> None:
    running = await serve(METHODS)
    async with open_channel(running.target, max_receive_message_bytes=1000) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary_unary("/test.Service/Echo", bytes(1001), bytes)
    assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests(serve: Any, with_grpcio: Any, algorithm: Any) -> None:
    running = await serve(METHODS)

    def use(channel: Any) -> bytes:
        response: bytes = channel.unary_unary("/test.Service/SizeOf")(bytes(1_000_000))
        return response

    assert await with_grpcio(running.target, use, compression=algorithm) == b"1000000"


async def test_a_compressed_request_that_grows_beyond_the_limit(
    serve: Any, with_grpcio: Any
) -> None:
    running = await serve(METHODS)

    def use(channel: Any) -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Service/SizeOf")(bytes(MAX_RECEIVE_MESSAGE_BYTES + 1))
        return caught.value.code()

    code = await with_grpcio(running.target, use, compression=grpc.Compression.Gzip)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_thousand_open_streams_take_no_threads(serve: Any) -> None:
    # GEN-28
    async def relay(call: ServerCall) -> None:
        while (message := await call.receive()) is not None:
            await call.send(message)

    running = await serve({"Relay": stream_stream(relay, bytes, bytes)})
    all_open = trio.Event()
    opened = 0

    async def open_one(channel: Any) -> None:
        nonlocal opened
        async with channel.open_stream("/test.Service/Relay", bytes) as stream:
            await stream.send(b"a")
            assert await stream.receive() == b"a"
            opened += 1
            if opened == 1000:
                all_open.set()
            await all_open.wait()
            await stream.send(b"b")
            assert await stream.receive() == b"b"
            await stream.send_eof()
            assert await stream.receive() is None

    async with open_channel(running.target) as channel:
        before, ours = operating_system_threads(), threading.active_count()
        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(open_one, channel)
            await all_open.wait()
            # One polls for the channel; gRPC keeps a few of its own.
            assert operating_system_threads() - before <= 12
            assert threading.active_count() - ours <= 4


def operating_system_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


async def read_frames(stream: trio.SocketStream, until: int) -> list[tuple[int, int, bytes]]:
    """Return kind, flags and payload of each HTTP/2 frame up to the first of kind `until`."""
    buffer = b""
    frames = []
    while True:
        while len(buffer) >= 9 and len(buffer) >= 9 + int.from_bytes(buffer[:3]):
            end = 9 + int.from_bytes(buffer[:3])
            frames.append((buffer[3], buffer[4], buffer[9:end]))
            buffer = buffer[end:]
            if frames[-1][0] == until:
                return frames
        received = await stream.receive_some()
        assert received, "the server has closed the connection"
        buffer += received


SETTINGS, PING, GOAWAY = 4, 6, 7
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])


async def test_streams_are_not_limited(serve: Any) -> None:
    # GEN-28
    running = await serve(METHODS)
    async with await trio.open_tcp_stream("127.0.0.1", running.port) as client:
        await client.send_all(PREFACE)
        _, _, payload = (await read_frames(client, SETTINGS))[-1]
    settings = {
        int.from_bytes(payload[at : at + 2]): int.from_bytes(payload[at + 2 : at + 6])
        for at in range(0, len(payload), 6)
    }
    max_concurrent_streams = 3
    assert settings.get(max_concurrent_streams, 2**31) >= 10_000


async def test_streams_can_be_limited(serve: Any) -> None:
    running = await serve(METHODS, max_concurrent_streams=17)
    async with await trio.open_tcp_stream("127.0.0.1", running.port) as client:
        await client.send_all(PREFACE)
        _, _, payload = (await read_frames(client, SETTINGS))[-1]
    assert bytes([0, 3, 0, 0, 0, 17]) in payload


async def test_frequent_pings_without_calls_are_answered(serve: Any) -> None:
    # GEN-16
    running = await serve(METHODS)
    async with await trio.open_tcp_stream("127.0.0.1", running.port) as client:
        await client.send_all(PREFACE)
        for number in range(50):
            ping = number.to_bytes(8)
            await client.send_all(bytes([0, 0, 8, PING, 0, 0, 0, 0, 0]) + ping)
            frames = await read_frames(client, PING)
            assert frames[-1] == (PING, 1, ping)
            assert GOAWAY not in [kind for kind, _, _ in frames]

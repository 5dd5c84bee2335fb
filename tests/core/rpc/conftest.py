"""What the tests of the rpc package share: a real server, and ways to call it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import pytest
import trio

from stoker.rpc import Method, Server, Service, TlsCredentials

T = TypeVar("T")
SERVICE = "test.Service"


@dataclass
class Running:
    """A server that serves, at `target`."""

    server: Server
    port: int
    target: str


Serve = Callable[..., Awaitable[Running]]


async def give_up() -> None:
    """Fail a test that hangs, rather than the whole run."""
    await trio.sleep(90)
    raise TimeoutError("the test hangs")


@pytest.fixture
def serve(nursery: trio.Nursery) -> Serve:
    """Start a server with these methods, or whole services, on a free port of loopback."""

    nursery.start_soon(give_up)

    async def start(
        methods: Mapping[str, Method],
        *services: Service,
        address: str = "127.0.0.1:0",
        credentials: TlsCredentials | None = None,
        **options: Any,
    ) -> Running:
        server = Server([Service(SERVICE, methods), *services], **options)
        port = server.add_listener(address, credentials)
        target = address if address.startswith("unix:") else f"127.0.0.1:{port}"
        await nursery.start(server.serve)
        return Running(server, port, target)

    return start


@pytest.fixture
def with_grpcio() -> Callable[[str, Callable[[Any], T]], Awaitable[T]]:
    """Run a function on a channel of the official synchronous client, in a thread."""

    async def run(target: str, use: Callable[[Any], T], **options: Any) -> T:
        def in_thread() -> T:
            with grpc.insecure_channel(target, **options) as channel:
                return use(channel)

        return await trio.to_thread.run_sync(in_thread, abandon_on_cancel=True)

    return run

"""A wire to PostgreSQL that counts the round trips on it, or makes each one longer."""

import asyncio
import multiprocessing
import selectors
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import Any


class Wire:
    """A TCP proxy in a process of its own.

    A round trip begins when a client sends after the server has answered (or for the first time);
    what it sends without waiting for an answer belongs to the same one. What a client sends
    arrives `delay` seconds later, the answers at once.
    """

    def __init__(self, port: int, turns: Any, delay: Any) -> None:
        self.port = port
        self._turns: Synchronized[int] = turns
        self._delay: Synchronized[float] = delay

    @property
    def turns(self) -> int:
        return self._turns.value

    def delay(self, seconds: float) -> None:
        self._delay.value = seconds


@contextmanager
def wire(upstream: int) -> Iterator[Wire]:
    """A wire to the server at this port of 127.0.0.1."""
    turns, delay = multiprocessing.Value("Q", 0), multiprocessing.Value("d", 0.0)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        process = multiprocessing.Process(
            target=carry, args=(listener, upstream, turns, delay), daemon=True
        )
        process.start()
        try:
            yield Wire(listener.getsockname()[1], turns, delay)
        finally:
            process.terminate()
            process.join()


def carry(listener: socket.socket, upstream: int, turns: Any, delay: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Not what the parent does on one.
    # epoll rounds a wait up to the next millisecond, select does not.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())

    async def serve() -> None:
        server = await loop.create_server(lambda: Client(upstream, turns, delay), sock=listener)
        await server.serve_forever()

    loop.run_until_complete(serve())


class End(asyncio.Protocol):
    """One of the two connections that are joined."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, data: bytes) -> None:
        if self.transport and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        if self.transport:
            self.transport.close()


class Client(End):
    """The connection of whoever asks; it opens the one to the server."""

    def __init__(self, upstream: int, turns: Any, delay: Any) -> None:
        super().__init__()
        self.upstream, self.turns, self.delay = upstream, turns, delay
        self.server = Upstream(self)
        self.early: list[bytes] = []
        self.answered = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.opening = asyncio.get_running_loop().create_task(self.open())

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self.server, "127.0.0.1", self.upstream)
        for data in self.early:
            self.server.send(data)

    def data_received(self, data: bytes) -> None:
        if self.answered:
            self.turns.value += 1
            self.answered = False
        if not self.server.transport:
            self.early.append(data)
        elif self.delay.value:
            asyncio.get_running_loop().call_later(self.delay.value, self.server.send, data)
        else:
            self.server.send(data)

    def connection_lost(self, _: Exception | None) -> None:
        self.server.close()


class Upstream(End):
    """The connection to the server."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client

    def data_received(self, data: bytes) -> None:
        self.client.answered = True
        self.client.send(data)

    def connection_lost(self, _: Exception | None) -> None:
        self.client.close()

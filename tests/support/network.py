"""A PostgreSQL that can be stopped and killed, a network that can fail, and clients who count."""

import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from uuid import uuid4

import requests

from support.server import Server, User

# Ends every connection to PostgreSQL but the one that asks.
KILL = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def eventually(condition: Callable[[], Any], seconds: float) -> float:
    """How long it took until `condition` held. Fails after `seconds`."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - start


class Exchange:
    """What a client sent last over a connection, and whether the server has answered it."""

    query = b""
    is_answered = True


class Network:
    """A TCP proxy to `port`. It counts round trips, delays queries, swallows packets, cuts, or
    loses answers.
    """

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.delay = 0.0
        self.swallows = False
        # Whether what was swallowed still arrives after its sender has closed the connection: a
        # kernel sends it again, unless the connection was reset.
        self.sends_again = True
        self.lose: Callable[[bytes], bool] = lambda _: False
        self.lost = 0
        # What comes instead of a lost answer. Without it, the connection is closed.
        self.instead = b""
        self.round_trips = 0
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._forgotten: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        return len(self._pairs)

    @contextmanager
    def losing(
        self, statement: bytes, times: int = 1, meanwhile: Callable[[], object] = lambda: None
    ) -> Iterator[None]:
        """Lose the first answers to a `statement`, each after `meanwhile`. Fails if fewer come."""

        def lose(asked: bytes) -> bool:
            if self.lost == times or statement not in asked:
                return False
            meanwhile()
            return True

        self.lost, self.lose = 0, lose
        try:
            yield
        finally:
            self.lose = lambda _: False
        print(f"\n{self.lost} answers lost")
        assert self.lost == times

    def forget(self) -> None:
        """Swallow what is sent over the connections there are, as a router that lost its state."""
        self._forgotten |= self._pairs

    def cut(self) -> None:
        for pair in list(self._pairs):
            self._close(pair)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _close(self, pair: tuple[socket.socket, socket.socket]) -> None:
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._pairs.discard(pair)

    def _is_gone(self, sender: socket.socket) -> bool:
        """Whether nobody sends again what `sender` has sent."""
        poll = select.poll()
        poll.register(sender, 0 if self.sends_again else select.POLLRDHUP)
        return bool(poll.poll(0))  # A reset is always reported.

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        while self.swallows:
            time.sleep(0.05)
        try:
            server = socket.create_connection(("127.0.0.1", self.upstream))
        except OSError:
            client.close()
            return
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = (client, server)
        self._pairs.add(pair)
        exchange = Exchange()
        back = (server, client, pair, exchange)
        threading.Thread(target=self._pump, args=back, daemon=True).start()
        self._pump(client, server, pair, exchange)

    def _pump(
        self,
        source: socket.socket,
        target: socket.socket,
        pair: tuple[socket.socket, socket.socket],
        exchange: Exchange,
    ) -> None:
        from_client = source is pair[0]
        with suppress(OSError, ValueError):
            while data := source.recv(65536):
                was_silent = False
                while self.swallows or (pair in self._forgotten and pair in self._pairs):
                    was_silent |= self.swallows
                    time.sleep(0.05)
                if was_silent and self._is_gone(source):
                    break
                if from_client:
                    self.round_trips += exchange.is_answered
                    exchange.query, exchange.is_answered = data, False
                    if data.startswith(b"Q"):
                        time.sleep(self.delay)
                elif self.lose(exchange.query):
                    self.lost += 1
                    data = self.instead
                    if not data:
                        break
                exchange.is_answered = not from_client
                target.sendall(data)
        while pair in self._forgotten and pair in self._pairs:
            time.sleep(0.05)
        self._close(pair)


class Answer(NamedTuple):
    """A status, 0 where there was none, and the JSON of the body."""

    status: int
    body: dict[str, Any]


class Load:
    """Clients who write all the time, and know what was promised to them."""

    def __init__(
        self,
        server: Server,
        clients: int = 8,
        new_connections: bool = False,
        user: str = "",
        token: str = "",
    ) -> None:
        self.server = server
        self.token = token
        self.user = user or f"load-{uuid4()}"
        self.answers: list[tuple[float, float, str, int]] = []
        self.created: list[str] = []
        self.not_created: list[str] = []
        # Of each client, what it last knew of its task; None after an answer that leaves it open.
        self.flipped: dict[str, bool | None] = {}
        self.wrong_flips: list[str] = []
        self.unknown_flips = 0
        self.new_connections = new_connections
        self._going = True
        self._threads = [threading.Thread(target=self._live, args=(n,)) for n in range(clients)]

    def __enter__(self) -> "Load":
        with User(self.server, self.user, self.token) as user:
            self._tasks = [user.create(f"flip {n}")["id"] for n in range(len(self._threads))]
        self.started = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going = False
        for thread in self._threads:
            thread.join(30)

    def _ask(self, user: User, method: str, path: str, body: Any = None) -> Answer | None:
        """The answer; None if whatever was asked for may or may not have been done."""
        start, answer = time.monotonic(), Answer(0, {})
        with suppress(requests.RequestException):
            response = user.request(method, path, json=body, timeout=30)
            answer = Answer(response.status_code, response.json())
        if self.new_connections:
            user.close()
        self.answers.append((start, time.monotonic(), f"{method} {path[:9]}", answer.status))
        unknown = answer.status == 0 or "may or may not" in answer.body.get("detail", "")
        return None if unknown else answer

    def _live(self, number: int) -> None:
        task = self._tasks[number]
        self.flipped[task] = False
        with User(self.server, self.user, self.token) as user:
            turn = 0
            while self._going:
                turn += 1
                title = f"{number}-{turn}"
                if answer := self._ask(user, "POST", "/tasks", {"title": title}):
                    (self.created if answer.status == 201 else self.not_created).append(title)
                self._flip(user, task)
                self._ask(user, "GET", f"/tasks/{task}")
                self._ask(user, "PUT", f"/tasks/{task}", {"description": title})

    def _flip(self, user: User, task: str) -> None:
        known = self.flipped[task]
        answer = self._ask(user, "PATCH", f"/tasks/{task}/complete")
        if answer is None:
            self.unknown_flips += 1
            self.flipped[task] = None
        elif answer.status == 200:
            self.flipped[task] = answer.body["completed"]
            if self.flipped[task] is known:
                self.wrong_flips.append(task)

    def statuses(self, since: float = 0.0) -> Counter[int]:
        return Counter(status for start, _, _, status in self.answers if start >= since)

    def slowest(self) -> float:
        return max(end - start for start, end, _, _ in self.answers)

    def first_success(self, since: float) -> float:
        """Seconds from `since` to the first good answer to a request that was sent later."""
        good = [
            end for start, end, _, status in self.answers if start >= since and 200 <= status < 300
        ]
        return min(good, default=float("inf")) - since

    def check(self, what: str, allowed: set[int]) -> None:
        """Say what was seen. Only allowed statuses came; what was acknowledged is there, once.

        What was refused has not been done. Only no answer at all, or one that says so, leaves open
        what has been.
        """
        with User(self.server, self.user, self.token) as user:
            tasks = user.tasks()
        titles = Counter(task["title"] for task in tasks)
        states = {task["id"]: task["completed"] for task in tasks}
        statuses = self.statuses()
        found = sum(titles[title] > 0 for title in self.created)
        print(
            f"\n{what}: {len(self.answers)} requests {dict(statuses)}, longest"
            f" {self.slowest():.2f} s, creates acknowledged {len(self.created)}, found {found};"
            f" {self.unknown_flips} flips that may or may not have been made"
        )
        assert set(statuses) <= allowed, statuses
        assert [title for title in self.created if titles[title] != 1] == []
        assert [title for title in self.not_created if titles[title]] == []
        assert max(titles.values()) == 1
        assert self.wrong_flips == []
        known = {task: done for task, done in self.flipped.items() if done is not None}
        assert known == {task: states[task] for task in known}

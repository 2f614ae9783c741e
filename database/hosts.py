"""The hosts of a PostgreSQL server, which are looked up within a deadline."""

import socket
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from itertools import zip_longest
from time import monotonic

from database.base import in_background, time_left

# How long a host that did not answer is tried last.
SILENT_HOST_S = 20.0
# A host as libpq's options name it.
HOST_OPTIONS = ("host", "hostaddr", "port")
Host = tuple[str, str, str]


class Hosts:
    """The hosts in the `parameters` of a connection, in the order in which to try them."""

    def __init__(self, parameters: Mapping[str, str]) -> None:
        self._given = split(parameters)
        self._has_names = any(not address and is_name(name) for name, address, _ in self._given)
        self._lookup: Future[list[Host]] | None = None
        # The position of the host to try first, and until when.
        self._first, self._first_until = 0, 0.0

    @contextmanager
    def options(self) -> Iterator[dict[str, str]]:
        """The options with which libpq tries the hosts in order.

        If connecting takes too long, the next one begins with another host. Raises OSError.
        """
        first = self._first if monotonic() < self._first_until else 0
        hosts = deque(self._look_up())
        hosts.rotate(-first)
        lists = map(",".join, zip(*hosts, strict=True))
        try:
            options = dict(zip(HOST_OPTIONS, lists, strict=True))
            if not options["port"].strip(","):
                options["port"] = ""  # libpq takes that of a service file for all hosts then.
            yield {name: text for name, text in options.items() if text}
        except TimeoutError:  # The other hosts had no time.
            self._first, self._first_until = first + 1, monotonic() + SILENT_HOST_S
            raise

    def _look_up(self) -> list[Host]:
        """The addresses of all hosts. libpq's own lookup has no limit.

        One lookup runs at a time, so a silent resolver holds one thread. Addresses need no lookup.
        Raises OSError.
        """
        if not self._has_names:
            return self._given
        if self._lookup is None or self._lookup.done():
            self._lookup = in_background(lambda: resolve(self._given))
        try:
            return self._lookup.result(time_left())
        except TimeoutError as error:
            raise OSError("the resolver did not respond in time") from error


def split(parameters: Mapping[str, str]) -> list[Host]:
    """The hosts of a connection, as its options name them."""
    names, addresses, ports = (parameters.get(name, "").split(",") for name in HOST_OPTIONS)
    if len(ports) == 1:
        ports *= max(len(names), len(addresses))
    return [*zip_longest(names, addresses, ports, fillvalue="")]


def resolve(given: list[Host]) -> list[Host]:
    """The `given` hosts, each name as one host for each of its addresses. Raises OSError."""
    hosts: list[Host] = []
    failure = None
    for name, address, port in given:
        if address or not is_name(name):
            hosts.append((name, address, port))
            continue
        try:
            infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            hosts += [(name, str(info[4][0]), port) for info in infos]
        except OSError as error:  # Another name may have an address.
            failure = OSError(f"cannot find the host {name!r}: {error.strerror}")
    if failure and not hosts:
        raise failure
    return hosts


def is_name(host: str) -> bool:
    """Whether `host` is a name to resolve: neither an IP address nor the folder of a socket."""
    with suppress(ValueError):
        ip_address(host)
        return False
    return bool(host) and host[0] not in "/@"

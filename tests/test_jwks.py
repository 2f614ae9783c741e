"""The keys of an issuer that is slow, down, wrong, or rotates its keys."""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from support.network import eventually
from support.server import Server, User
from werkzeug.exceptions import ServiceUnavailable

from auth import Unauthenticated, Verifier, jwks
from auth.jwks import KeySet
from testbed.issuer import Issuer, Key
from testbed.settings import SETTINGS

HTML = b"<!doctype html><title>Sign in</title>"
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(scope="module")
def old() -> Key:
    return Key("EdDSA", "old")


@pytest.fixture(scope="module")
def new() -> Key:
    return Key("ES256", "new")


@pytest.fixture
def issuer(old: Key) -> Iterator[Issuer]:
    issuer = Issuer(old)
    yield issuer
    issuer.close()


def call(server: Server, key: Key, **headers: object) -> requests.Response:
    token = key.sign({"sub": "ann", "exp": int(time.time()) + 300}, **headers)
    with User(server, "ann", token) as ann:
        return ann.get("/tasks", timeout=10)


def is_fetching(keys: KeySet) -> bool:
    """As `find` asks. A thread that ends leaves threading.enumerate() a moment sooner."""
    return keys._fetching.is_alive()


def wait_in_vain(keys: KeySet) -> float:
    """How long it takes to learn that an unknown key cannot be looked for."""
    start = time.monotonic()
    with pytest.raises(ServiceUnavailable):
        keys.find("unknown")
    return time.monotonic() - start


def wrong(issuer: Issuer, how: str, elsewhere: Issuer) -> None:
    if how == "gone":
        issuer.close()
    elif how == "hanging":
        issuer.hang()
    elif how == "dripping":
        issuer.drip = 0.2
    elif how == "a redirect":
        issuer.say(elsewhere.document, "302 Found", f"Location: {elsewhere.url}\r\n")
    elif how == "an error":
        issuer.say(elsewhere.document, "500 Internal Server Error")
    elif how == "HTML":
        issuer.say(HTML, headers="Content-Type: text/html\r\n")
    elif how == "cut short":
        assert issuer.answer is not None
        issuer.answer = issuer.answer[:-10]
    elif how == "too large":
        issuer.say(b" " * 2_000_000)
    elif how == "no HTTP":
        issuer.answer = b"\x16\x03\x01\r\n\r\n"
    elif how == "closed at once":
        issuer.answer = b""
    else:
        issuer.say(how.encode())


WRONG = [
    *("gone", "hanging", "dripping", "a redirect", "an error", "HTML", "cut short", "too large"),
    *("no HTTP", "closed at once", "", "[]", "{}", "null", '{"keys": 1}', '{"keys": [1, null]}'),
    *('{"keys": []}', '{"keys": [{"kty": "oct", "k": "YWFh", "kid": "old"}]}', '{"keys": {}}'),
    *('{"keys": [{"kty": "RSA", "kid": "old"}]}', '{"keys": [{"kty": ["EC"], "kid": "old"}]}'),
    '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "old"}]}',
]


@pytest.mark.parametrize("how", WRONG)
def test_a_known_key_is_used_while_the_issuer_is_wrong(
    issuer: Issuer, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jwks, "MAX_AGE_S", 0.0)
    monkeypatch.setattr(jwks, "FETCH_PAUSE_S", 0.0)
    keys = KeySet(issuer.url)
    assert keys.find("old")
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.5)
    asked = issuer.requests
    elsewhere = Issuer(Key("EdDSA", "evil"))
    wrong(issuer, how, elsewhere)
    with caplog.at_level(logging.WARNING, "tasks.jwks"):
        for _ in range(50):
            start = time.monotonic()
            assert keys.find("old")
            assert time.monotonic() - start < 0.4  # It does not wait for the fetch.
        eventually(lambda: f"{issuer.url} could not be fetched" in caplog.text, 3)
    assert keys.find("old")
    with pytest.raises(ServiceUnavailable):
        keys.find("evil")
    assert how == "gone" or issuer.requests > asked
    assert elsewhere.requests == 0
    elsewhere.close()


@pytest.mark.parametrize("how", ["gone", "hanging", "dripping", "HTML"])
def test_without_any_key_there_is_a_503_in_time(
    issuer: Issuer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.5)
    wrong(issuer, how, issuer)
    keys = KeySet(issuer.url)
    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(wait_in_vain, [keys] * 16)) < 1.0
    if how != "gone":
        eventually(lambda: issuer.requests == 1, 3)


def test_a_fetch_names_the_application_to_the_issuer(issuer: Issuer) -> None:
    assert KeySet(issuer.url).find("old")
    assert b"\r\nUser-Agent: task-api/" in issuer.asked


def test_no_proxy_comes_between_this_machine_and_itself(
    issuer: Issuer, old: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could hand out its own keys: the address has no TLS."""
    proxy = Issuer(Key("EdDSA", "evil"))
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "")
    assert KeySet(issuer.url).find("old")
    assert proxy.requests == 0
    proxy.close()


@pytest.mark.parametrize("length", [1, 100], ids=["short", "long"])
def test_the_log_does_not_have_the_password_of_a_proxy_that_was_mistyped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, length: int
) -> None:
    monkeypatch.setenv("https_proxy", f"http:/ann:{'secret9' * length}@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    keys = KeySet("https://localhost:9/jwks")
    with caplog.at_level(logging.WARNING, "tasks.jwks"), pytest.raises(ServiceUnavailable):
        keys.find("old")
    assert "proxy URL with no authority: 127.0.0.1:9" in caplog.text
    assert "secret9" not in caplog.text


def test_the_systems_certificates_are_loaded_once(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each copy takes 0.9 MB until Python's garbage collector finds it."""
    loaded: list[object] = []
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: loaded.append(1))
    keys = KeySet(issuer.url)
    for _ in range(5):
        keys._fetch()
    assert issuer.requests == 5
    assert len(loaded) <= 1


def test_a_download_that_takes_too_long_does_not_hold_up_the_next(
    issuer: Issuer, old: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 1.0)
    monkeypatch.setattr(jwks, "FETCH_PAUSE_S", 0.0)
    issuer.drip = 0.001
    issuer.say(b" " * 3000)
    keys = KeySet(issuer.url)
    start = time.monotonic()
    with pytest.raises(ServiceUnavailable):
        keys.find("old")
    issuer.drip = 0.0
    issuer.publish(old)
    eventually(lambda: not is_fetching(keys), 3)
    assert keys.find("old")
    assert time.monotonic() - start < 2.5


@pytest.mark.parametrize(
    ("answer", "piece"),
    [(HEAD + b"\r\n", b" "), (HEAD + b"\r\n", b" " * 65536), (HEAD + b"X: ", b"x" * 65536)],
    ids=["a slow body", "a large body", "a large head"],
)
def test_an_endless_answer_is_abandoned(
    issuer: Issuer, answer: bytes, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.5)
    issuer.answer, issuer.endless = answer, piece
    keys = KeySet(issuer.url)
    with pytest.raises(ServiceUnavailable):
        keys.find("old")
    eventually(lambda: not is_fetching(keys), 3)
    assert issuer.requests == 1


def test_a_head_that_does_not_end_holds_one_thread(
    issuer: Issuer, old: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_PAUSE_S", 0.0)
    keys = KeySet(issuer.url)
    assert keys.find("old")
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.2)
    issuer.answer, issuer.endless = HEAD + b"X: ", b"x"
    for _ in range(5):
        start = time.monotonic()
        with pytest.raises(ServiceUnavailable):
            keys.find("unknown")
        assert keys.find("old")
        assert time.monotonic() - start < 0.5
    assert issuer.requests == 2
    issuer.endless = b""
    issuer.publish(old)
    eventually(lambda: not is_fetching(keys), 3)
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 3.0)  # On a busy machine, 0.2 s is too short.
    assert keys.find("unknown") is None
    assert issuer.requests == 3


def test_the_log_explains_a_503_while_a_lookup_hangs(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A resolver can take half a minute until it gives up, and only then does the fetch fail."""
    ended = threading.Event()
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: ended.wait(10))
    keys = KeySet(f"{issuer.url}?apikey=secret9")
    with caplog.at_level(logging.WARNING, "tasks.jwks"), pytest.raises(ServiceUnavailable):
        keys.find("old")
    assert caplog.messages == [f"the keys at {issuer.url} could not be fetched within 0.2 s"]
    ended.set()
    eventually(lambda: not is_fetching(keys), 3)


def test_a_fetch_that_ends_right_after_the_wait_signs_nobody_out(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys came after the look for them, and before the look whether it still ran."""
    get, download, looked = KeySet._get, jwks.download, threading.Event()

    def get_before_the_end(keys: KeySet, kid: str) -> object:
        found = get(keys, kid)
        if keys._fetching.ident:
            looked.set()
            keys._fetching.join()
        return found

    # Otherwise, it could end before the look whether it still runs.
    monkeypatch.setattr(jwks, "download", lambda url: looked.wait(5) and download(url))
    monkeypatch.setattr(KeySet, "_get", get_before_the_end)
    monkeypatch.setattr(KeySet, "_wait_for", lambda *_: None)
    with pytest.raises(ServiceUnavailable):
        KeySet(issuer.url).find("old")


@pytest.mark.parametrize("document", ["[]", "{}", "null", '{"issuer": "x"}', '{"keys": {}}'])
def test_the_log_says_that_an_address_has_no_key_set(
    issuer: Issuer, document: str, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.say(document.encode())
    with caplog.at_level(logging.WARNING, "tasks.jwks"):
        with pytest.raises(ServiceUnavailable):
            KeySet(issuer.url).find("old")
        eventually(lambda: "no key set: expected an object with a list `keys`" in caplog.text, 3)


@pytest.mark.parametrize("byte", [b"\xe9", b"\x1f\x8b"], ids=["Latin-1", "compressed"])
def test_the_log_does_not_repeat_a_long_answer(
    issuer: Issuer, byte: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.say(byte * 100_000)
    with caplog.at_level(logging.WARNING, "tasks.jwks"):
        with pytest.raises(ServiceUnavailable):
            KeySet(issuer.url).find("old")
        eventually(lambda: "UnicodeDecodeError" in caplog.text, 3)
    assert len(caplog.text) < 1000


def test_an_issuer_is_reached_although_its_first_address_is_dead(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a broken route for IPv6: the time for the keys begins when the issuer answers."""
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.5)
    monkeypatch.setattr(jwks, "FETCH_PAUSE_S", 0.0)
    dead = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = []
    for _ in range(4):  # Its queue is full, and it answers nobody else.
        waiting.append(socket.socket())
        waiting[-1].setblocking(False)
        waiting[-1].connect_ex(dead.getsockname())
    addresses = [dead.getsockname(), issuer.listener.getsockname()]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
    keys = KeySet(issuer.url)
    with suppress(ServiceUnavailable):  # The keys come just when the wait for them ends.
        keys.find("old")
    eventually(lambda: keys._get("old"), 3)
    for each in (*waiting, dead):
        each.close()


def test_a_burst_of_first_requests_asks_once(issuer: Issuer) -> None:
    keys = KeySet(issuer.url)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: keys.find("old"), range(100)))
    assert issuer.requests == 1


def test_keys_that_are_fresh_are_not_fetched_again(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_PAUSE_S", 0.0)
    keys = KeySet(issuer.url)
    assert all(keys.find("old") for _ in range(50))
    time.sleep(0.1)
    assert issuer.requests == 1


def test_an_unknown_id_asks_again_but_not_soon(issuer: Issuer, old: Key, new: Key) -> None:
    keys = KeySet(issuer.url)
    assert keys.find("old")
    assert [keys.find(f"unknown {number}") for number in range(100)] == [None] * 100
    assert issuer.requests == 1
    issuer.publish(old, new)
    assert keys.find("new") is None
    keys._next_fetch_at -= jwks.FETCH_PAUSE_S
    assert keys.find("new")
    assert issuer.requests == 2


def test_a_new_key_is_fetched_again_soon_after_a_failure(
    issuer: Issuer, old: Key, new: Key
) -> None:
    """Until then, everybody who has a token of it gets a 503."""
    keys = KeySet(issuer.url)
    assert keys.find("old")
    keys._next_fetch_at = 0.0
    issuer.say(HTML)
    with pytest.raises(ServiceUnavailable):
        keys.find("new")
    issuer.publish(old, new)
    keys._next_fetch_at -= 1.0
    assert keys.find("new")


def test_an_issuer_that_is_away_is_asked_again_but_not_soon(issuer: Issuer) -> None:
    issuer.say(b"", "500 Internal Server Error")
    keys = KeySet(issuer.url)
    for _ in range(20):
        with pytest.raises(ServiceUnavailable):
            keys.find("old")
    assert issuer.requests <= 3  # The pause is a second, then two.


def test_a_rotated_key_is_found_and_the_old_one_forgotten(
    issuer: Issuer, new: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "MAX_AGE_S", 0.0)
    monkeypatch.setattr(jwks, "FETCH_PAUSE_S", 0.0)
    keys = KeySet(issuer.url)
    assert keys.find("old")
    issuer.publish(new)
    assert keys.find("new")
    assert keys.find("old") is None


def test_a_hanging_issuer_does_not_hold_up_who_waits_in_line(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown ids may wait for the issuer, but not so many that no thread is left."""
    monkeypatch.setattr(jwks, "FETCH_PAUSE_S", 0.0)
    keys = KeySet(issuer.url)
    assert keys.find("old")
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 1.0)
    issuer.hang()
    with ThreadPoolExecutor(20) as pool:
        took = sorted(pool.map(wait_in_vain, [keys] * 20))
    assert took[-jwks.MAX_WAITING - 1] < 0.5
    assert took[-jwks.MAX_WAITING] > 0.9


def test_who_comes_during_a_fetch_is_not_told_that_the_issuer_is_away(
    issuer: Issuer, new: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When an issuer rotates its keys, many tokens name the new one at once."""
    monkeypatch.setattr(jwks, "FETCH_PAUSE_S", 0.0)
    keys = KeySet(issuer.url)
    assert keys.find("old")
    issuer.publish(new)
    issuer.drip = 0.5 / len(issuer.document)

    def find(_: int) -> str | None:
        try:
            assert keys.find("new")
        except ServiceUnavailable as refusal:
            return refusal.description
        return None

    with ThreadPoolExecutor(16) as pool:
        refusals = set(pool.map(find, range(16)))
    assert refusals == {None, "The keys of the token issuer are being fetched. Try again soon."}


def test_a_new_key_is_not_refused_while_the_issuer_is_away(
    issuer: Issuer, old: Key, new: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 401 would sign out each user who has a token of the new key."""
    monkeypatch.setattr(jwks, "FETCH_PAUSE_S", 0.0)
    keys = KeySet(issuer.url)
    assert keys.find("old")
    issuer.say(HTML)
    for _ in range(2):
        with pytest.raises(ServiceUnavailable, match="cannot be reached"):
            keys.find("new")
    assert keys.find("old")
    issuer.publish(old, new)
    assert keys.find("new")
    assert keys.find("unknown") is None


def test_a_set_that_was_unusable_once_is_not_called_so_later(
    issuer: Issuer, old: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_PAUSE_S", 0.0)
    issuer.publish()
    keys = KeySet(issuer.url)
    with pytest.raises(ServiceUnavailable, match="no key that this server can use"):
        keys.find("old")
    issuer.publish(old)
    assert keys.find("old")
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.2)
    issuer.hang()
    with pytest.raises(ServiceUnavailable, match="cannot be reached"):
        keys.find("new")


def test_a_token_without_an_id_means_the_only_key(issuer: Issuer, old: Key, new: Key) -> None:
    assert KeySet(issuer.url).find(None)
    issuer.publish(old, new)
    assert KeySet(issuer.url).find(None) is None


@pytest.mark.parametrize(
    "first, second", [("EdDSA", "ES256"), ("ES256", "RS256"), ("RS256", "EdDSA")]
)
def test_keys_of_two_types_may_share_an_id_in_any_order(
    issuer: Issuer, first: str, second: str
) -> None:
    """RFC 7517, section 4.5."""
    keys = [Key(first, "shared"), Key(second, "shared")]
    issuer.publish(*keys)
    verifier = Verifier(replace(SETTINGS, jwt_jwks_url=issuer.url))
    tokens = [key.sign({"sub": "ann", "exp": int(time.time()) + 300}) for key in keys]
    assert [verifier.verify(token) for token in tokens] == ["ann", "ann"]
    mixed = tokens[0].rpartition(".")[0] + "." + tokens[1].rpartition(".")[2]
    with pytest.raises(Unauthenticated):
        verifier.verify(mixed)


def test_an_issuer_that_was_away_for_days_is_asked_again(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_PAUSE_S", 0.0)
    issuer.say(HTML)
    keys = KeySet(issuer.url)
    keys._failures = 10_000
    with pytest.raises(ServiceUnavailable):
        keys.find("old")
    issuer.publish(Key("EdDSA", "old"))
    assert keys.find("old")


def test_through_the_server(tmp_path: Path, issuer: Issuer, old: Key, new: Key) -> None:
    issuer.say(HTML)
    url = f"{issuer.url}?apikey=secret9"
    with Server(tmp_path, JWT_JWKS_URL=url, WEB_CONCURRENCY="1") as server:
        refused = call(server, old)
        assert refused.status_code == 503
        assert refused.json()["detail"].startswith("The keys of the token issuer cannot be reached")
        assert refused.headers["Content-Type"] == "application/problem+json"
        assert int(refused.headers["Retry-After"]) >= 1
        issuer.publish(old)
        eventually(lambda: call(server, old).status_code == 200, 5)
        assert issuer.asked.startswith(b"GET /api/auth/jwks?apikey=secret9 HTTP/1.1\r\n")
        asked = issuer.requests
        issuer.hang()
        assert call(server, old).status_code == 200
        assert call(server, new).status_code == 401
        assert requests.get(server.url + "/health", timeout=1).status_code == 200
        assert issuer.requests == asked
    warnings = [line for line in server.log() if line["level"] == "warning"]
    said = f"the keys at {issuer.url} could not be fetched"
    assert warnings and all(line["message"].startswith(said) for line in warnings)
    assert not [line for line in server.log() if line["level"] == "error"]


def test_the_system_is_not_asked_for_a_proxy(tmp_path: Path, issuer: Issuer, old: Key) -> None:
    """On macOS, a forked process that asks it can crash, says the documentation of urllib."""
    (tmp_path / "macos.py").write_text(
        "import os, signal\nfrom urllib import request\nfrom app import create_app\n"
        "request.getproxies = lambda: os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    with Server(tmp_path, app="macos:create_app()", JWT_JWKS_URL=issuer.url) as server:
        assert call(server, old).status_code == 200
        assert "SIGSEGV" not in server.log_file.read_text()

"""Who may call: tokens with a shared secret, and tokens of an issuer with a key set.

What is wrong in a token is proven on the verifier; that a wrong token is a 401, on a server.
"""

import hmac
import json
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest
import requests
from support.commands import run_command
from support.server import Server, User

from app import create_app
from auth import INVALID, MISSING, Unauthenticated, Verifier
from testbed.issuer import Issuer, Key, encoded
from testbed.settings import SETTINGS

SECRET = "a secret of more than 32 bytes, for tests"
ISSUER, AUDIENCE = "https://issuer.example/", "api"
LISTED = "http://localhost:3000"
OPEN = {"/", "/docs", "/docs/swagger-ui/<path:filename>", "/health", "/openapi.json", "/ready"}
OPEN |= {"/static/<path:filename>"}


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a good token for ann; None takes one away."""
    good = {"sub": "ann", "exp": int(time.time()) + 300, "iss": ISSUER, "aud": AUDIENCE}
    return {name: value for name, value in (good | changes).items() if value is not None}


def hs256(payload: object, secret: bytes = SECRET.encode(), **headers: Any) -> str:
    """A token made by hand, so that it can be wrong in any way."""
    signed = f"{encoded({'alg': 'HS256', 'typ': 'JWT'} | headers)}.{encoded(payload)}"
    signature = hmac.new(secret, signed.encode(), sha256).digest()
    return f"{signed}.{encoded(signature)}"


@pytest.fixture(scope="module")
def keys() -> dict[str, Key]:
    return {name: Key(name, name) for name in ("EdDSA", "ES256", "RS256")}


@pytest.fixture(scope="module")
def issuer(keys: dict[str, Key]) -> Iterator[Issuer]:
    published = list(keys.values())
    weak, large = Key("RS256 of 1024 bits", "weak"), Key("ES384", "large", alg="ES256")
    encrypting = Key("RS256", "enc", use="enc")
    symmetric = Key("EdDSA", "oct")
    symmetric.jwk = {"kty": "oct", "kid": "oct", "k": encoded(SECRET.encode()), "alg": "HS256"}
    issuer = Issuer(*published, weak, large, encrypting, symmetric)
    keys |= {"weak": weak, "large": large, "enc": encrypting}
    yield issuer
    issuer.close()


@pytest.fixture(scope="module")
def by_secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("secret")
    options = {"JWT_SECRET": SECRET, "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": f"other, {AUDIENCE}"}
    with Server(folder, **options) as server:
        yield server


@pytest.fixture(scope="module")
def by_keys(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("keys")
    options = {"JWT_JWKS_URL": issuer.url, "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}
    with Server(folder, **options) as server:
        yield server


@pytest.fixture(params=["secret", "keys"])
def mode(
    request: pytest.FixtureRequest, by_secret: Server, by_keys: Server, keys: dict[str, Key]
) -> tuple[Server, Callable[..., str]]:
    """A server in one of the two modes, and how its tokens are signed."""
    return (by_secret, hs256) if request.param == "secret" else (by_keys, keys["EdDSA"].sign)


def new_verifier(**options: Any) -> Verifier:
    """A verifier of a server with these settings."""
    options = {"jwt_issuer": ISSUER, "jwt_audience": ("other", AUDIENCE)} | options
    return Verifier(replace(SETTINGS, **options))


@pytest.fixture(scope="module")
def secret_verifier() -> Verifier:
    return new_verifier(jwt_secret=SECRET)


@pytest.fixture(scope="module")
def key_verifier(issuer: Issuer) -> Verifier:
    return new_verifier(jwt_jwks_url=issuer.url)


@pytest.fixture(params=["secret", "keys"])
def scheme(
    request: pytest.FixtureRequest,
    secret_verifier: Verifier,
    key_verifier: Verifier,
    keys: dict[str, Key],
) -> tuple[Verifier, Callable[..., str]]:
    """A verifier of one of the two modes, and how its tokens are signed."""
    if request.param == "secret":
        return secret_verifier, hs256
    return key_verifier, keys["EdDSA"].sign


def assert_invalid(verifier: Verifier, token: str) -> str:
    """The reason for the log."""
    with pytest.raises(Unauthenticated) as refusal:
        verifier.verify(token)
    assert refusal.value.challenge == 'Bearer error="invalid_token"'
    return refusal.value.reason


def call(server: Server, token: str | None, user: str = "ann", **options: Any) -> requests.Response:
    headers = options.pop("headers", {})
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    with User(server, user) as caller:
        return caller.request(options.pop("method", "GET"), "/tasks", headers=headers, **options)


def assert_refused(
    response: requests.Response, challenge: str = 'Bearer error="invalid_token"'
) -> None:
    assert response.status_code == 401, response.text
    assert response.headers["WWW-Authenticate"] == challenge
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem.pop("request_id")
    assert problem == {
        "type": "about:blank",
        "title": "Unauthorized",
        "status": 401,
        "detail": MISSING if challenge == "Bearer" else INVALID,
    }


def test_a_good_token_opens_the_users_own_tasks(mode: tuple[Server, Callable[..., str]]) -> None:
    server, sign = mode
    token = sign(claims())
    created = call(server, token, method="POST", json={"title": "x"})
    assert created.status_code == 201
    assert created.json() in call(server, token).json()


@pytest.mark.parametrize(
    "path", ["", "/", "/nonsense", "/5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d", "/deleted"]
)
def test_a_token_of_somebody_else_is_a_403_before_any_404(
    mode: tuple[Server, Callable[..., str]], path: str
) -> None:
    server, sign = mode
    for other in ("bob", "Ann", "ann%20", "an", "ann%C3%A9"):
        url = f"{server.url}/api/{other}/tasks{path}"
        response = requests.get(url, headers={"Authorization": f"Bearer {sign(claims())}"})
        assert (response.status_code, response.json()["title"]) == (403, "Forbidden")


def test_the_log_says_whose_token_was_for_another_path(
    mode: tuple[Server, Callable[..., str]],
) -> None:
    server, sign = mode
    start = server.log_file.stat().st_size
    assert call(server, sign(claims(sub="auth0|5f\n"))).status_code == 403
    said = [line["message"] for line in server.log(start)]
    assert r"forbidden: the token is for 'auth0|5f\n'" in said


def test_a_write_without_a_good_token_changes_nothing(
    mode: tuple[Server, Callable[..., str]],
) -> None:
    server, sign = mode
    user = f"user-{uuid4()}"
    good, other = sign(claims(sub=user)), sign(claims(sub="bob"))
    task, gone = (
        call(server, good, user, method="POST", json={"title": "x", "completed": True}).json()
        for _ in "12"
    )
    requests.delete(
        f"{server.url}/api/{user}/tasks/{gone['id']}", headers={"Authorization": f"Bearer {good}"}
    )
    for token, status in ((None, 401), (good[:-5], 401), (other, 403)):
        for method, path, body in (
            ("POST", user, {"title": "y"}),
            ("PUT", f"{user}/tasks/{task['id']}", {"title": "y"}),
            ("PATCH", f"{user}/tasks/{task['id']}", {"title": "y"}),
            ("PATCH", f"{user}/tasks/{task['id']}/complete", None),
            ("DELETE", f"{user}/tasks/{task['id']}", None),
            ("DELETE", f"{user}/tasks/completed/clear", None),
            ("POST", f"{user}/tasks/{gone['id']}/restore", None),
        ):
            url = f"{server.url}/api/{path if '/' in path else path + '/tasks'}"
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            response = requests.request(method, url, json=body, headers=headers)
            assert response.status_code == status, (method, path)
    assert call(server, good, user).json() == [task]


@pytest.mark.parametrize("user", ["用户", "auth0|5f", "ann@example.com", "a b", "+", "1"])
def test_a_subject_is_compared_as_it_is(mode: tuple[Server, Callable[..., str]], user: str) -> None:
    server, sign = mode
    assert call(server, sign(claims(sub=user)), user).status_code == 200


def test_every_route_but_the_open_ones_needs_a_token(by_secret: Server) -> None:
    app = create_app(replace(SETTINGS, jwt_secret=SECRET))
    rules = list(app.url_map.iter_rules())
    assert {rule.rule for rule in rules if not rule.rule.startswith("/api/")} == OPEN
    for rule in rules:
        path = rule.rule.replace("<user_id:user_id>", "ann").replace("<task_id:task_id>", "1")
        path = path.replace("<path:filename>", "x")
        for method in rule.methods - {"OPTIONS"}:
            response = requests.request(method, by_secret.url + path, allow_redirects=False)
            if rule.rule in OPEN:
                assert response.status_code in {200, 302, 404}
            else:
                assert response.status_code == 401
                assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("task_id", ["x", "x%0A", "deleted%0A", "deleted%20", "completed", "%00"])
def test_every_task_id_needs_a_token(by_secret: Server, task_id: str) -> None:
    response = requests.get(f"{by_secret.url}/api/ann/tasks/{task_id}")
    assert response.status_code == 401


@pytest.mark.parametrize(
    "headers", [{}, *({"Authorization": value} for value in ("", "Basic YTpi", "x", "Bearer "))]
)
def test_without_a_token_the_challenge_is_bare(by_secret: Server, headers: dict[str, str]) -> None:
    assert_refused(call(by_secret, None, headers=headers), "Bearer")
    assert_refused(call(by_secret, None, headers=headers, method="POST", json={}), "Bearer")


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "bEaReR   "])
def test_the_schemes_case_does_not_matter(by_secret: Server, scheme: str) -> None:
    assert call(by_secret, None, headers={"Authorization": scheme + hs256(claims())}).ok


@pytest.mark.parametrize(
    "form",
    [
        "Bearer\t{}", "Bearer {} ,", "Bearer {} x", "Bearer {},Bearer {}",
        "Bearer x, Bearer {}", "Bearer: {}", "Bearer '{}'", 'Bearer "{}"', "Bearer token={}",
        "Bearer ä{}", "Bearer Bearer {}", "Bearer {}\x7f",
    ],
)  # fmt: skip
def test_a_malformed_header_is_refused(by_secret: Server, form: str) -> None:
    value = form.replace("{}", hs256(claims())).encode()
    status, headers, _ = by_secret.send(
        b"GET /api/ann/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\n\r\n" % value
    )
    assert status in {400, 401}
    assert status == 400 or headers["www-authenticate"] == 'Bearer error="invalid_token"'


def test_two_authorization_headers_are_refused(by_secret: Server) -> None:
    line = f"Authorization: Bearer {hs256(claims())}\r\n".encode()
    request = b"GET /api/ann/tasks HTTP/1.1\r\nHost: x\r\n%b%b\r\n" % (line, line)
    assert by_secret.send(request)[0] == 401


def test_a_token_anywhere_else_is_ignored(by_secret: Server) -> None:
    token = hs256(claims())
    for options in (
        {"params": {"access_token": token, "token": token}},
        {"cookies": {"token": token, "Authorization": f"Bearer {token}"}},
        {"headers": {"X-Authorization": f"Bearer {token}"}},
    ):
        assert_refused(call(by_secret, None, **options), "Bearer")


BAD_CLAIMS = {
    "expired": {"exp": int(time.time()) - 11},
    "long expired": {"exp": 0},
    "expired before 1970": {"exp": -1},
    "no exp": {"exp": None},
    "exp as text": {"exp": "9999999999"},
    "exp as a word": {"exp": "never"},
    "exp as true": {"exp": True},
    "exp as a list": {"exp": [9999999999]},
    "exp as an object": {"exp": {}},
    "exp of 10^400": {"exp": 10**400},
    "exp of 10^5000": {"exp": 10**4000},
    "exp of 10^300 as a float": {"exp": 1e300},
    "infinite exp": {"exp": float("inf")},
    "exp that is no number": {"exp": float("nan")},
    "not yet valid": {"nbf": int(time.time()) + 3600},
    "nbf as a word": {"nbf": "soon"},
    "nbf as a list": {"nbf": []},
    "infinite nbf": {"nbf": float("inf")},
    "issued tomorrow": {"iat": int(time.time()) + 86400},
    "iat as a word": {"iat": "now"},
    "no sub": {"sub": None},
    "sub as a number": {"sub": 1},
    "sub as a list": {"sub": ["ann"]},
    "sub as an object": {"sub": {"ann": 1}},
    "sub as true": {"sub": True},
    "an empty sub": {"sub": ""},
    "no issuer": {"iss": None},
    "another issuer": {"iss": "https://evil.example/"},
    "an issuer without its slash": {"iss": ISSUER.rstrip("/")},
    "an issuer as a list": {"iss": [ISSUER]},
    "no audience": {"aud": None},
    "another audience": {"aud": "web"},
    "an empty audience": {"aud": ""},
    "an audience as a number": {"aud": 1},
    "an audience as an object": {"aud": {AUDIENCE: 1}},
    "an audience with a number in it": {"aud": [AUDIENCE, 1]},
}


@pytest.mark.parametrize("name", BAD_CLAIMS)
def test_bad_claims(scheme: tuple[Verifier, Callable[..., str]], name: str) -> None:
    verifier, sign = scheme
    (claim,) = BAD_CLAIMS[name]
    assert claim in assert_invalid(verifier, sign(claims(**BAD_CLAIMS[name]))).lower()


NOW = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"exp": 1}, rf"Expired: found exp 1970-01-01T00:00:01Z, now is {NOW}"),
        ({"exp": -(10**300)}, rf"Expired: found exp -1(0){{198}}, now is {NOW}"),
        ({"exp": -(10**12)}, rf"Expired: found exp -1(0){{12}}, now is {NOW}"),
        ({"exp": -(10**17)}, rf"Expired: found exp -1(0){{17}}, now is {NOW}"),
        ({"exp": "1"}, rf"Expired: found exp '1', now is {NOW}"),
        ({"exp": None}, 'Token is missing the "exp" claim'),
        ({"sub": None}, 'Token is missing the "sub" claim'),
        (
            {"nbf": 9999999999},
            rf"Not valid yet: found nbf 2286-11-20T17:46:39Z, iat None, now is {NOW}",
        ),
        (
            {"iat": 9999999999},
            rf"Not valid yet: found nbf None, iat 2286-11-20T17:46:39Z, now is {NOW}",
        ),
        ({"iss": "https://b"}, f"Wrong issuer: found iss 'https://b', expected {ISSUER}"),
        ({"iss": "\n\x1b\u7528"}, rf"Wrong issuer: found iss '\\n\\x1b\\u7528', expected {ISSUER}"),
        ({"iss": "x" * 5000}, f"Wrong issuer: found iss 'x{{199}}, expected {ISSUER}"),
        ({"iss": None}, f"Wrong issuer: found iss None, expected {ISSUER}"),
        ({"iss": 123456}, f"Wrong issuer: found iss 123456, expected {ISSUER}"),
        ({"aud": "web"}, r"Wrong audience: found aud 'web', expected other or api"),
        (
            {"aud": ["a", "\ud800"]},
            r"Wrong audience: found aud \['a', '\\ud800'\], expected other or api",
        ),
        ({"aud": ["a"] * 5000}, r"Wrong audience: found aud \[.{199}, expected other or api"),
        ({"aud": None}, "Wrong audience: found aud None, expected other or api"),
        ({"aud": []}, r"Wrong audience: found aud \[\], expected other or api"),
        ({"aud": 42}, "Wrong audience: found aud 42, expected other or api"),
        ({"sub": ""}, "The claim sub is empty"),
        (
            {"exp": 1795000000000},
            "The claim exp is no time in seconds since 1970: found 1795000000000",
        ),
        ({"exp": "never"}, r"Expiration Time claim \(exp\) must be an integer."),
        ({"nbf": "x"}, r"Not Before claim \(nbf\) must be an integer."),
    ],
)
def test_the_reason_says_what_was_found_and_expected(
    scheme: tuple[Verifier, Callable[..., str]], change: dict[str, Any], reason: str
) -> None:
    verifier, sign = scheme
    assert re.fullmatch(reason, assert_invalid(verifier, sign(claims(**change))))


def test_the_reason_names_the_key_and_the_algorithm(
    secret_verifier: Verifier, key_verifier: Verifier, keys: dict[str, Key]
) -> None:
    known = "expected ['EdDSA', 'ES256', 'RS256']"
    for kid in (None, "new", "\n\u7528"):
        token = keys["EdDSA"].sign(claims(), kid=kid)
        assert assert_invalid(key_verifier, token) == f"Unknown key: found kid {kid!a}, {known}"
    wrong = "Wrong algorithm: found alg 'HS256', expected ES256"
    assert assert_invalid(key_verifier, hs256(claims(), kid="ES256")) == wrong
    wrong = "Wrong algorithm: found alg 'ES256', expected HS256"
    assert assert_invalid(secret_verifier, keys["ES256"].sign(claims())) == wrong
    other = hs256(claims(), b"another secret of more than 32 bytes.")
    assert assert_invalid(secret_verifier, other) == "Signature verification failed"


@pytest.mark.parametrize("change", [
    {"exp": int(time.time()) + 3600.5}, {"aud": ["web", AUDIENCE]}, {"nbf": 0, "iat": 0},
    {"exp": 253402300799}, {"jti": "1"}, {"azp": "https://web.example", "scope": "all"},
])  # fmt: skip
def test_good_claims(scheme: tuple[Verifier, Callable[..., str]], change: dict[str, Any]) -> None:
    verifier, sign = scheme
    assert verifier.verify(sign(claims(**change))) == "ann"


@pytest.mark.parametrize("sub", ["\ud800", "x" * 5000, "ann\0", " ann", "ann/"])
def test_a_strange_subject_is_nobody(mode: tuple[Server, Callable[..., str]], sub: str) -> None:
    server, sign = mode
    assert call(server, sign(claims(sub=sub))).status_code == 403


BAD_HEADERS = {
    "crit": {"crit": ["exp"]},
    "crit of something unknown": {"crit": ["http://example.com/x"], "http://example.com/x": 1},
    "crit of something long that is not UTF-8": {"crit": ["\ud800" * 999]},
    "crit that is no list": {"crit": "exp"},
    "an empty crit": {"crit": []},
    "b64": {"b64": False, "crit": ["b64"]},
    "b64 that is true": {"b64": True, "crit": ["b64"]},
    "b64 alone": {"b64": False},
    "alg none": {"alg": "none"},
    "alg None": {"alg": "None"},
    "alg nOnE": {"alg": "nOnE"},
    "alg missing": {"alg": None},
    "an empty alg": {"alg": ""},
    "alg as a list": {"alg": ["HS256"]},
    "alg HS512": {"alg": "HS512"},
    "alg RS256": {"alg": "RS256"},
    "alg ES256": {"alg": "ES256"},
    "alg EdDSA": {"alg": "EdDSA"},
    "alg PS256": {"alg": "PS256"},
    "alg in another case": {"alg": "hs256"},
    "kid as a number": {"kid": 1},
    "kid as a list": {"kid": ["EdDSA"]},
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_headers_with_a_right_signature(secret_verifier: Verifier, name: str) -> None:
    assert_invalid(secret_verifier, hs256(claims(), **BAD_HEADERS[name]))


SHAPES = {
    "no dots": "x",
    "one dot": "a.b",
    "two dots": "..",
    "three dots": hs256({"sub": "ann"}) + ".x",
    "five parts, as encrypted": "a.b.c.d.e",
    "a payload that is a list": hs256([]),
    "a payload that is text": hs256("ann"),
    "a payload that is null": hs256(None),
    "a payload that is no JSON": hs256(b"ann"),
    "a payload that is no UTF-8": hs256(b'{"sub": "\xff"}'),
    "an empty payload": hs256(b""),
    "a payload nested too deep": hs256(b"[" * 3000),
    "NaN in the payload": hs256(b'{"sub": "ann", "exp": NaN}'),
    "a header that is a list": f"{encoded([])}.{encoded({})}.x",
    "a header that is no JSON": f"{encoded(b'{')}.{encoded({})}.x",
    "a header nested too deep": f"{encoded(b'[' * 3000)}.{encoded({})}.x",
    "a signature that is no base64": "{}.{}.!".format(*hs256(claims()).split(".")[:2]),
    "no signature": "{}.{}.".format(*hs256(claims()).split(".")[:2]),
    "no signature and alg none": f"{encoded({'alg': 'none'})}.{encoded(claims())}.",
    "another secret": hs256(claims(), b"another secret of more than 32 bytes."),
    "an empty secret": hs256(claims(), b""),
    "a very long token": hs256(claims(x="x" * 5000)) + "x",
}


@pytest.mark.parametrize("name", SHAPES)
def test_bad_shapes(scheme: tuple[Verifier, Callable[..., str]], name: str) -> None:
    assert_invalid(scheme[0], SHAPES[name])


def test_a_token_cut_or_changed_at_any_byte_is_refused(
    scheme: tuple[Verifier, Callable[..., str]],
) -> None:
    verifier, sign = scheme
    token = sign(claims())
    for at in range(len(token) - 1):
        other = "A" if token[at] != "A" else "B"
        assert_invalid(verifier, token[:at])
        assert_invalid(verifier, token[:at] + other + token[at + 1 :])
    assert_invalid(verifier, token[:-1])
    assert verifier.verify(token) == "ann"


def test_a_bad_token_is_a_401_and_the_log_says_why(mode: tuple[Server, Callable[..., str]]) -> None:
    server, sign = mode
    start = server.log_file.stat().st_size
    tokens = [sign(claims(**changes)) for changes in BAD_CLAIMS.values()]
    tokens += [hs256(claims(), **headers) for headers in BAD_HEADERS.values()]
    tokens += SHAPES.values()
    assert len(tokens) > 60
    answers = {}
    for token in tokens:
        answer = call(server, token)
        assert_refused(answer)
        answers[answer.headers["X-Request-ID"]] = token
    assert call(server, sign(claims())).status_code == 200
    lines = [line for line in server.log(start) if line["message"] != "request"]
    assert [line["request_id"] for line in lines] == [*answers]
    for line, token in zip(lines, answers.values(), strict=True):
        assert line["level"] == "info"
        assert re.fullmatch("unauthorized: [ -~]{10,700}", line["message"])
        for part in token.split("."):
            assert len(part) < 8 or part not in line["message"]


def test_the_log_says_of_a_401_that_there_was_no_jwt(by_secret: Server) -> None:
    """A page sends its session's id, or the encrypted token of Auth.js (RFC 7516)."""
    not_jwt, hint = "Not a JWT", "(a session id, or encrypted?)"
    session, header = encoded(bytes(24)), encoded(b'{"alg":"dir","enc":"A256CBC-HS512","kid":"x"}')
    encrypted = f"{header}..{encoded(bytes(16))}.{encoded(bytes(64))}.{encoded(bytes(32))}"
    start = by_secret.log_file.stat().st_size
    for value, reason in (
        ("", "No bearer token"),
        ("Basic YTpi", "No bearer token"),
        ("Bearer secret1 secret2", f"{not_jwt}: The header Authorization is not `Bearer TOKEN`"),
        ("Bearer undefined", f"{not_jwt}: found 1 part(s), expected 3 {hint}"),
        (
            f"Bearer {session}.{encoded(bytes(32))}",
            f"{not_jwt}: found 2 part(s), expected 3 {hint}",
        ),
        (f"Bearer {encrypted}", f"{not_jwt}: found 5 part(s), expected 3 {hint}"),
    ):
        id = call(by_secret, None, headers={"Authorization": value}).headers["X-Request-ID"]
        line = next(line for line in by_secret.log(start) if line.get("request_id") == id)
        assert line["message"] == f"unauthorized: {reason}"


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
def test_the_algorithms_of_issuers(by_keys: Server, keys: dict[str, Key], algorithm: str) -> None:
    assert call(by_keys, keys[algorithm].sign(claims())).status_code == 200


def test_a_key_set_rules_over_a_secret_and_the_log_says_so_once(
    tmp_path: Path, issuer: Issuer, keys: dict[str, Key]
) -> None:
    options = {"JWT_JWKS_URL": issuer.url, "BETTER_AUTH_SECRET": SECRET, "PORT": "8000"}
    with Server(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path / 'x.db'}", **options) as server:
        assert call(server, keys["EdDSA"].sign(claims())).status_code == 200
        assert call(server, hs256(claims())).status_code == 401
        assert call(server, None).status_code == 401
    (line,) = (line for line in server.log() if "ignored" in line["message"])
    assert line["message"] == "BETTER_AUTH_SECRET is ignored, since JWT_JWKS_URL is set"
    assert not any("Anyone" in line["message"] for line in server.log())
    assert SECRET not in server.log_file.read_text()


def test_a_platform_is_open_where_it_is_meant_and_the_log_says_so(tmp_path: Path) -> None:
    options = {"DATABASE_URL": f"sqlite:///{tmp_path / 'x.db'}", "PORT": "8000"}
    with Server(tmp_path, ALLOW_ANYONE="true", **options) as server:
        assert call(server, None).status_code == 200
    (line,) = (line for line in server.log() if line["level"] == "warning")
    assert line["message"].startswith("Anyone who can reach this server may read and write")


def test_families_are_never_mixed(
    key_verifier: Verifier, secret_verifier: Verifier, keys: dict[str, Key]
) -> None:
    good = keys["RS256"].sign(claims())
    assert key_verifier.verify(good) == "ann"
    assert_invalid(secret_verifier, good)
    assert_invalid(key_verifier, hs256(claims()))
    assert_invalid(key_verifier, hs256(claims(), SECRET.encode(), kid="oct"))


def test_a_key_signs_only_with_its_own_algorithm(
    key_verifier: Verifier, keys: dict[str, Key]
) -> None:
    assert_invalid(key_verifier, keys["RS256"].sign(claims(), kid="EdDSA"))
    assert_invalid(key_verifier, keys["EdDSA"].sign(claims(), kid="RS256"))
    for algorithm in ("RS384", "RS512", "PS256"):
        assert_invalid(key_verifier, keys["RS256"].sign(claims(), algorithm))
    assert_invalid(key_verifier, keys["weak"].sign(claims()))
    assert_invalid(key_verifier, keys["enc"].sign(claims()))
    assert_invalid(key_verifier, keys["large"].sign(claims()))


@pytest.mark.parametrize("header", ["jku", "x5u", "jwk", "x5c"])
def test_a_key_that_the_token_brings_is_ignored(
    key_verifier: Verifier, keys: dict[str, Key], header: str
) -> None:
    own = Key("EdDSA", "EdDSA")
    evil = Issuer(own)
    try:
        value = {"jwk": own.jwk, "x5c": [urlsafe_b64encode(b"x").decode()]}.get(header, evil.url)
        assert_invalid(key_verifier, own.sign(claims(), **{header: value}))
        assert key_verifier.verify(keys["EdDSA"].sign(claims(), **{header: value})) == "ann"
        assert evil.requests == 0
    finally:
        evil.close()


def test_a_token_without_a_kid_is_refused_where_there_are_several_keys(
    key_verifier: Verifier, keys: dict[str, Key]
) -> None:
    assert_invalid(key_verifier, keys["EdDSA"].sign(claims(), kid=None))


def test_a_browser_of_a_listed_origin_gets_through(mode: tuple[Server, Callable[..., str]]) -> None:
    server, sign = mode
    asked = {"Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,content-type"
    preflight = call(server, None, method="OPTIONS", headers=asked | {"Origin": LISTED})
    assert preflight.status_code == 200
    allowed = preflight.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"authorization", "content-type"} <= set(allowed)
    for token, status in ((sign(claims()), 200), ("x", 401)):
        response = call(server, token, headers={"Origin": LISTED})
        assert response.status_code == status
        assert response.headers["Access-Control-Allow-Origin"] == LISTED
        foreign = call(server, token, headers={"Origin": "http://evil.example"})
        assert "Access-Control-Allow-Origin" not in foreign.headers
    foreign = call(
        server, None, method="OPTIONS", headers=asked | {"Origin": "http://evil.example"}
    )
    assert not [name for name in foreign.headers if name.startswith("Access-Control")]


def test_audience_and_issuer_are_required_only_when_they_are_set() -> None:
    verifier = new_verifier(jwt_secret=SECRET, jwt_issuer=None, jwt_audience=())
    for change in ({}, {"aud": None}, {"iss": None}, {"aud": "web", "iss": 5}):
        assert verifier.verify(hs256(claims(**change))) == "ann"


def test_the_leeway_is_ten_seconds_unless_it_is_set(secret_verifier: Verifier) -> None:
    assert secret_verifier.verify(hs256(claims(exp=int(time.time()) - 5))) == "ann"
    verifier = new_verifier(jwt_secret=SECRET, jwt_leeway=0)
    assert_invalid(verifier, hs256(claims(exp=int(time.time()) - 1)))


def test_the_document_asks_for_tokens_exactly_when_the_server_does(by_secret: Server) -> None:
    opened = create_app(SETTINGS).test_client().get("/openapi.json").json
    closed = requests.get(by_secret.url + "/openapi.json").json()
    assert "securitySchemes" not in opened["components"]
    assert '"bearer"' not in json.dumps(opened)
    schemes = closed["components"]["securitySchemes"]
    assert "`sub`" in schemes["bearer"].pop("description")
    assert schemes == {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    for path, item in closed["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                needed = path.startswith("/api/")
                assert (operation.get("security") == [{"bearer": []}]) is needed
                assert ({"401", "403"} <= operation["responses"].keys()) is needed
    unauthorized = closed["components"]["responses"]["Unauthorized"]
    assert "WWW-Authenticate" in unauthorized["headers"]


def test_the_command_prints_a_token_that_works(tmp_path: Path, by_secret: Server) -> None:
    options = {"JWT_SECRET": SECRET, "JWT_ISSUER": ISSUER, "JWT_AUDIENCE": AUDIENCE}
    result = run_command(tmp_path, "token", "ann", "--days", "2", **options)
    assert result.exit_code == 0, result.stderr
    assert call(by_secret, result.stdout.strip()).status_code == 200
    found = jwt.decode(result.stdout.strip(), options={"verify_signature": False})
    assert found["exp"] - found["iat"] == 2 * 86400


def test_no_token_is_in_the_log(by_secret: Server) -> None:
    token = hs256(claims())
    call(by_secret, token)
    call(by_secret, token + "x")
    log = by_secret.log_file.read_text()
    assert token not in log and token.rpartition(".")[2] not in log and SECRET not in log


def test_many_at_once(mode: tuple[Server, Callable[..., str]]) -> None:
    server, sign = mode
    tokens = [sign(claims()) if number % 2 else f"{sign(claims())}x" for number in range(64)]
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda token: call(server, token), tokens)
        assert [answer.status_code for answer in answers] == [401, 200] * 32


def test_the_first_requests_after_a_start_need_not_wait_for_a_slow_issuer(tmp_path: Path) -> None:
    key = Key("EdDSA", "k1")
    issuer = Issuer(key)
    issuer.drip = 0.003
    with Server(tmp_path, JWT_JWKS_URL=issuer.url) as server, ThreadPoolExecutor(32) as pool:
        token = key.sign(claims())
        answers = list(pool.map(lambda _: call(server, token), range(64)))
    issuer.close()
    assert {answer.status_code for answer in answers} == {200}


def test_the_log_names_the_algorithm_of_the_header_not_a_claim_of_that_name(
    by_secret: Server,
) -> None:
    token = jwt.encode({"sub": "ann", "exp": 2**33, "alg": "HS256"}, "x" * 64, "HS512")
    start = by_secret.log_file.stat().st_size
    assert call(by_secret, token).status_code == 401
    reason = "unauthorized: Wrong algorithm: found alg 'HS512', expected HS256"
    assert reason in [line["message"] for line in by_secret.log(start)]
